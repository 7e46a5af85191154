"""What the manifests of a bundle and of an engine say, as frozen dataclasses with a JSON form.

What holds for every manifest is checked when one is made, so that no reader of its fields has to.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field

from flash_export.config import FORWARD, PRECISIONS, READABLE_SCHEMES
from flash_export.interface import BATCH, MAX_SIZE, PAST, SEQ, Interface, Mask, TensorSpec
from flash_export.models.import_record import ImportRecord
from flash_export.typed_json import show

FORMAT_VERSION = 3
OLD_FORMAT_VERSIONS = (1, 2)  # of which the weights can be exported again
HALF_PRECISIONS = ("fp16", "bf16")
PROVENANCE = ("source", "format", "sha256")
# Names of what a graph carries from run to run: as its input, and as its output.
STATE_PREFIX, NEW_STATE_PREFIX = "state.", "new_state."
# Of what a graph says of itself.
METADATA_PREFIX = "flash_export."


@dataclass(frozen=True)
class AxisRange:
    """Inclusive range of a symbolic axis."""

    min: int
    max: int

    def __post_init__(self) -> None:
        """Check that there is a size in it."""
        if not 1 <= self.min <= self.max <= MAX_SIZE:
            raise ValueError(f"{self.min} to {self.max} is no range of sizes, wanted 1 to {MAX_SIZE} in rising order")

    def __contains__(self, value: int) -> bool:
        """Tell whether a size is allowed."""
        return self.min <= value <= self.max


@dataclass(frozen=True)
class GraphSpec:
    """One ONNX file of a bundle: its contract with whoever runs it.

    Attributes:
        file: Its name.
        opset: Its ``ai.onnx`` opset.
        precision: What it computes in, or the scheme that it is quantized by.
        inputs: What it takes, in order.
        outputs: What it returns, in order.
        axes: Ranges of the symbolic axes of its inputs, by name.
        fused_attention: Whether attention is the one operator that opset 23 brought for it, and not written out.
        unquantized: What a graph in a scheme computes in what is not quantized.
    """

    file: str
    opset: int
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    axes: dict[str, AxisRange]
    fused_attention: bool = False
    unquantized: str = "fp32"

    def __post_init__(self) -> None:
        """Check that its parts fit each other."""
        if self.unquantized not in PRECISIONS:
            raise ValueError(f"unquantized is {show(self.unquantized)}, wanted {', '.join(PRECISIONS)}")
        if self.precision not in (known := (*PRECISIONS, *READABLE_SCHEMES)):
            raise ValueError(f"precision is {show(self.precision)}, wanted {', '.join(known)}")
        for kind, specs in (("inputs", self.inputs), ("outputs", self.outputs)):
            if not specs:
                raise ValueError(f"{kind} is empty, wanted one at least")
            if len({spec.name for spec in specs}) < len(specs):
                raise ValueError(f"{kind} has a name twice")
        named = {size for spec in self.inputs for size in spec.shape if isinstance(size, str)}
        if unknown := sorted(named - self.axes.keys()):
            raise ValueError(f"axis {show(unknown[0])} has no range")
        for spec in self.state_inputs:
            if any(isinstance(size, str) and size != PAST for size in spec.shape[1:]):
                raise ValueError(f"{spec.name} has an axis of no fixed size beside {BATCH} and {PAST}")

    @property
    def is_half(self) -> bool:
        """Whether the graph computes in half precision what is not quantized; on a CPU, its rounding is spelled out."""
        return self.arithmetic in HALF_PRECISIONS

    @property
    def arithmetic(self) -> str:
        """What it computes in what is not quantized."""
        return self.precision if self.precision in PRECISIONS else self.unquantized

    @property
    def label(self) -> str:
        """What it computes in, in words."""
        return self.precision if self.unquantized == "fp32" else f"{self.precision}, the rest {self.unquantized}"

    @property
    def state_inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs that are a state, which the graph returns as it is after the run."""
        return tuple(spec for spec in self.inputs if spec.name.startswith(STATE_PREFIX))

    @property
    def has_mask(self) -> bool:
        """Whether the graph takes a mask that says what is padding."""
        return any(isinstance(spec.content, Mask) for spec in self.inputs)


@dataclass(frozen=True)
class ModelFacts:
    """What a model is, in numbers.

    Attributes:
        model_type: Family.
        num_parameters: Trained parameters of the reference model.
        num_blocks: Layers.
        flops_per_token: Floating-point operations of the matrix products, a token, by sequence length.
        state_bytes: Size of the state that prefill and decode carry for one row, as far as it does not grow; 0 without
            these graphs.
        state_bytes_per_token: What each token of a row adds to it; 0 for a state of constant size.
    """

    model_type: str
    num_parameters: int
    num_blocks: int
    flops_per_token: dict[str, int]
    state_bytes: int = 0
    state_bytes_per_token: int = 0

    def count_state_bytes(self, seq_len: int) -> int:
        """Return the size of the state of a row of so many tokens, without room for more."""
        return self.state_bytes + seq_len * self.state_bytes_per_token


@dataclass(frozen=True)
class Island:
    """A value of a half-precision graph that is fp32.

    Attributes:
        name: The value, such as ``layers.3.kv``.
        reason: Why, with the measured figures.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Horizon:
    """Up to which length an fp16 graph holds its values.

    Attributes:
        quantity: The value that would be the first to leave the range.
        seq_len: Length at which it reaches a quarter of fp16's largest number; the rest is for text not measured.
        interval: 95% interval of that length, by the fitted growth alone; None stands for beyond 1e9.
    """

    quantity: str
    seq_len: int
    interval: tuple[int | None, ...]

    def __post_init__(self) -> None:
        """Check that the interval has two ends."""
        if len(self.interval) != 2:
            raise ValueError(f"interval has {len(self.interval)} ends, wanted 2")


@dataclass(frozen=True)
class PrecisionFacts:
    """How a half-precision bundle was kept in range.

    Attributes:
        precision: ``fp16`` or ``bf16``.
        mode: What was asked for: ``auto``, ``minimal`` or ``all``.
        islands: Values in fp32 beyond those that always are.
        horizon: Of fp16; None where nothing grows. bf16 has the range of fp32.
        data: What was measured, such as ``held-out text`` or ``random tokens``; None for bf16.
        seq_lens: Measured lengths.
    """

    precision: str
    mode: str
    islands: tuple[Island, ...]
    horizon: Horizon | None
    data: str | None
    seq_lens: tuple[int, ...]


@dataclass(frozen=True)
class Manifest:
    """``manifest.json`` of a bundle.

    Attributes:
        versions: Versions of Python and of the packages that made the bundle.
        interface: What the model takes and gives.
        graphs: Graphs by name; ``forward`` is always there.
        checkpoint: Where the weights came from: source name, format and sha256.
        files: sha256 of every other file of the export, by name.
        model: Facts about the model that readers want without loading it.
        precision: How half precision was kept in range; None for fp32.
        imported: What was assumed, chosen and repaired when the weights were read.
        format_version: Version of this layout.
    """

    versions: dict[str, str]
    interface: Interface
    graphs: dict[str, GraphSpec]
    checkpoint: dict[str, str]
    files: dict[str, str]
    model: ModelFacts | None = None
    precision: PrecisionFacts | None = None
    imported: ImportRecord = field(default_factory=ImportRecord)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        """Check that what it names is there, and lies in the bundle."""
        if odd := [name for name in self.files if name in ("", ".", "..") or re.search(r"[/\\\x00-\x1f]", name)]:
            raise ValueError(f"{show(odd[0])} is not a file of the bundle")
        if unhashed := [graph.file for graph in self.graphs.values() if graph.file not in self.files]:
            raise ValueError(f"it has no sha256 of {unhashed[0]}")
        if missing := [name for name in PROVENANCE if name not in self.checkpoint]:
            raise ValueError(f"checkpoint.{missing[0]} is missing")
        if FORWARD in self.graphs:
            _check_graph(self.graphs[FORWARD], self.interface)

    def to_json(self) -> str:
        """Return the text of ``manifest.json``."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def _check_graph(graph: GraphSpec, interface: Interface) -> None:
    """Check that the forward graph takes and returns what the model does."""
    for axis in (BATCH, SEQ):
        if axis not in graph.axes:
            raise ValueError(f"graphs.{FORWARD}.axes.{axis} is missing")
    inputs = {spec.name for spec in graph.inputs} - ({interface.mask.name} if interface.mask else set())
    if inputs != {spec.name for spec in interface.inputs}:
        raise ValueError(f"graphs.{FORWARD} does not take the inputs of the interface")
    if [spec.name for spec in graph.outputs] != [spec.name for spec in interface.outputs]:
        raise ValueError(f"graphs.{FORWARD} does not return the outputs of the interface")
    specs = {spec.name: spec for spec in (*interface.inputs, *interface.outputs)}
    for spec in (*graph.inputs, *graph.outputs):
        if spec.name in specs and len(spec.shape) != len(specs[spec.name].shape):
            raise ValueError(f"{spec.name} has {len(spec.shape)} axes in graphs.{FORWARD}, not as in the interface")


@dataclass(frozen=True)
class ProfileShapes:
    """Optimisation profile of one input: smallest, tuned-for and largest shape."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check that they are shapes of one rank, in rising order."""
        if not len(self.min) == len(self.opt) == len(self.max) > 0:
            raise ValueError(f"min, opt and max have {len(self.min)}, {len(self.opt)} and {len(self.max)} axes")
        for sizes in zip(self.min, self.opt, self.max, strict=True):
            if not 1 <= sizes[0] <= sizes[1] <= sizes[2] <= MAX_SIZE:
                raise ValueError(f"{sizes} are no sizes from 1 to {MAX_SIZE} in rising order")


@dataclass(frozen=True)
class EngineManifest:
    """``engines/NAME.json``: what an engine is, and which graph it was built from.

    Attributes:
        name: File name without suffix.
        flavour: ``tensorrt`` or ``tensorrt-rtx``.
        version: Version of that package.
        targets: Compute capabilities it was built for, such as ``8.9``.
        graph: Name of the graph in the bundle.
        graph_sha256: Hash of the ONNX file it was built from.
        engine_sha256: Hash of the engine file.
        profiles: One entry a profile: shapes by input name.
        inputs: Engine inputs as the parsed network declares them.
        outputs: Engine outputs as the parsed network declares them.
        num_layers: Layers of the parsed network.
        layer_dtypes: Number of network layers by output dtype.
        build_seconds: Wall time of the build.
        size_bytes: Size of the engine file.
        workspace_bytes: Most scratch memory of a layer that was allowed; None: TensorRT's own limit.
        tf32: Whether fp32 products may be rounded to TensorFloat-32.
    """

    name: str
    flavour: str
    version: str
    targets: tuple[str, ...]
    graph: str
    graph_sha256: str
    engine_sha256: str
    profiles: tuple[dict[str, ProfileShapes], ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    num_layers: int
    layer_dtypes: dict[str, int] = field(default_factory=dict)
    build_seconds: float = 0.0
    size_bytes: int = 0
    workspace_bytes: int | None = None
    tf32: bool = False

    def __post_init__(self) -> None:
        """Check that it can be run: it has inputs, outputs, and profiles that say which shapes the inputs may have."""
        if not (self.inputs and self.outputs and self.profiles):
            raise ValueError("inputs, outputs or profiles is empty, wanted one at least of each")
        for spec, profile in ((spec, profile) for spec in self.inputs for profile in self.profiles):
            if spec.name not in profile or len(profile[spec.name].min) != len(spec.shape):
                raise ValueError(f"a profile has no shapes of {spec.name} with {len(spec.shape)} axes")

    def to_json(self) -> str:
        """Return the text of ``engines/NAME.json``."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"
