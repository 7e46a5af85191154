"""What failed can be repeated: by the name of the check, and by what was kept of it."""

from __future__ import annotations

import io
import json
import logging
import shlex
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner

from flash_export.cli.main import main
from flash_export.errors import ConfigError, InputError
from flash_export.validators.bisect.bisect import BisectOptions, bisect_bundle
from flash_export.validators.failures import MAX_FAILURES, FailureFolder, read_inputs
from flash_export.validators.lengths import Cell, build_batch
from flash_export.validators.report.validation import describe_validation
from flash_export.validators.validate import validate_bundle
from flash_export.validators.validation_options import CHECKS, ValidationOptions
from tests.validators.report.builders import FAILED

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle

# Nothing is within this tolerance.
STRICT = ValidationOptions(checks=("2x33-masked", "1x17"), backends=("ort-cpu",), atol=1e-12, threads=1)


def keep_all(bundle: Bundle, folder: Path) -> list[str]:
    validate_bundle(bundle, ValidationOptions(**{**vars(STRICT), "failures": folder}))
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ["3x300", "3x300-masked", "1x515-heldout", "1x515-masked-heldout"])
def test_name_of_a_shape_comes_back(name: str) -> None:
    cell = Cell.parse(name)
    assert cell is not None
    assert cell.name == name


@pytest.mark.parametrize("name", ["", "3x", "0x3", "3x0", "3x300-", "3x300-heldout-masked", "-1x3", "3 x 300", "٣x3"])
def test_name_of_no_shape_is_refused(name: str) -> None:
    assert Cell.parse(name) is None
    with pytest.raises(ConfigError, match="or a shape such as 3x300-masked"):
        ValidationOptions(checks=(name,))


def test_named_checks_are_done_alone(pristine_bundle: Bundle) -> None:
    names = ("3x40-masked", "padding", "symbolic-shape")
    report = validate_bundle(pristine_bundle, ValidationOptions(checks=names, backends=("ort-cpu",), threads=1))
    assert report
    assert sorted(row.name for row in report.rows) == sorted(names)
    assert not report.footprints
    assert "padding" in CHECKS


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("heldout-score", "check heldout-score needs held-out data, and the bundle has none; give it with --data FILE"),
        ("1x5-heldout", "check 1x5-heldout needs held-out data"),
        ("1x1-masked", "check 1x1-masked has no room for padding"),
        ("future", "check future does not apply"),
    ],
)
def test_check_that_cannot_be_done_as_it_is_named_is_refused(pristine_bundle: Bundle, name: str, message: str) -> None:
    options = ValidationOptions(checks=(name,), backends=("ort-cpu",), threads=1)
    with pytest.raises(ConfigError, match=message):
        validate_bundle(pristine_bundle, options)


def test_masked_check_of_a_graph_without_a_mask_is_refused(causal_byte_bundle: Bundle) -> None:
    options = ValidationOptions(checks=("2x5-masked",), backends=("ort-cpu",), threads=1)
    with pytest.raises(ConfigError, match="needs a mask, and the graph takes none"):
        validate_bundle(causal_byte_bundle, options)


def test_every_row_of_a_validation_can_be_named(pristine_bundle: Bundle) -> None:
    options = ValidationOptions(backends=("ort-cpu",), threads=1, latency_budget_s=0.0, max_seq_len=40)
    whole = validate_bundle(pristine_bundle, options)
    names = [row.name for row in whole.rows]
    assert all(names)
    again = validate_bundle(
        pristine_bundle, ValidationOptions(checks=tuple(names), backends=("ort-cpu",), threads=1, latency_budget_s=0.0)
    )
    assert {row.name: row.max_abs_error for row in again.rows} == {row.name: row.max_abs_error for row in whole.rows}


def test_command_of_a_failure_repeats_it(pristine_bundle: Bundle) -> None:
    report = validate_bundle(pristine_bundle, STRICT)
    (note,) = describe_validation(report).notes
    command = shlex.split(note.command)
    assert command[:3] == ["flash-export", "validate", str(pristine_bundle.path)]
    assert command[3:] == [
        "--atol", "1e-12", "--threads", "1", "--backend", "ort-cpu", "--check", command[-2], "--no-latency"
    ]  # fmt: skip
    result = CliRunner().invoke(main, [*command[1:], "--json", "-"])
    assert result.exit_code == 1
    (row,) = json.loads(result.stdout)["rows"]
    assert (row["name"], row["status"]) == (command[-2], "failed")
    assert row["max_abs_error"] == max(one.max_abs_error or 0.0 for one in report.rows)
    assert not (pristine_bundle.path / "reports").exists()  # the report that it is from is not replaced


def test_inputs_expected_and_found_are_kept(pristine_bundle: Bundle, tmp_path: Path) -> None:
    assert keep_all(pristine_bundle, tmp_path / "kept") == ["ort-cpu_1x17", "ort-cpu_2x33-masked"]
    folder = tmp_path / "kept" / "ort-cpu_2x33-masked"
    row = json.loads((folder / "check.json").read_text())
    expected, found = (np.load(folder / name)["logits"] for name in ("expected.npz", "found.npz"))
    inputs = read_inputs(folder / "inputs.npz", pristine_bundle.get_graph(), pristine_bundle.manifest.interface)
    assert inputs.is_padded
    difference = np.abs(expected - found)[inputs.valid].max()
    assert row["max_abs_error"] == pytest.approx(float(difference), rel=1e-6)


def test_bisection_reads_what_was_kept(pristine_bundle: Bundle, tmp_path: Path) -> None:
    keep_all(pristine_bundle, tmp_path / "kept")
    path = tmp_path / "kept" / "ort-cpu_2x33-masked" / "inputs.npz"
    report = bisect_bundle(pristine_bundle, BisectOptions(inputs=path, threads=1))
    assert report
    assert [str(run) for run in report.runs] == ["2 x 33 masked"]
    with pytest.raises(ConfigError, match="inputs and seq_len or batch were both given"):
        BisectOptions(inputs=path, seq_len=5)


def pack(**arrays: object) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


IDS = np.zeros((2, 5), np.int64)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is no .npy or .npz file"),
        (pack(input_ids=IDS), "has lengths of shape (0,), wanted a whole number for each row"),
        (pack(input_ids=IDS, lengths=np.array([5.0, 5.0])), "wanted a whole number for each row"),
        (pack(input_ids=IDS, lengths=np.array([5, 6])), "has lengths 5 to 6, wanted 1 to 5"),
        (pack(input_ids=IDS, lengths=np.array([0, 5])), "has lengths 0 to 5, wanted 1 to 5"),
        (pack(input_ids=IDS[0], lengths=np.array([5])), "has rank 1"),
        (pack(input_ids=IDS + 10**6, lengths=np.array([5, 5])), "has 1000000, token ids are 0 to"),
        (pack(x=IDS, lengths=np.array([5, 5])), "input input_ids is missing"),
        (pack(input_ids=np.array([None]), lengths=np.array([5])), "it holds Python objects"),
    ],
)
def test_what_cannot_be_read_is_one_line(pristine_bundle: Bundle, tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "inputs.npz"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_inputs(path, pristine_bundle.get_graph(), pristine_bundle.manifest.interface)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "give the inputs.npz of a check" in str(caught.value)


def test_disk_is_not_filled(pristine_bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = FailureFolder(tmp_path / "kept", logging.getLogger("flash_export.test"))
    inputs = build_batch(Cell(1, 3, masked=False), _make_data(pristine_bundle))
    for index in range(MAX_FAILURES + 3):
        row = type(FAILED)(**{**vars(FAILED), "name": f"1x{index + 1}"})
        folder.keep(row, inputs, {"logits": np.zeros(3)}, {"logits": np.ones(3)})
    assert len(list((tmp_path / "kept").iterdir())) == MAX_FAILURES
    assert "ort-cpu_1x23 is not kept" in caplog.text


def _make_data(bundle: Bundle):  # type: ignore[no-untyped-def]
    from flash_export.data.sources import Data, RandomSource

    return Data(RandomSource(bundle.manifest.interface))
