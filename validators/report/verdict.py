"""The verdict in one sentence: what the rows were held to decides what can be said of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_export.tasks.base import Measure  # noqa: TC001 (doctests)
from flash_export.validators.report.formatting import format_change
from flash_export.validators.results import ACCURACY

if TYPE_CHECKING:
    from flash_export.validators.report.by_backend import BackendSummary
    from flash_export.validators.results import ValidationReport

# What holds of one that passed; what does of one that failed, and of several.
_SAME = tuple(f"{verb} the same answers as the original" for verb in ("gives", "does not give", "do not give"))
_WITHIN = tuple(f"{verb} within the tolerance that was given" for verb in ("stays", "does not stay", "do not stay"))
_LOSS = ("loses no more than it may", "loses more than it may", "lose more than they may")


def phrase_verdict(report: ValidationReport, backends: tuple[BackendSummary, ...]) -> str:
    """Return one plain sentence: of a quantized bundle that it stays within its budget, of others that they are equal.

    Args:
        report: The report.
        backends: Its backends.
    """
    if not report.count("passed") and not report.count("failed"):
        return "Nothing was checked, so nothing is proven."
    model = f"The {report.environment['precision']} model" if report.is_quantized else "The exported model"
    words = _WITHIN if "tolerance" in report.environment else _LOSS if report.is_quantized else _SAME
    good, one_is_bad, several_are_bad = words
    if report:
        return f"{model} {good}{_phrase_loss(report)}."
    differing = {row.backend for row in report.rows if row.status == "failed" and row.check == ACCURACY}
    failing = [one.name for one in backends if one.name in differing or (one.failed and not differing)]
    has_passing = any(one.passed and not one.failed for one in backends)
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


def _phrase_loss(report: ValidationReport) -> str:
    accepted, loss = report.environment.get("accepted_loss"), report.score_loss
    if not report.is_quantized or accepted is None or loss is None or report.scores is None:
        return ""
    return f": {phrase_loss(report.scores.measure, loss)}, {accepted} is accepted"
