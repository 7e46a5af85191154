"""What a validation says of each backend, and of all of them in one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flash_export.formatting import format_change
from flash_export.tasks.base import Measure  # noqa: TC001 (doctests)
from flash_export.validators.lengths import RECORDED
from flash_export.validators.report.rows import find_timed, find_worst, find_worst_measures
from flash_export.validators.results import ACCURACY, HELDOUT_SCORE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from flash_export.validators.results import Row, Status, ValidationReport

# What holds of one that passed; what does of one that failed, and of several.
_SAME = tuple(f"{verb} the same answers as the original" for verb in ("gives", "does not give", "do not give"))
_WITHIN = tuple(f"{verb} within the tolerance that was given" for verb in ("stays", "does not stay", "do not stay"))
_LOSS = ("loses no more than it may", "loses more than it may", "lose more than they may")
_FAR = tuple(f"{verb} further from the original than few bits explain" for verb in ("is no", "is", "are"))


@dataclass(frozen=True)
class RowGroup:
    """Rows of one backend, in a few numbers.

    Attributes:
        backend: Name of the backend.
        rows: The rows.
        label: Their lengths, such as ``129-256``; empty where they are all of the backend's.
    """

    backend: str
    rows: tuple[Row, ...]
    label: str = ""

    @property
    def counts(self) -> str:
        """``76 passed, 2 skipped``."""
        return ", ".join(count for count in count_statuses(self.rows).split(", ") if not count.startswith("0 "))

    @property
    def status(self) -> Status:
        """``failed`` if any row failed, else ``passed`` if any passed."""
        found = {row.status for row in self.rows}
        return "failed" if "failed" in found else "passed" if "passed" in found else "skipped"

    @property
    def worst(self) -> Row | None:
        """The comparison whose error is the largest fraction of its tolerance."""
        return find_worst(row for row in self.rows if row.check == ACCURACY)

    @property
    def timed(self) -> Row | None:
        """The row whose times stand for the others: the smallest batch, its longest length."""
        return find_timed(self.rows)

    @property
    def invariances(self) -> tuple[Row, ...]:
        """The checks of the backend against itself."""
        return tuple(row for row in self.rows if row.check != ACCURACY)


def count_statuses(rows: Iterable[Row]) -> str:
    """Count what came out: ``76 passed, 0 failed, 2 skipped``."""
    statuses = [row.status for row in rows]
    return ", ".join(f"{statuses.count(status)} {status}" for status in ("passed", "failed", "skipped"))


def group_by_backend(rows: Sequence[Row]) -> list[RowGroup]:
    """Return the rows of each backend, in the order of the report."""
    names = dict.fromkeys(row.backend for row in rows)
    return [RowGroup(name, tuple(row for row in rows if row.backend == name)) for name in names]


def group_by_length(group: RowGroup) -> list[RowGroup]:
    """Return the comparisons of a backend in groups of lengths that end at powers of two: 1, 2, 3-4, 5-8, ..."""
    found: dict[int, list[Row]] = {}
    for row in group.rows:
        if row.seq_len is not None and row.check == ACCURACY:
            found.setdefault((row.seq_len - 1).bit_length(), []).append(row)
    groups = []
    for _, rows in sorted(found.items()):
        lengths = [row.seq_len or 0 for row in rows]
        low, high = min(lengths), max(lengths)
        groups.append(RowGroup(group.backend, tuple(rows), str(low) if low == high else f"{low}-{high}"))
    return groups


def find_measures(report: ValidationReport, rows: Sequence[Row]) -> dict[str, float]:
    """Return the worst of what the task measures, by name.

    Of a quantized bundle on held-out data, if any of the rows is of it: random inputs have near ties, which few bits
    decide otherwise.
    """
    recorded = [row for row in rows if row.inputs == RECORDED and row.measures]
    judged = recorded if report.is_quantized and recorded else rows
    return find_worst_measures(report.measures, [row.measures for row in judged])


def find_random_measures(report: ValidationReport) -> dict[str, float]:
    """Return the worst measures on random inputs where :func:`find_measures` is of held-out data alone; else none."""
    if not (report.is_quantized and any(row.inputs == RECORDED and row.measures for row in report.rows)):
        return {}
    return find_worst_measures(report.measures, [row.measures for row in report.rows if row.inputs != RECORDED])


def find_fastest(backends: Sequence[RowGroup]) -> RowGroup | None:
    """Return the fastest at the longest length that was timed, a right one if there is any; None if none was timed."""
    timed = [(row, one) for one in backends if (row := one.timed) is not None]
    ranked = [((one.status != "failed", row.seq_len or 0, row.speedup or 0.0), one) for row, one in timed]
    return max(ranked, key=lambda pair: pair[0])[1] if ranked else None


def phrase_verdict(report: ValidationReport, backends: Sequence[RowGroup]) -> str:
    """Return one plain sentence: a quantized bundle stays within its budget, others give the same answers."""
    if not report.count("passed") and not report.count("failed"):
        return "Nothing was checked, so nothing is proven."
    model = f"The {report.environment['precision']} model" if report.is_quantized else "The exported model"
    words = _WITHIN if "tolerance" in report.environment else _LOSS if report.is_quantized else _SAME
    has_lost = any(row.name == HELDOUT_SCORE and row.status == "failed" for row in report.rows)
    if words is _LOSS and not report and not has_lost:  # the score is fine, or unknown; single answers are not
        words = _FAR
    good, one_is_bad, several_are_bad = words
    if report:
        return f"{model} {good}{_phrase_accepted_loss(report)}."
    differing = {row.backend for row in report.rows if row.status == "failed" and row.check == ACCURACY}
    failed = [one.backend for one in backends if one.status == "failed"]
    failing = [name for name in failed if name in differing or not differing]
    has_passing = any(one.status == "passed" for one in backends)
    subject = " and ".join(failing) if has_passing else model
    is_one = len(failing) == 1 or not has_passing
    if not differing:
        return f"{subject} {'breaks' if is_one else 'break'} what must hold of any model."
    return f"{subject} {one_is_bad if is_one else several_are_bad}."


def phrase_loss(measure: Measure, loss: float) -> str:
    """Say how much worse a score is than the eager model's.

    >>> bits = Measure("bits", "bits per byte", "bits", "lower")
    >>> phrase_loss(bits, 0.0034), phrase_loss(bits, -0.012), phrase_loss(bits, 0.0)
    ('0.34% more bits per byte', '1.2% fewer bits per byte', 'as many bits per byte')
    >>> phrase_loss(Measure("si_sdr_db", "SI-SDR", "dB", "higher"), 0.01)
    '1.0% less SI-SDR'
    """
    more, fewer = ("more", "fewer") if measure.better == "lower" else ("less", "more")
    if loss == 0:
        return f"as {'many' if measure.better == 'lower' else 'much'} {measure.label}"
    return f"{format_change(loss).lstrip('+-')} {more if loss > 0 else fewer} {measure.label}"


def _phrase_accepted_loss(report: ValidationReport) -> str:
    accepted, loss = report.environment.get("accepted_loss"), report.score_loss
    if not report.is_quantized or accepted is None or loss is None or report.scores is None:
        return ""
    return f": {phrase_loss(report.scores.measure, loss)}, {accepted} is accepted"
