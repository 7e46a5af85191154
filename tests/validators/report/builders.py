"""Reports for the tests of their renderers: rows of every kind, made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from flash_export.models.token_model import describe_token_model
from flash_export.tasks.registry import get_task
from flash_export.validators.footprint import Footprint, ShapeCost
from flash_export.validators.latency import Percentiles
from flash_export.validators.results import HeldoutScores, Row, ValidationReport

MEASURES = get_task("tokens").measures
BITS = get_task("tokens").describe_score(describe_token_model(256, needs_mask=False, is_causal=True))
ENVIRONMENT: dict[str, str | int] = {
    "model_type": "flash",
    "chunk_size": 128,
    "precision": "fp32",
    "flash_export": "0.1.0",
    "python": "3.11",
    "torch": "2.13",
    "plan": "quick",
    "created": "2026-01-01T00:00:00+00:00",
}


def make_latency(p50: float) -> Percentiles:
    return Percentiles(p50, 1.5 * p50, 2 * p50, 0.95 * p50, 1.05 * p50, 20)


def make_passed(seq_len: int = 257, *, masked: bool = False, backend: str = "ort-cpu", **changes: Any) -> Row:
    """A row that passed: 2.5 times the eager model's own error, three times as fast; a masked one is not timed."""
    row = Row(
        backend,
        "forward",
        1,
        seq_len,
        masked,
        "passed",
        max_abs_error=2.5e-6,
        max_rel_error=1e-6,
        noise=4e-7,
        tolerance=1.6e-5,
        measures={"top1_agreement": 1.0, "kl_bits": 1e-9},
    )
    if not masked:
        row = replace(
            row,
            latency_ms=make_latency(2.0),
            eager_latency_ms=make_latency(6.0),
            first_latency_ms=9.0,
            speedup=3.0,
            units_per_s=seq_len / 2.0 * 1e3,
        )
    return replace(row, **changes)


def make_invariance(check: str, *, backend: str = "ort-cpu", reason: str | None = None) -> Row:
    """A check of a backend against itself; it failed if there is a reason."""
    return Row(
        backend,
        "forward",
        3,
        321,
        False,
        "failed" if reason else "passed",
        reason,
        check=check,
        max_abs_error=1.0 if reason else 0.0,
        max_rel_error=0.4 if reason else 0.0,
        tolerance=0.0 if check == "repeat" else 1.6e-5,
    )


def make_report(*rows: Row, bits: dict[str, float] | None = None, **changes: Any) -> ValidationReport:
    scores = None if bits is None else HeldoutScores(BITS, bits)
    return ValidationReport("bundle", ENVIRONMENT, rows, MEASURES, "tokens", scores, **changes)


FAILED = Row(
    "ort-cpu",
    "forward",
    3,
    300,
    True,
    "failed",
    "max abs error 0.5 exceeds it",
    max_abs_error=0.5,
    max_rel_error=0.1,
    noise=4e-7,
    tolerance=2.5e-4,
    measures={"top1_agreement": 0.61239, "kl_bits": 0.25},
)
CRASHED = Row("ort-cpu", "forward", 1, 301, False, "failed", "Fail: <b>bad</b> & worse")
SKIPPED = Row("trt:big", "forward", None, None, False, "skipped", "no CUDA device here")
# A check of what the graph declares runs nothing and so has no shape.
DECLARED = Row("onnx:other", "forward", None, None, False, "failed", "it has seq=8", check="symbolic-shape")
FOOTPRINT = Footprint(
    "ort-cpu",
    open_ms=85.0,
    session_bytes=24 << 20,
    shapes=(ShapeCost(256, 12.0, 9.0), ShapeCost(4096, 130.0, 124.0)),
    first_call_ms=12.0,
    shape_change_ms=6.0,
    peak_bytes=182 << 20,
    peak_seq_len=4096,
)
MIXED = make_report(make_passed(), make_passed(masked=True), make_passed(1024), FAILED, CRASHED, SKIPPED)
# Everything that a report can hold.
FULL = make_report(
    *MIXED.rows,
    make_passed(600, backend="trt:small", compiled_latency_ms=make_latency(4.0)),
    make_passed(600, inputs="recorded", backend="trt:small", latency_ms=None, eager_latency_ms=None, speedup=None),
    make_invariance("repeat"),
    make_invariance("padding", reason="masked tokens on the right must change nothing; it differs by 1"),
    make_invariance("repeat", backend="trt:small"),
    bits={"eager": 0.9823, "ort-cpu": 0.9823, "trt:small": 0.9824},
    diagnosis=("ort-cpu: it is right without padding and wrong with it",),
    footprints=(FOOTPRINT, Footprint("trt:small", "not measured: it took more than 600 s")),
)

# A quantized bundle that stays within its budget: on held-out text the predictions are nearly those of the model, on
# random tokens of two positions half of them are not.
QUANTIZED_ENVIRONMENT: dict[str, str | int] = {
    **ENVIRONMENT,
    "precision": "int8",
    "error_limit": "50% of the largest output",
    "kl_bits_limit": "0.2",
    "accepted_loss": "0.50%",
    "loss_when_quantized": "0.31% on held-out text",
}


def make_few_bits(seq_len: int, error: float, agreement: float, kl_bits: float, **changes: Any) -> Row:
    """A row of a quantized bundle that passed; the largest logit is 10, and half of that is accepted."""
    return make_passed(
        seq_len,
        max_abs_error=10 * error,
        max_rel_error=error,
        tolerance=5.0,
        measures={"top1_agreement": agreement, "kl_bits": kl_bits},
        **changes,
    )


QUANTIZED = ValidationReport(
    "bundle",
    QUANTIZED_ENVIRONMENT,
    (
        make_few_bits(2, 0.25, 0.5, 0.07),
        make_few_bits(389, 0.3, 0.9, 0.03, masked=True),
        make_few_bits(515, 0.2, 0.976, 0.008, inputs="recorded"),
        make_invariance("repeat"),
        replace(SKIPPED, backend="ort-cuda"),
        replace(SKIPPED, backend="stream:ort-cuda"),
    ),
    MEASURES,
    "tokens",
    HeldoutScores(BITS, {"eager": 0.9823, "ort-cpu": 0.9856}),
)
