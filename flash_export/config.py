"""Options shared by several parts of the tool: export, quantization, engine build."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flash_export.errors import ConfigError
from flash_export.limits import QUANTIZATION_BUDGETS, RETIRED_SCHEMES, refuse_retired
from flash_export.suggest import list_known

if TYPE_CHECKING:
    from pathlib import Path

# Of a checkpoint in our format, and of a bundle.
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
MIN_OPSET, MAX_OPSET, DEFAULT_OPSET = 18, 23, 20
ATTENTION_OPSET = 23  # which brought ``Attention``
DEFAULT_MAX_SEQ_LEN = 65536
DEFAULT_MAX_SECONDS = 30  # of a waveform
DEFAULT_MAX_BATCH = 64
PRECISIONS = ("fp32", "fp16", "bf16")
REFERENCE, ORIGINAL = "reference", "original"  # what a bundle is compared with: our model, or the library's
ISLAND_MODES = ("auto", "minimal", "all")
GRAPHS = FORWARD, PREFILL, EXTEND, DECODE = "forward", "prefill", "extend", "decode"
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
        max_seq_len: Longest sequence that the graph promises to handle; None: 65,536, of a waveform 30 seconds, or the
            model's longest.
        max_batch: Largest batch that the graph promises to handle.
        mask: Whether the graph takes ``attention_mask``; None: only where padding would change the answer, which
            is for non-causal models.
        batch: The one batch that the graphs take; None: any up to ``max_batch``.
        graphs: ``forward``, and ``prefill``, ``extend`` and ``decode`` for causal models; none: all that the model can
            have.
        precision: ``fp32``, ``fp16`` or ``bf16``.
        islands: What stays fp32 in half precision: ``minimal``: what has to in every model; ``auto``: also what would
            leave the range of fp16 within ``max_seq_len``, by measurement; ``all``: everything that may grow.
        waveform: Whether a model that takes features of a waveform gets what computes them, and the way back, into its
            graph.
    """

    opset: int = DEFAULT_OPSET
    max_seq_len: int | None = None
    max_batch: int = DEFAULT_MAX_BATCH
    mask: bool | None = None
    batch: int | None = None
    graphs: tuple[str, ...] = ()
    precision: str = "fp32"
    islands: str = "auto"
    waveform: bool = False

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


SCHEMES = tuple(QUANTIZATION_BUDGETS)
READABLE_SCHEMES = (*SCHEMES, *RETIRED_SCHEMES)  # that a bundle may be in
# onnxruntime multiplies whole numbers whatever their scales; the others fuse what they know the scales of beforehand.
SCHEMES_BY_RUNTIME = {"ort-cpu": "int8-token", "openvino": "int8", "tensorrt": "int8"}
DEFAULT_RUNTIME = "ort-cpu"
DEFAULT_SCHEME = SCHEMES_BY_RUNTIME[DEFAULT_RUNTIME]
DEFAULT_BLOCK_SIZE = 32
MIN_BLOCK_SIZE = 16  # the least that onnxruntime has a kernel for


@dataclass(frozen=True)
class QuantizeOptions:
    """How a bundle is quantized.

    Attributes:
        scheme: ``int8-token``: weights and activations, a scale for each token, measured in every run; ``int8``: the
            same with scales known beforehand; ``int4``: weights alone, in blocks; ``fp8``: float8_e4m3fn.
            ``SCHEMES_BY_RUNTIME`` says which is for what.
        data: A file to calibrate and judge with, see docs/data.md; None: the bundle's held-out data.
        keep: Patterns such as ``layers.0.*`` of what stays fp32 in any case.
        budget: Largest accepted loss, as a fraction of the bits that the model needs for a token; None: 0.005, and
            0.02 for int4.
        block_size: int4 alone: inputs that share a scale, a power of two from 16 on.
        smoothing: int8 alone: whether outliers among the channels of an activation may be moved into the weights.
        threads: Threads of one operator; None: what onnxruntime chooses.
        precision: What is computed in that is not quantized: ``fp32``, or, of int8, ``bf16``.
    """

    scheme: str = DEFAULT_SCHEME
    data: Path | None = None
    keep: tuple[str, ...] = ()
    budget: float | None = None
    block_size: int = DEFAULT_BLOCK_SIZE
    smoothing: bool = True
    threads: int | None = None
    precision: str = "fp32"

    def __post_init__(self) -> None:
        """Check what does not depend on the bundle."""
        refuse_retired(self.scheme)
        if self.scheme not in SCHEMES:
            raise ConfigError(f"scheme={self.scheme!r} is unknown; use one of {list_known(self.scheme, SCHEMES)}")
        if self.budget is not None and not 0 < self.budget < 1:
            raise ConfigError(f"budget={self.budget} is not usable; use a fraction between 0 and 1, such as 0.005")
        if self.block_size < MIN_BLOCK_SIZE or self.block_size & (self.block_size - 1):
            raise ConfigError(
                f"block_size={self.block_size} is not usable; use a power of two from {MIN_BLOCK_SIZE} on"
            )
        if self.block_size != DEFAULT_BLOCK_SIZE and self.scheme != "int4":
            raise ConfigError(f"block_size={self.block_size} is for int4, {self.scheme} has no blocks; leave it out")
        if self.precision not in (known := ("fp32", "bf16")):
            raise ConfigError(
                f"precision={self.precision!r} is unknown; use one of {list_known(self.precision, known)}"
            )
        if self.precision != "fp32" and self.scheme != "int8":
            raise ConfigError(
                f"precision={self.precision} is for int8, which runtimes with {self.precision} have, not for "
                f"{self.scheme}; use --scheme int8, which --for openvino chooses too"
            )
        check_count("threads", self.threads, MAX_THREADS)

    @property
    def accepted_loss(self) -> float:
        """The budget, or what stands for it."""
        return QUANTIZATION_BUDGETS[self.scheme].score_change if self.budget is None else self.budget


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


DEFAULT_PROFILE_BATCH = 8
MAX_PROFILES = 16
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
        profiles: Optimisation profiles such as ``1x1:1x512:4x4096``; none: derived from the graph's ranges, and from
            how often each length is asked for, if that is known.
        length_histogram: A file that says so, see docs/tensorrt.md.
        length_range: Or a range such as ``1:512``, all lengths in it being as frequent as each other.
        num_profiles: Profiles to cut these lengths into; None: as many as are worth it.
        change_cost: What a change of profile between two requests costs, as the length of a request that takes as long.
        max_batch: Largest batch of derived profiles.
        compute_capabilities: TensorRT-RTX only: targets such as ``8.9``; none: every one it offers from 8.0 on.
        workspace_bytes: Most scratch memory a layer may use; None: TensorRT's own limit, the whole device.
        tf32: Whether fp32 products may be rounded to TensorFloat-32, 10 bits of mantissa. TensorRT's default is
            yes; ours is no, as in PyTorch, because such an engine no longer agrees with the model to fp32 accuracy.
        overwrite: Whether an engine of the same name is replaced.
        cache: Whether an engine that was built before is taken from the user's cache, and a new one kept there.
    """

    graph: str = "forward"
    name: str | None = None
    flavour: str = AUTO_FLAVOUR
    profiles: tuple[str, ...] = ()
    compute_capabilities: tuple[str, ...] = ()
    workspace_bytes: int | None = None
    tf32: bool = False
    overwrite: bool = False
    length_histogram: Path | None = None
    length_range: str | None = None
    num_profiles: int | None = None
    change_cost: float = 0.0
    max_batch: int = DEFAULT_PROFILE_BATCH
    cache: bool = True

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
        check_count("num_profiles", self.num_profiles, MAX_PROFILES)
        check_count("max_batch", self.max_batch, MAX_BATCH)
        if not 0 <= self.change_cost < math.inf:
            raise ConfigError(f"change_cost={self.change_cost} is no cost; use a length from 0 on")
        sources = [name for name in ("profiles", "length_histogram", "length_range") if getattr(self, name)]
        if len(sources) > 1:
            raise ConfigError(f"{' and '.join(sources)} all say what profiles are to be; give one of them")
        if (self.num_profiles is not None or self.change_cost) and sources not in (
            ["length_histogram"],
            ["length_range"],
        ):
            raise ConfigError(
                "num_profiles and change_cost cut lengths into profiles; say which lengths, by length_histogram or "
                "length_range"
            )

    @property
    def engine_name(self) -> str:
        """Name of the engine files, without suffix."""
        return self.name or self.graph
