"""What the words and numbers of a validation mean, for someone who reads its page for the first time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_export.formatting import capitalize
from flash_export.report.document import Explanations

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flash_export.validators.results import ValidationReport


def explain_validation(report: ValidationReport, *, has_times: bool) -> Explanations:
    """Return the explanations of what this report has."""
    return Explanations(tuple(_list_terms(report, has_times=has_times)))


def _list_terms(report: ValidationReport, *, has_times: bool) -> Iterator[tuple[str, str]]:
    code = "the plain PyTorch model that the export started from"
    if library := report.environment.get("original"):
        code = f"the code of the library that the weights come from, {library}, with its own checkpoint"
    yield (
        "What is compared",
        f"The original is {code}. An exported model is the ONNX graph, or "
        "an engine built from it. Both get the same inputs, and the outputs are compared at every real position. What "
        "counts as exact is the original computed in float64.",
    )
    if report.is_quantized:
        yield "What few bits cost", _explain_loss(report)
    yield "Error and limit", _explain_limit(report)
    yield from ((capitalize(measure.label), measure.meaning) for measure in report.measures)
    yield (
        "Padding",
        "A masked check right-pads sequences to a common length and marks the padding. Unless the model's own "
        "definition counts the padding, each sequence must then get what the original gives for that sequence alone.",
    )
    yield (
        "Lengths",
        "Many models work in chunks. Lengths on both sides of a chunk boundary are checked because that is where "
        "exported models go wrong: a graph that is right at the length it was made with may be wrong one step later.",
    )
    if has_times:
        yield (
            "Speed",
            "Original and exported model run in turn on the same machine and inputs, so that whatever else the machine "
            "does falls on both. The median is given with the interval that holds it with 95% confidence; where two "
            "intervals overlap, nothing can be said of which is faster. A speed below 1 means that the exported model "
            "is slower. Masked checks cost what unmasked ones do and are not timed.",
        )
    if report.scores:
        measure = report.scores.measure
        change = "The same number for both models says that the export cost nothing on the model's own task."
        if report.is_quantized:
            change = "The change from the original is what the few bits cost on the model's own task."
        yield capitalize(measure.label), f"{measure.meaning} {change}"
    yield (
        "Skipped",
        "A check that did not run, with the reason. It counts neither for nor against; a report without a single "
        "passed check does not pass.",
    )


def _explain_loss(report: ValidationReport) -> str:
    facts = report.environment
    measured = facts.get("loss_when_quantized")
    when = f", and measured a loss of {measured} when it made the model" if measured else ""
    again = ""
    if accepted := facts.get("accepted_loss"):
        again = (
            " Here each backend reads the held-out data again, if the bundle has any, and fails where it is over "
            f"{accepted} worse at it than the original."
        )
    return (
        f"This model computes in {facts['precision']}, so its numbers are rounded and its answers differ from the "
        f"original's by design. `flash-export quantize` was told how much it may lose{when}.{again}"
    )


def _explain_limit(report: ValidationReport) -> str:
    facts = report.environment
    error = "The error is the largest difference of any output from the exact one"
    limit = facts.get("error_limit")
    if tolerance := facts.get("tolerance"):
        return f"{error}. The limit is the tolerance that was given with `--atol` and `--rtol`: {tolerance}."
    if report.is_quantized:
        limits = [f"{limit}"] if limit else []
        limits += [
            f"{measure.label} up to {facts[f'{measure.name}_limit']}"
            for measure in report.measures
            if f"{measure.name}_limit" in facts
        ]
        return (
            f"{error}, and rounding to few bits makes it large: it is that of the one that is furthest off. So the "
            f"limit of a single check is wide{': ' if limits else ''}{', and '.join(limits)}. It finds mistakes, such "
            "as a wrong scale or a missing part; what the model is worth, the score on held-out data says."
        )
    return (
        f"{error}. The original makes an error of its own when it runs in the precision of the graph, because numbers "
        "are rounded. An exported model that does the same sums in another order is off by about as much: one or two "
        "times. The limit is a fixed multiple of the original's own error"
        f"{f', here {limit}' if limit else ''}. An error above it means that the two models compute different things."
    )
