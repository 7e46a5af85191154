"""What the manifests of a bundle and of an engine say, as frozen dataclasses with a JSON form."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flash_export.interface import Interface, Mask, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT_VERSION = 2
HALF_PRECISIONS = ("fp16", "bf16")
# Names of what a graph carries from run to run: as its input, and as its output.
STATE_PREFIX, NEW_STATE_PREFIX = "state.", "new_state."


@dataclass(frozen=True)
class AxisRange:
    """Inclusive range of a symbolic axis."""

    min: int
    max: int

    def __contains__(self, value: int) -> bool:
        """Tell whether a size is allowed."""
        return self.min <= value <= self.max


@dataclass(frozen=True)
class GraphSpec:
    """One ONNX file of a bundle: its contract with whoever runs it."""

    file: str
    opset: int
    precision: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    axes: dict[str, AxisRange]

    @property
    def is_half(self) -> bool:
        """Whether the graph computes in half precision; on a CPU, its rounding is spelled out."""
        return self.precision in HALF_PRECISIONS

    @property
    def state_inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs that are a state, which the graph returns as it is after the run."""
        return tuple(spec for spec in self.inputs if spec.name.startswith(STATE_PREFIX))

    @property
    def has_mask(self) -> bool:
        """Whether the graph takes a mask that says what is padding."""
        return any(isinstance(spec.content, Mask) for spec in self.inputs)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GraphSpec:
        """Rebuild from JSON."""
        return cls(
            file=values["file"],
            opset=values["opset"],
            precision=values["precision"],
            inputs=tuple(map(TensorSpec.from_dict, values["inputs"])),
            outputs=tuple(map(TensorSpec.from_dict, values["outputs"])),
            axes={name: AxisRange(**bounds) for name, bounds in values["axes"].items()},
        )


@dataclass(frozen=True)
class ModelFacts:
    """What a model is, in numbers.

    Attributes:
        model_type: Family.
        num_parameters: Trained parameters of the reference model.
        num_blocks: Layers.
        flops_per_token: Floating-point operations of the matrix products, a token, by sequence length.
        state_bytes: Size of the state that prefill and decode carry for one row; 0 without these graphs.
    """

    model_type: str
    num_parameters: int
    num_blocks: int
    flops_per_token: dict[str, int]
    state_bytes: int = 0


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

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PrecisionFacts:
        """Rebuild from JSON."""
        horizon = values["horizon"]
        return cls(
            precision=values["precision"],
            mode=values["mode"],
            islands=tuple(Island(**island) for island in values["islands"]),
            horizon=Horizon(**{**horizon, "interval": tuple(horizon["interval"])}) if horizon else None,
            data=values["data"],
            seq_lens=tuple(values["seq_lens"]),
        )


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
        format_version: Version of this layout.
    """

    versions: dict[str, str]
    interface: Interface
    graphs: dict[str, GraphSpec]
    checkpoint: dict[str, str]
    files: dict[str, str]
    model: ModelFacts | None = None
    precision: PrecisionFacts | None = None
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """Return the text of ``manifest.json``."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Manifest:
        """Rebuild from JSON."""
        graphs = {name: GraphSpec.from_dict(graph) for name, graph in values["graphs"].items()}
        return cls(
            versions=values["versions"],
            interface=Interface.from_dict(values["interface"]),
            graphs=graphs,
            checkpoint=values["checkpoint"],
            files=values["files"],
            model=ModelFacts(**values["model"]) if values.get("model") else None,
            precision=PrecisionFacts.from_dict(values["precision"]) if values.get("precision") else None,
            format_version=values["format_version"],
        )


@dataclass(frozen=True)
class ProfileShapes:
    """Optimisation profile of one input: smallest, tuned-for and largest shape."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ProfileShapes:
        """Rebuild from JSON."""
        return cls(tuple(values["min"]), tuple(values["opt"]), tuple(values["max"]))


@dataclass(frozen=True)
class EngineManifest:
    """``engines/NAME.json``: what an engine is, and which graph it was built from.

    Attributes:
        name: File name without suffix.
        flavour: ``tensorrt`` or ``tensorrt-rtx``.
        version: Version of that package.
        targets: Compute capabilities it was built for, such as ``8.9``; ``current`` for the GPU at hand.
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

    def to_json(self) -> str:
        """Return the text of ``engines/NAME.json``."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EngineManifest:
        """Rebuild from JSON."""
        return cls(
            **{
                **values,
                "targets": tuple(values["targets"]),
                "profiles": tuple(
                    {name: ProfileShapes.from_dict(shapes) for name, shapes in profile.items()}
                    for profile in values["profiles"]
                ),
                "inputs": tuple(map(TensorSpec.from_dict, values["inputs"])),
                "outputs": tuple(map(TensorSpec.from_dict, values["outputs"])),
            }
        )
