from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from rich.console import Console

from flash_export.data.sources import RandomSource
from flash_export.errors import ConfigError, InputError
from flash_export.ranges.growth import fit_growth
from flash_export.report.terminal import print_document
from flash_export.validators.ranges.page import describe_horizon, describe_ranges
from flash_export.validators.ranges.profile import RangesOptions, profile_ranges
from flash_export.validators.ranges.results import RangePoint, RangeRow, RangesReport
from tests.validators.conftest import sign_files

if TYPE_CHECKING:
    from flash_export.bundle.bundle import Bundle

LENGTHS = (9, 24, 48, 96)
TEXT = bytes(range(97, 123)) * 10


def show(report: RangesReport, max_rows: int | None = None) -> str:
    console = Console(width=200, record=True, force_terminal=False)
    print_document(describe_ranges(report, max_rows), console)
    return console.export_text()


def test_every_quantity_is_measured_at_every_length(pristine_bundle: Bundle) -> None:
    report = profile_ranges(pristine_bundle, RangesOptions(LENGTHS, threads=1))
    names = {row.name.rpartition(".")[2] for row in report.rows}

    assert report.data == "random tokens"
    assert report.seq_lens == LENGTHS
    assert names == pristine_bundle.load_model().config.quantities.keys() | {"norm_squares"}
    assert all([point.seq_len for point in row.points] == list(LENGTHS) for row in report.rows)
    assert all(0 <= point.rms <= point.max_abs for row in report.rows for point in row.points)
    urgencies = [row.urgency for row in report.rows]
    assert urgencies == sorted(urgencies)
    values = json.loads(report.to_json())
    assert values["rows"][0]["points"][0]["seq_len"] == 9


def test_ranges_are_those_of_the_model_and_of_the_graph_s_scale(pristine_bundle: Bundle) -> None:
    report = profile_ranges(pristine_bundle, RangesOptions((96,), windows=1, threads=1))
    rows = {row.name: row.points[0] for row in report.rows}
    model = pristine_bundle.load_model()
    seen: dict[str, torch.Tensor] = {}
    tokens = RandomSource(model.config.interface).take(1, 96).arrays["input_ids"]
    with model.read_probes(seen.__setitem__):
        model(torch.from_numpy(tokens))

    for name, values in seen.items():
        assert rows[name].max_abs == pytest.approx(float(values.abs().max()))
        assert rows[name].rms == pytest.approx(float(values.square().mean().sqrt()))
    squares = seen["embedding"].square().sum(-1)
    assert rows["layers.0.norm_squares"].max_abs == pytest.approx(float(squares.max()))
    assert rows["norm_squares"].max_abs == pytest.approx(float(seen["layers.0.out"].square().sum(-1).max()))
    assert rows["layers.0.quad_q"].graph_max_abs == pytest.approx(rows["layers.0.quad_q"].max_abs / 8)  # the chunk
    assert rows["layers.0.kv"].graph_max_abs == rows["layers.0.kv"].max_abs


def test_held_out_text_is_read_where_there_is_one(bundle: Bundle) -> None:
    (bundle.path / "heldout.txt").write_bytes(TEXT)
    settings = {"objective": "causal", "tokenizer": "bytes", "seq_len": 26, "mask_token_id": None}
    (bundle.path / "heldout.json").write_text(json.dumps(settings))

    report = profile_ranges(bundle, RangesOptions(threads=1))
    assert (report.data, report.seq_lens, report.stopped) == ("held-out text", (16, 32, 64), "")
    assert profile_ranges(bundle, RangesOptions((8,), random=True, threads=1)).data == "random tokens"
    assert "Measured on held-out text, 16 to 64 tokens;" in show(report)


def test_length_beyond_the_text_is_refused(bundle: Bundle) -> None:
    (bundle.path / "heldout.txt").write_bytes(TEXT[:52])
    settings = {"objective": "causal", "tokenizer": "bytes", "seq_len": 26, "mask_token_id": None}
    (bundle.path / "heldout.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="seq_len=64 is more than the held-out text has; use less"):
        profile_ranges(bundle, RangesOptions((64,), threads=1))
    report = profile_ranges(bundle, RangesOptions(threads=1))
    assert report.seq_lens == (16, 32)
    assert "seq_len=64 is more than the held-out text has" in report.stopped


def test_default_lengths_stop_when_time_is_short(pristine_bundle: Bundle) -> None:
    report = profile_ranges(pristine_bundle, RangesOptions(seconds=1e-9, threads=1))
    assert report.seq_lens == (16,)
    assert report.stopped.startswith("32 tokens would take about")


def test_default_lengths_stop_when_memory_is_short(pristine_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "flash_export.validators.ranges.profile.describe_lack_of_memory",
        lambda _, cell: "not enough memory" if cell.seq_len > 16 else None,
    )
    report = profile_ranges(pristine_bundle, RangesOptions(threads=1))
    assert (report.seq_lens, report.stopped) == ((16,), "not enough memory")
    assert "Not measured: not enough memory" in show(report)
    with pytest.raises(InputError, match="not enough memory"):
        profile_ranges(pristine_bundle, RangesOptions((96,), threads=1))


def test_table_shows_the_worst_first(pristine_bundle: Bundle) -> None:
    report = profile_ranges(pristine_bundle, RangesOptions(LENGTHS, threads=1))
    text = show(report, 3)
    assert f"and {len(report.rows) - 3} more\n" in text
    heading = text.splitlines().index("Quantities with the least room")
    assert report.rows[0].label in text.splitlines()[heading + 2]


@pytest.mark.parametrize("values", [{"windows": 0}, {"threads": 0}, {"seconds": 0.0}, {"seconds": float("nan")}])
def test_unusable_options_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="is not usable"):
        RangesOptions(**values)


def test_length_outside_of_the_graph_is_refused(pristine_bundle: Bundle) -> None:
    with pytest.raises(InputError, match="seq_len=97 exceeds"):
        profile_ranges(pristine_bundle, RangesOptions((97,)))


def make_report(*sizes: tuple[float, ...]) -> RangesReport:
    lengths = (256, 512, 1024)
    rows = [
        RangeRow(
            f"layers.{block}.kv",
            tuple(RangePoint(length, size, size, size) for length, size in zip(lengths, row, strict=True)),
            fit_growth(lengths, row),
            "linear key-value sum",
        )
        for block, row in enumerate(sizes)
    ]
    return RangesReport("bundle", "random tokens", lengths, 4096, tuple(sorted(rows, key=lambda row: row.urgency)))


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        (
            ((1.0, 1.0, 1.0), (2.0, 4.0, 8.0)),
            "First to overflow fp16: block 1, linear key-value sum, at about 8.4M tokens (8.4M to 8.4M); the graph "
            "promises lengths to 4096.",
        ),
        (
            ((1.0, 1.0, 1.0), (2.0, 9e4, 9e4), (9e4, 9e4, 9e4)),
            "fp16 overflows at measured lengths: block 2, linear key-value sum exceeds 65504 at 256 tokens and 1 more. "
            "Nothing else grows towards an overflow of fp16; the least room is 6.6e+04-fold, in block 0, linear "
            "key-value sum. An export with --precision fp16 holds in fp32 what would overflow within its --max-seq-len "
            "(--islands auto, the default).",
        ),
    ],
)
def test_horizon_is_told_in_words(sizes: tuple[tuple[float, ...], ...], text: str) -> None:
    assert describe_horizon(make_report(*sizes)) == text


def test_sums_of_norms_are_held_and_no_overflow(bundle: Bundle) -> None:
    """With squares far above the end of fp16, which no fp16 export holds in fp16."""
    model = bundle.load_model()
    with torch.no_grad():
        model.get_parameter("token_emb.weight").fill_(300.0)
    model.save_pretrained(bundle.path)
    report = profile_ranges(sign_files(bundle), RangesOptions(LENGTHS, threads=1))
    rows = {row.name: row for row in report.rows}
    squares = rows["layers.0.norm_squares"]

    assert squares.largest > 65504
    assert (squares.held, squares.growth.verdict) == ("always", "no growth")
    assert squares.growth.horizon is None
    assert report.rows[-1].held == "always"  # the worst come first
    assert rows["embedding"].held is None
    text = show(report)
    assert "Held in fp32\nby every fp16 export: sum of squares in the " in text
    assert "held in fp32, always" in text
    assert "overflows at measured lengths" not in text
    assert json.loads(report.to_json())["rows"][-1]["held"] == "always"


def test_island_of_an_fp16_bundle_is_told() -> None:
    report = make_report((2.0, 9e4, 9e4), (1.0, 1.0, 1.0))
    held = RangeRow(
        "layers.7.kv",
        report.rows[0].points,
        fit_growth((256, 512, 1024), (2.0, 9e4, 9e4), 3e38),
        "linear key-value sum",
        "island",
    )
    report = replace(report, rows=(*report.rows[1:], held), precision="fp16")
    assert describe_horizon(report) == (
        "Nothing grows towards an overflow of fp16; the least room is 6.6e+04-fold, in block 1, linear key-value sum."
    )
    lines = show(report).splitlines()
    assert "by the islands of this bundle: linear key-value sum, up to 9e+04 in block 7, linear key-value sum" in lines
    assert "held in fp32, an island" in show(report)


def test_an_fp32_bundle_is_told_what_an_export_would_hold() -> None:
    text = describe_horizon(make_report((2.0, 9e4, 9e4)))
    assert text.endswith("within its --max-seq-len (--islands auto, the default).")
    assert "--islands" not in describe_horizon(make_report((1.0, 1.0, 1.0)))
    assert "--islands" not in describe_horizon(replace(make_report((2.0, 9e4, 9e4)), precision="fp16"))
