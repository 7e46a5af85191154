"""What is put together: where models change places, and what is equal."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flash_export.report.document import Document, Plot, Plots
from flash_export.study.config import ModelEntry, StudyConfig
from flash_export.study.page import describe_study
from flash_export.study.results import LengthTime, Study, StudyEntry, collect_study, find_crossings
from flash_export.study.schedule import Found
from flash_export.validators.latency import Percentiles

LENS = (512, 1024, 2048, 4096)
CONFIG = StudyConfig(
    models=(ModelEntry("flash"), ModelEntry("transformer++"), ModelEntry("gau")), latency_lens=LENS, max_seq_len=2048
)


def make_percentiles(ms: float) -> dict[str, Any]:
    return {"p50": ms, "p90": ms, "p99": ms, "p50_low": ms, "p50_high": ms, "runs": 5}


def make_entry(name: str, times: list[float]) -> StudyEntry:
    timed = (
        LengthTime("ort-cpu", seq_len, Percentiles(**make_percentiles(ms)))
        for seq_len, ms in zip(LENS, times, strict=True)
    )
    return StudyEntry(name, name, name, "causal", 0, times=tuple(timed))


@given(st.lists(st.tuples(st.floats(0.1, 100), st.floats(0.1, 100)), min_size=4, max_size=4))
def test_who_is_faster_at_a_length_is_who_the_last_crossing_names(times: list[tuple[float, float]]) -> None:
    one, other = (
        make_entry(name, list(column)) for name, column in zip(("a", "b"), zip(*times, strict=True), strict=True)
    )
    crossings = list(find_crossings("ort-cpu", one, other, LENS))
    for seq_len, (mine, its) in zip(LENS, times, strict=True):
        last = [crossing for crossing in crossings if crossing.high <= seq_len][-1]
        assert last.faster == ("a" if mine <= its else "b")
    for crossing in crossings[1:]:
        assert crossing.low is not None
        assert crossing.seq_len is not None
        assert crossing.low - 1 <= crossing.seq_len <= crossing.high + 1


def test_crossing_of_power_laws_is_where_they_cross() -> None:
    linear, square = [0.1 * n for n in LENS], [n * n / 15_000 for n in LENS]  # equal at 1,500
    first, crossing = find_crossings("ort-cpu", make_entry("a", linear), make_entry("b", square), LENS)
    assert (first.faster, first.seq_len, first.high) == ("b", None, 512)
    assert (crossing.faster, crossing.seq_len, crossing.low, crossing.high) == ("a", 1500, 1024, 2048)


TRAINED = {"tokens_seen": 77, "training_sha256": "ab", "recipe_sha256": "alike"}


def find(**changes: Any) -> dict[str, Found]:
    """Return what a study of three models found, with other values for some tasks."""
    found: dict[str, Found] = {}
    for place, entry in enumerate(CONFIG.models):
        name = entry.name
        exported = {"parameters": 1000 + place, "growing_parameters": 0, "bytes": 5000, "config": {}}
        found[f"train~{name}"] = Found({})
        found[f"export~{name}"] = Found({**exported, **TRAINED})
        checked = {"passed": 9, "failed": 0, "skipped": 0, "is_right": True, "longest": 2048}
        found[f"validate~{name}~ort-cpu"] = Found({**checked, "largest_multiple": 1.5, "reason": None})
        found[f"score~{name}~ort-cpu"] = Found({"bits_per_byte": {"512": 2.0 + place, "2048": 1.9}})
        for seq_len in LENS:
            ms = (place + 1) * seq_len**1.5 / 1000
            timed = {"reason": None, "memory_bytes": 7, "random_weights": seq_len > 2048}
            found[f"time~{name}~ort-cpu~{seq_len}"] = Found({**timed, "latency_ms": make_percentiles(ms)})
    return {**found, **changes}


def list_plots(page: Document) -> list[Plot]:
    block = page.sections[0].block
    assert isinstance(block, Plots)
    return [plot for plot in block.plots if isinstance(plot, Plot)]


def collect(**changes: Any) -> Study:
    return collect_study(CONFIG, find(**changes))


def test_whole_study_is_complete_equal_and_shown() -> None:
    study = collect()
    assert (study.complete, study.equal_size, study.equal_tokens) == (True, True, True)
    assert study.entries[1].find_quality("ort-cpu", 512) == 3.0
    assert study.entries[0].times[3].random_weights
    assert not study.entries[0].times[2].random_weights
    page = describe_study(study, "folder")
    assert "all trained on the same 77 bytes" in page.lead
    plots = list_plots(page)
    assert [plot.title for plot in plots] == [
        "Quality against speed at 512 tokens, causal, ort-cpu",
        "Quality against speed at 2,048 tokens, causal, ort-cpu",
        "Latency a token against length, causal, ort-cpu",
    ]
    assert {point.label for point in plots[0].series[0].points} == {"FLASH", "Transformer++", "GAU (FLASH-Quad)"}
    fastest = max(plots[0].series[0].points, key=lambda point: point.x)
    assert fastest.label == "FLASH"
    assert fastest.x == pytest.approx(1e3 * 512 / (512**1.5 / 1000))
    assert -1 * (fastest.y or math.nan) == 2.0


def test_model_that_failed_is_named_and_in_no_picture() -> None:
    failed = {"passed": 8, "failed": 1, "skipped": 0, "is_right": False, "longest": 512}
    reason = Found(reason="it failed validation on ort-cpu")
    study = collect(
        **{
            "validate~gau-causal-0~ort-cpu": Found({**failed, "largest_multiple": 99.0, "reason": "off by 3"}),
            "score~gau-causal-0~ort-cpu": reason,
            **{f"time~gau-causal-0~ort-cpu~{seq_len}": reason for seq_len in LENS},
        }
    )
    assert not study.complete
    page = describe_study(study, "folder")
    assert "1 not shown in the pictures" in page.lead
    for plot in list_plots(page):
        shown = {series.label for series in plot.series} | {
            one.label for series in plot.series for one in series.points
        }
        assert "GAU (FLASH-Quad)" not in shown
    gaps = next(section for section in page.sections if section.title == "Not done, or failed")
    assert "off by 3" in str(gaps.block)
    assert not any("gau" in crossing.slower + crossing.faster for crossing in study.crossings)


@pytest.mark.parametrize(
    ("export", "equal_size", "equal_tokens"),
    [
        ({"parameters": 1030}, False, True),
        ({"parameters": 1010, "tokens_seen": 78}, True, False),
        ({"parameters": 1010, "training_sha256": "cd"}, True, False),
        ({"parameters": 1010, "recipe_sha256": "other"}, True, False),
        ({"parameters": 1010, "tokens_seen": None, "training_sha256": None, "recipe_sha256": None}, True, False),
    ],
)
def test_unequal_work_is_said(export: dict[str, Any], equal_size: bool, equal_tokens: bool) -> None:
    study = collect(**{"export~gau-causal-0": Found({"growing_parameters": 0, "bytes": 1, **TRAINED, **export})})
    assert (study.equal_size, study.equal_tokens) == (equal_size, equal_tokens)
    lead = describe_study(study, "folder").lead
    assert ("NOT equal" in lead, "NOT all trained" in lead) == (not equal_size, not equal_tokens)
