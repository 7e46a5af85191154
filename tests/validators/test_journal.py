from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from flash_export.errors import BundleError, ConfigError
from flash_export.tasks.base import Measure
from flash_export.validators.journal import Journal, StepResult
from flash_export.validators.latency import Percentiles
from flash_export.validators.results import HeldoutScores, Row

if TYPE_CHECKING:
    from pathlib import Path

KEY = {"bundle": "a", "options": {"rtol": 0.1}}
BITS = Measure("bits", "bits per byte", "bits", "lower")
LATENCY = Percentiles(1.0 / 3.0, 2.0, 3.0, 0.1, 1.0, 7)
RESULTS = {
    "1 x 8": StepResult((Row("ort-cpu", "forward", 1, 8, False, "passed", None, noise=1.1e-7, latency_ms=LATENCY),)),
    "1 x 9": StepResult((Row("ort-cpu", "forward", 1, 9, True, "failed", "NaN"),)),
    "held-out text": StepResult((), HeldoutScores(BITS, {"eager": 1.2345678901234567})),
}


def write_journal(path: Path) -> None:
    journal = Journal(path, KEY)
    for label, result in RESULTS.items():
        journal.record(label, result)


def test_finished_steps_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "reports" / "journal"
    write_journal(path)
    resumed = Journal(path, KEY, resume=True)
    assert {label: resumed.find(label) for label in RESULTS} == RESULTS
    assert resumed.find("1 x 10") is None


def test_journal_torn_anywhere_keeps_every_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write_journal(path)
    whole = path.read_bytes()
    first_line = whole.index(b"\n") + 1
    for cut in random.Random(0).sample(range(first_line, len(whole)), 60):
        path.write_bytes(whole[:cut])
        resumed = Journal(path, KEY, resume=True)
        finished = whole[:cut].count(b"\n") - 1
        found = [label for label in RESULTS if resumed.find(label) is not None]
        assert found[:finished] == list(RESULTS)[:finished]
        assert all(resumed.find(label) == RESULTS[label] for label in found)
        for label in RESULTS:
            resumed.record(label, RESULTS[label])
        again = Journal(path, KEY, resume=True)
        assert all(again.find(label) == result for label, result in RESULTS.items())


def test_other_key_is_refused_and_the_file_kept(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write_journal(path)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="other options, another bundle"):
        Journal(path, {**KEY, "bundle": "b"}, resume=True)
    assert path.read_bytes() == before


def test_without_resume_it_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    write_journal(path)
    assert Journal(path, KEY).find("1 x 8") is None
    assert Journal(path, KEY, resume=True).find("1 x 8") is None


def test_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="cannot write"):
        Journal(tmp_path / "file" / "journal", KEY)


def test_two_validations_of_one_folder_do_not_mix_their_steps(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    first, second = Journal(path, KEY), Journal(path, {**KEY, "bundle": "b"})
    first.record("1 x 8", RESULTS["1 x 8"])
    second.record("1 x 9", RESULTS["1 x 9"])
    resumed = Journal(path, {**KEY, "bundle": "b"}, resume=True)
    assert [resumed.find(label) is not None for label in RESULTS] == [False, True, False]


def test_journal_that_another_validation_removed_stays_removed(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path, KEY)
    path.unlink()
    journal.record("1 x 8", RESULTS["1 x 8"])
    assert journal.find("1 x 8") == RESULTS["1 x 8"]
    assert not path.exists()


@pytest.mark.parametrize(
    "damage",
    [
        '{"label": "1 x 8", "result": {"rows": 3}}',
        '{"label": 8, "result": {}}',
        '{"label": "1 x 8"}',
        '{"label": "1 x 8", "result": {"bits_per_byte": {"eager": NaN}}}',
        "[" * 100_000,
        "3",
        '{"label": "1 x 8", "result": {"rows": [{"backend": "ort-cpu"}]}}',
    ],
)
def test_a_line_that_is_no_step_is_done_again(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "journal"
    write_journal(path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], damage, *lines[2:]]) + "\n")
    resumed = Journal(path, KEY, resume=True)
    labels = list(RESULTS)
    assert resumed.find(labels[0]) is None
    assert [resumed.find(label) for label in labels[1:]] == [RESULTS[label] for label in labels[1:]]


def test_a_journal_that_is_no_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    with pytest.raises(BundleError, match="journal is no plain file; leave --resume out to start anew"):
        Journal(tmp_path / "journal", KEY, resume=True)
