"""Measuring one candidate at every length, a row for each, whatever happens."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from flash_export.errors import FlashExportError, describe_reason
from gpu.models import make_ids, place_flash
from gpu.rows import Row

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpu.candidates import Candidate, Place, Prepare
    from gpu.device import Budget
    from gpu.rows import RowFile

# What a row may take at least; with less time left none is begun.
SECONDS_A_ROW = 3.0


def measure_candidate(candidate: Candidate, place: Place, file: RowFile, budget: Budget) -> None:
    """Measure a candidate at all lengths that are not in the file yet, as long as there is time.

    What cannot be opened, or fails, is a row with the reason; lengths beyond one that ran out of memory are not tried.
    """
    lengths = list_lengths(candidate, place)
    missing = [n for n in lengths if not file.has(candidate.kind, candidate.name, n)]
    if not missing:
        return
    try:
        with torch.inference_mode(), candidate.open(place) as prepare:
            for index, seq_len in enumerate(missing):
                if budget.left_s < SECONDS_A_ROW:
                    return
                row = _measure(candidate, place, prepare, seq_len, with_error=seq_len == lengths[0])
                file.add(row)
                if row.latency_ms is None:
                    for longer in missing[index + 1 :]:
                        file.add(replace(row, seq_len=longer, reason=f"not tried: {seq_len} failed ({row.reason})"))
                    return
    except Exception as error:  # of any library: it is one candidate of many
        reason = _describe(error)
        for seq_len in missing:
            if not file.has(candidate.kind, candidate.name, seq_len):
                file.add(Row(candidate.kind, candidate.name, seq_len, reason=reason))


def list_lengths(candidate: Candidate, place: Place) -> tuple[int, ...]:
    """Return the lengths of a candidate, the shortest first."""
    return place.sizes.contexts if candidate.kind == "decode" else place.sizes.seq_lens


def _measure(candidate: Candidate, place: Place, prepare: Prepare, seq_len: int, *, with_error: bool) -> Row:
    row = Row(candidate.kind, candidate.name, seq_len)
    try:
        run = prepare(seq_len)
        timing = place.device.time(run, place.sizes)
        difference = _compare(place, run, seq_len) if with_error and candidate.is_flash else None
    except Exception as error:
        return replace(row, reason=_describe(error))
    finally:
        if place.device.is_cuda:
            torch.cuda.empty_cache()
    runs = timing.runs
    return replace(
        row,
        latency_ms=runs.p50,
        low_ms=runs.p50_low,
        high_ms=runs.p50_high,
        first_ms=timing.first_ms,
        runs=runs.runs,
        error=difference,
        peak_mib=timing.peak_mib,
        clock_mhz=place.device.read_clock(),
    )


def _compare(place: Place, run: Callable[[], Any], seq_len: int) -> float:
    """Return the largest difference from the eager model in fp32, as a fraction of its largest output."""
    found = run()
    place.device.wait()
    expected = place_flash(place.sizes, "fp32", place.device)(make_ids(place.sizes, seq_len, place.device))
    return float((found.float() - expected).abs().max() / expected.abs().max())


def _describe(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    reason = describe_reason(error)
    return reason if isinstance(error, FlashExportError) else f"{type(error).__name__}: {reason}"
