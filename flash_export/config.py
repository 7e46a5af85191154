"""Options shared by several parts of the tool: export, engine build, tolerance."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flash_export.errors import ConfigError
from flash_export.suggest import list_known

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MIN_OPSET, MAX_OPSET, DEFAULT_OPSET = 18, 23, 20
DEFAULT_MAX_SEQ_LEN = 65536
DEFAULT_MAX_BATCH = 64
PRECISIONS = ("fp32", "fp16", "bf16")
ISLAND_MODES = ("auto", "minimal", "all")
GRAPHS = FORWARD, PREFILL, DECODE = "forward", "prefill", "decode"
# Positions are fp32, which tells no two whole numbers apart beyond.
MAX_SEQ_LEN = 1 << 24
MAX_BATCH = (1 << 31) - 1
MAX_THREADS = 1024
MAX_WINDOWS = 65536
MAX_WORKSPACE_BYTES = 1 << 48


def check_count(name: str, value: int | None, most: int) -> None:
    """Check that an option is a whole number from 1 to ``most``, or was not given.

    Raises:
        ConfigError: It is below or above.
    """
    if value is not None and value < 1:
        raise ConfigError(f"{name}={value} is not usable; use at least 1")
    if value is not None and value > most:
        raise ConfigError(f"{name}={value} is not usable; use at most {most}")


@dataclass(frozen=True)
class ExportOptions:
    """How a model is exported.

    Attributes:
        opset: ``ai.onnx`` opset of the graph, 18 to 23.
        max_seq_len: Longest sequence that the graph promises to handle.
        max_batch: Largest batch that the graph promises to handle.
        mask: Whether the graph takes ``attention_mask``; None: only where padding would change the answer, which
            is for non-causal models.
        batch: The one batch that the graphs take; None: any up to ``max_batch``.
        graphs: ``forward``, and ``prefill`` and ``decode`` for causal models; none: all that the model can have.
        precision: ``fp32``, ``fp16`` or ``bf16``.
        islands: What stays fp32 in half precision: ``minimal``: what has to in every model; ``auto``: also what would
            leave the range of fp16 within ``max_seq_len``, by measurement; ``all``: everything that may grow.
    """

    opset: int = DEFAULT_OPSET
    max_seq_len: int = DEFAULT_MAX_SEQ_LEN
    max_batch: int = DEFAULT_MAX_BATCH
    mask: bool | None = None
    batch: int | None = None
    graphs: tuple[str, ...] = ()
    precision: str = "fp32"
    islands: str = "auto"

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not MIN_OPSET <= self.opset <= MAX_OPSET:
            raise ConfigError(f"opset={self.opset} is not supported; use {MIN_OPSET} to {MAX_OPSET}")
        for name, known in (("precision", PRECISIONS), ("islands", ISLAND_MODES)):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(f"{name}={value!r} is unknown; use one of {list_known(value, known)}")
        if self.precision == "fp32" and self.islands != "auto":
            raise ConfigError(f"islands={self.islands} needs half precision; add --precision fp16 or bf16")
        for name, most in (("max_seq_len", MAX_SEQ_LEN), ("max_batch", MAX_BATCH), ("batch", MAX_BATCH)):
            check_count(name, getattr(self, name), most)
        if unknown := sorted(set(self.graphs) - set(GRAPHS)):
            raise ConfigError(f"graphs has {', '.join(unknown)}; use {list_known(unknown[0], GRAPHS)}")
        if self.graphs and GRAPHS[0] not in self.graphs:
            raise ConfigError(f"graphs={','.join(self.graphs)} lacks {GRAPHS[0]}, which validation needs; add it")


DEFAULT_SCHEME = "int8"
MIN_BLOCK_SIZE = 16  # the least that onnxruntime has a kernel for


@dataclass(frozen=True)
class QuantizeOptions:
    """How a bundle is quantized.

    Attributes:
        scheme: ``int8``: weights and activations, the scales of the latter known beforehand; ``int8-dynamic``: scales
            of the activations measured in every run; ``int4``: weights alone, in blocks; ``fp8``: float8_e4m3fn.
        data: A file to calibrate with, see docs/data.md; None: the bundle's held-out data.
        keep: Patterns such as ``layers.0.*`` of what stays fp32 in any case.
        budget: Largest accepted loss, as a fraction of the bits that the model needs for a token; None: 0.005, and
            0.02 for int4.
        block_size: int4 alone: inputs that share a scale, a power of two from 16 on.
        smoothing: Whether outliers among the channels of an activation may be moved into the weights.
        threads: Threads of one operator; None: what onnxruntime chooses.
    """

    scheme: str = DEFAULT_SCHEME
    data: Path | None = None
    keep: tuple[str, ...] = ()
    budget: float | None = None
    block_size: int = 32
    smoothing: bool = True
    threads: int | None = None

    def __post_init__(self) -> None:
        """Check what does not depend on the bundle."""
        if self.scheme not in SCHEMES:
            raise ConfigError(f"scheme={self.scheme!r} is unknown; use one of {list_known(self.scheme, SCHEMES)}")
        if self.budget is not None and not 0 < self.budget < 1:
            raise ConfigError(f"budget={self.budget} is not usable; use a fraction between 0 and 1, such as 0.005")
        if self.block_size < MIN_BLOCK_SIZE or self.block_size & (self.block_size - 1):
            raise ConfigError(
                f"block_size={self.block_size} is not usable; use a power of two from {MIN_BLOCK_SIZE} on"
            )
        check_count("threads", self.threads, MAX_THREADS)

    @property
    def accepted_loss(self) -> float:
        """The budget, or what stands for it."""
        return QUANTIZATION_BUDGETS[self.scheme].score_change if self.budget is None else self.budget


@dataclass(frozen=True)
class Tolerance:
    """Largest accepted difference, as a user states it: ``atol + rtol * scale``.

    ``scale`` is the largest expected magnitude.
    """

    atol: float = 0.0
    rtol: float = 1e-4
    noise_ratio: None = None
    score_change: None = None

    @property
    def measures(self) -> Mapping[str, float]:
        """None: the difference alone decides."""
        return {}

    def __post_init__(self) -> None:
        """Check that something is tolerated, and nothing negative."""
        if not (self.atol >= 0 and self.rtol >= 0 and self.atol + self.rtol > 0):
            raise ConfigError(f"atol={self.atol}, rtol={self.rtol} is not usable; both at least 0 and one above")

    def compute_limit(self, scale: float, noise: float) -> float:
        """Return the largest accepted absolute difference for outputs of this scale; ``noise`` does not matter."""
        return self.atol + self.rtol * scale

    def compute_own_limit(self, scale: float, noise: float) -> float:
        """Return how much two of a backend's own runs that compute the same may differ."""
        return self.compute_limit(scale, noise)

    def describe(self) -> dict[str, str]:
        """Say it by name, for reports."""
        return {"tolerance": f"{self.atol:g} and {self.rtol:g} of the largest output"}


@dataclass(frozen=True)
class ErrorBudget:
    """How much further from exact arithmetic a backend may be than the eager model in the same precision is.

    The eager model's own error is the noise floor: what the precision costs, at this length, on these inputs. Where it
    happens to be very small, as at a length of 1, ``floor`` stands in for it.

    Attributes:
        noise_ratio: Largest accepted error as a multiple of the eager model's.
        floor: Smallest noise that counts, as a fraction of the output's scale.
        score_change: Largest accepted worsening of the score on held-out data, as a fraction.
    """

    noise_ratio: float
    floor: float
    score_change: float | None = None

    @property
    def measures(self) -> Mapping[str, float]:
        """None: the difference alone decides."""
        return {}

    def compute_limit(self, scale: float, noise: float) -> float:
        """Return the largest accepted absolute error.

        Args:
            scale: Largest expected magnitude.
            noise: Largest absolute error of the eager model; NaN if it has none, because it overflowed.
        """
        least = self.floor * scale
        return self.noise_ratio * (noise if noise > least else least)

    def compute_own_limit(self, scale: float, noise: float) -> float:
        """Return how much two of a backend's own runs that compute the same may differ."""
        return self.compute_limit(scale, noise)

    def describe(self) -> dict[str, str]:
        """Say it by name, for reports."""
        limit = {"error_limit": f"{self.noise_ratio:g} times the eager model's own error"}
        return limit if self.score_change is None else {**limit, "accepted_loss": f"{self.score_change:.2%}"}


@dataclass(frozen=True)
class QuantizationBudget:
    """How far a quantized graph may be from the model: there is no eager model in its precision to be held against.

    Attributes:
        error: Largest accepted error, as a fraction of the output's scale.
        own_error: How much two of its own runs that compute the same may differ, as such a fraction.
        measures: Worst accepted value of measures of a task, at a shape: bits of divergence for predictions.
        score_change: Largest accepted worsening of the score on held-out data, as a fraction; what a bundle may lose
            when it is quantized, unless a budget is given.
    """

    error: float
    own_error: float
    measures: Mapping[str, float]
    score_change: float
    noise_ratio: None = None

    def compute_limit(self, scale: float, noise: float) -> float:
        """Return the largest accepted absolute error; ``noise`` does not matter."""
        return self.error * scale

    def compute_own_limit(self, scale: float, noise: float) -> float:
        """Return how much two runs may differ; ``noise`` does not matter."""
        return self.own_error * scale

    def describe(self) -> dict[str, str]:
        """Say it by name, for reports."""
        return {
            "error_limit": f"{self.error:.0%} of the largest output",
            **{f"{name}_limit": f"{value:g}" for name, value in self.measures.items()},
            "accepted_loss": f"{self.score_change:.2%}",
        }


# docs/validation.md says how these were chosen. The floor is four units in the last place of the precision.
ERROR_BUDGETS = {
    "fp32": ErrorBudget(noise_ratio=8.0, floor=2.0**-22, score_change=0.0005),
    "fp16": ErrorBudget(noise_ratio=4.0, floor=2.0**-9, score_change=0.001),
    "bf16": ErrorBudget(noise_ratio=4.0, floor=2.0**-6, score_change=0.005),
}
# By scheme: all that is known of it to those who must not import exporters.
QUANTIZATION_BUDGETS = {
    "int8": QuantizationBudget(error=0.5, own_error=0.02, measures={"kl_bits": 0.2}, score_change=0.005),
    # The scale of an activation is that of all tokens of all rows, later ones too.
    "int8-dynamic": QuantizationBudget(error=0.5, own_error=0.25, measures={"kl_bits": 0.2}, score_change=0.005),
    "int4": QuantizationBudget(error=0.5, own_error=0.02, measures={"kl_bits": 0.2}, score_change=0.02),
    "fp8": QuantizationBudget(error=0.25, own_error=0.02, measures={"kl_bits": 0.1}, score_change=0.005),
}
SCHEMES = tuple(QUANTIZATION_BUDGETS)


@dataclass(frozen=True)
class Flavour:
    """One of the two packages that share the TensorRT interface.

    Attributes:
        name: What the user calls it.
        title: What messages call it.
        module: Python module it is imported as.
        extra: Extra of this package that installs it.
    """

    name: str
    title: str
    module: str
    extra: str


TENSORRT = Flavour("tensorrt", "TensorRT", "tensorrt", "gpu")
TENSORRT_RTX = Flavour("tensorrt-rtx", "TensorRT-RTX", "tensorrt_rtx", "rtx")
FLAVOURS = {flavour.name: flavour for flavour in (TENSORRT, TENSORRT_RTX)}
AUTO_FLAVOUR = "auto"


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built.

    Attributes:
        graph: Graph of the bundle to build.
        name: Name of the engine; None: the name of the graph.
        flavour: ``auto``, ``tensorrt`` or ``tensorrt-rtx``.
        profiles: Optimisation profiles such as ``1x1:1x512:4x4096``; none: one derived from the graph's ranges.
        compute_capabilities: TensorRT-RTX only: targets such as ``8.9``; none: every one it offers from 8.0 on.
        workspace_bytes: Most scratch memory a layer may use; None: TensorRT's own limit, the whole device.
        tf32: Whether fp32 products may be rounded to TensorFloat-32, 10 bits of mantissa. TensorRT's default is
            yes; ours is no, as in PyTorch, because such an engine no longer agrees with the model to fp32 accuracy.
        overwrite: Whether an engine of the same name is replaced.
    """

    graph: str = "forward"
    name: str | None = None
    flavour: str = AUTO_FLAVOUR
    profiles: tuple[str, ...] = ()
    compute_capabilities: tuple[str, ...] = ()
    workspace_bytes: int | None = None
    tf32: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked without a graph and without TensorRT."""
        if self.flavour not in (AUTO_FLAVOUR, *FLAVOURS):
            known = list_known(self.flavour, (AUTO_FLAVOUR, *FLAVOURS))
            raise ConfigError(f"flavour={self.flavour!r} is unknown; use one of {known}")
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise ConfigError(f"name={self.name!r} is not usable as a file name; use letters, digits, '.', '_' and '-'")
        if self.compute_capabilities and self.flavour == TENSORRT.name:
            raise ConfigError(
                "compute_capabilities need flavour tensorrt-rtx, because tensorrt builds for the GPU at hand; "
                "leave one of them out"
            )
        check_count("workspace_bytes", self.workspace_bytes, MAX_WORKSPACE_BYTES)

    @property
    def engine_name(self) -> str:
        """Name of the engine files, without suffix."""
        return self.name or self.graph
