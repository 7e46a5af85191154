"""What the failed rows of a backend have in common: the mistakes that exports of chunked attention are made with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_export.validators.results import ACCURACY

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from flash_export.validators.results import Row

_SHOWN_LENGTHS = 6


def diagnose_rows(rows: Iterable[Row], chunk_size: int) -> tuple[str, ...]:
    """Return a sentence for each backend whose failures follow a pattern.

    Args:
        rows: The rows of a report.
        chunk_size: Tokens a chunk.
    """
    by_backend: dict[str, list[Row]] = {}
    for row in rows:
        if row.check == ACCURACY and row.status != "skipped" and row.seq_len is not None:
            by_backend.setdefault(row.backend, []).append(row)
    return tuple(
        f"{backend}: {sentence}"
        for backend, own in by_backend.items()
        if (sentence := _diagnose(own, chunk_size)) is not None
    )


def _diagnose(rows: Sequence[Row], chunk_size: int) -> str | None:
    failed = [row for row in rows if row.status == "failed"]
    passed = [row for row in rows if row.status == "passed"]
    if not failed:
        return None
    if not passed:
        return (
            "it is wrong at every length, so that not lengths but weights or maths are at fault; "
            "'flash-export bisect' finds where"
        )
    if all(row.masked for row in failed) and any(not row.masked for row in passed):
        return "it is right without padding and wrong with it: the mask is ignored, or what it hides leaks"
    if min(row.batch or 1 for row in failed) > max(row.batch or 1 for row in passed):
        return (
            f"it is right for one row and wrong for a batch of {failed[0].batch}: rows are mixed, or the batch is fixed"
        )
    right = {row.seq_len or 0 for row in passed} - {row.seq_len or 0 for row in failed}
    wrong = {row.seq_len or 0 for row in failed}
    if explanation := _explain_lengths(right, wrong, chunk_size):
        return f"it fails at the lengths {_list(wrong)} and is right at {_list(right)}: {explanation}"
    return None


def _explain_lengths(right: Collection[int], wrong: Collection[int], chunk_size: int) -> str | None:
    """Say what a set of failing lengths looks like, the most special pattern first."""
    if not right:
        return None
    if len(right) == 1:
        return "the length that it was traced with is baked into the graph"
    if all(length % chunk_size == 0 for length in right) and all(length % chunk_size for length in wrong):
        return (
            f"only multiples of the chunk of {chunk_size} are right: it was traced at one of them, where nothing needs "
            "padding, and has no padding in it; trace it at another length, or use 'flash-export onnx'"
        )
    if all(length % chunk_size == 0 for length in wrong) and all(length % chunk_size for length in right):
        return f"multiples of the chunk of {chunk_size} are wrong, so that it pads where nothing needs padding"
    if max(right) <= chunk_size < min(wrong):
        return f"only the first chunk of {chunk_size} is right, so that later chunks are not, or not connected"
    if max(right) < min(wrong):
        return f"it is right up to {max(right)} and wrong from {min(wrong)} on: something is limited to a length"
    if max(wrong) < min(right):
        return f"it is wrong up to {max(wrong)} and right from {min(right)} on: short inputs are a special case to it"
    return None


def _list(lengths: Collection[int]) -> str:
    shown = ", ".join(map(str, sorted(lengths)[:_SHOWN_LENGTHS]))
    hidden = len(lengths) - _SHOWN_LENGTHS
    return f"{shown} and {hidden} more" if hidden > 0 else shown
