"""Frequencies of position embeddings that were rounded together with the weights.

``model.half()`` and ``model.bfloat16()`` round every tensor of a checkpoint. A weight stays as good as its precision; a
frequency is multiplied by the position, so that its error grows until the angle is wrong by whole turns. Frequencies
are no weights, they follow from a formula: where the stored ones are the formula's, rounded, they are computed again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

HALF_DTYPES = (torch.float16, torch.bfloat16)


def restore_frequencies(
    stored: Mapping[str, Tensor], formulas: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Replace rounded frequencies by those of the formula.

    They are recognised by value, because a rounded checkpoint may have been stored in fp32 again.

    Args:
        stored: Frequencies as a checkpoint has them, in any floating-point type.
        formulas: Those of the formula in fp32, with the same names and shapes.

    Returns:
        The frequencies in fp32, and a sentence about those that were restored, or are rounded and were not.
    """
    restored, recomputed, doubtful = {}, [], []
    for name, formula in formulas.items():
        values = stored[name].float()
        restored[name] = values
        if torch.equal(values, formula):
            continue
        if any(torch.equal(values, rounded) for rounded in _round_in_every_way(formula)):
            restored[name] = formula
            recomputed.append(name)
        elif any(torch.equal(values, values.to(dtype).float()) for dtype in HALF_DTYPES):
            doubtful.append(name)
    notes = []
    if recomputed:
        notes.append(f"frequencies, stored rounded to half precision, were recomputed: {', '.join(recomputed)}")
    if doubtful:
        notes.append(
            "warning: frequencies are rounded to half precision and not those of the formula, so that they are kept "
            f"and distant positions are inexact: {', '.join(doubtful)}"
        )
    return restored, tuple(notes)


def _round_in_every_way(values: Tensor) -> list[Tensor]:
    """Return the values rounded to each half precision, and to one after the other."""
    once = [values.to(dtype) for dtype in HALF_DTYPES]
    return [rounded.to(dtype).float() for rounded in once for dtype in HALF_DTYPES]
