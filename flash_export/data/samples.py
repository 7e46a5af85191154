"""Samples: pieces of data that models are judged on, and what should be predicted from them where that is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Bool

    from flash_export.data.batch import Batch


@dataclass(frozen=True)
class Sample:
    """One row of data.

    Attributes:
        batch: A batch of this row, without padding.
        compared: Bool ``(1, seq)``: positions whose predictions count; None: all.
        target: What those positions should predict: token ids ``(n,)`` of the compared positions in order, or for other
            tasks an array as the first output is, with a batch of one; None where it is not known.
    """

    batch: Batch
    compared: Bool[np.ndarray, "1 seq"] | None = None
    target: np.ndarray | None = None

    @property
    def counted(self) -> Bool[np.ndarray, "1 seq"]:
        """Which positions count."""
        return self.batch.valid if self.compared is None else self.compared
