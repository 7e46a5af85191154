"""Options shared by several parts of the tool: export, engine build, tolerance."""

from __future__ import annotations

from dataclasses import dataclass

from flash_export.errors import ConfigError

MIN_OPSET, MAX_OPSET, DEFAULT_OPSET = 18, 23, 20
DEFAULT_MAX_SEQ_LEN = 65536
DEFAULT_MAX_BATCH = 64


@dataclass(frozen=True)
class ExportOptions:
    """How a model is exported.

    Attributes:
        opset: ``ai.onnx`` opset of the graph, 18 to 23.
        max_seq_len: Longest sequence that the graph promises to handle.
        max_batch: Largest batch that the graph promises to handle.
        mask: Whether the graph takes ``attention_mask``; None: only where padding would change the answer, which
            is for non-causal models.
    """

    opset: int = DEFAULT_OPSET
    max_seq_len: int = DEFAULT_MAX_SEQ_LEN
    max_batch: int = DEFAULT_MAX_BATCH
    mask: bool | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not MIN_OPSET <= self.opset <= MAX_OPSET:
            raise ConfigError(f"opset={self.opset} is not supported; use {MIN_OPSET} to {MAX_OPSET}")
        for name in ("max_seq_len", "max_batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} is not usable; use a whole number of at least 1")


@dataclass(frozen=True)
class Tolerance:
    """Largest accepted difference: ``atol + rtol * scale``, scale being the largest expected magnitude.

    The default, 1e-4 of the output's scale, is what fp32 rounding in another order of summation stays below.
    """

    atol: float = 0.0
    rtol: float = 1e-4

    def __post_init__(self) -> None:
        """Check that something is tolerated, and nothing negative."""
        if not (self.atol >= 0 and self.rtol >= 0 and self.atol + self.rtol > 0):
            raise ConfigError(f"atol={self.atol}, rtol={self.rtol} is not usable; both at least 0 and one above")

    def compute_limit(self, scale: float) -> float:
        """Return the largest accepted absolute difference for outputs of this scale."""
        return self.atol + self.rtol * scale
