"""What a report of an engine holds, as data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 (fields are read as a schema)
from typing import TYPE_CHECKING, Literal

from flash_export.bundle.manifest import EngineManifest  # noqa: TC001
from flash_export.exporters.engine_report.origins import sort_parts
from flash_export.runtime.trt_inspector import EngineLayer  # noqa: TC001
from flash_export.strict_json import format_json

if TYPE_CHECKING:
    from collections.abc import Iterable

LayerKind = Literal["product", "pointwise", "reduction", "move", "cast", "constant", "size", "other"]
# What is left when a network runs: the others are known when it is built, or say nothing but sizes.
WORKING: tuple[LayerKind, ...] = ("product", "pointwise", "reduction", "move", "cast", "other")
KINDS: tuple[LayerKind, ...] = ("product", "pointwise", "reduction", "move", "cast", "other", "constant", "size")
POINT_NAMES: tuple[Literal["min", "opt", "max"], ...] = ("min", "opt", "max")


@dataclass(frozen=True)
class Output:
    """What a layer gives at one point of a profile.

    Attributes:
        shape: Of its output.
        size_bytes: Of its output.
        flops: Floating-point operations of a product; 0 for all other layers.
    """

    shape: tuple[int, ...]
    size_bytes: int
    flops: int


@dataclass(frozen=True)
class Layer:
    """One layer of the parsed network.

    Attributes:
        name: Its name in the network.
        type: TensorRT's layer type, such as ``MATRIX_MULTIPLY``.
        kind: ``size``: its values decide sizes; ``constant``: it depends on no input; ``product``, of matrices, or a
            convolution; ``pointwise``; ``reduction``: sums, norms, softmax; ``move``: values as they are in another
            place; ``cast``: the same values in another dtype; ``other``.
        dtype: Of its output.
        operands: Dtypes of its inputs; those of a product as they are stored, before they are dequantized.
        part: ``before`` or ``after`` the blocks, ``block N``, ``between`` blocks, ``shared`` by several of these;
            ``graph`` where there are no blocks.
        nodes: The ONNX nodes it came from; of a helper of the parser or a constant, those that it is there for.
        shape: As TensorRT inferred it, -1 for a free size; None where it could not.
        weights_bytes: Bytes of the weights that it holds.
        outputs: What it gives, in the order of the report's points; empty if that was not computed.
    """

    name: str
    type: str
    kind: LayerKind
    dtype: str
    operands: tuple[str, ...]
    part: str
    nodes: tuple[str, ...]
    shape: tuple[int, ...] | None
    weights_bytes: int
    outputs: tuple[Output, ...]

    @property
    def works(self) -> bool:
        """Whether it is more than a constant or a size."""
        return self.kind in WORKING


@dataclass(frozen=True)
class Point:
    """Sizes that layers are measured at.

    Attributes:
        profile: Index of a profile.
        name: Which of its three shapes.
        sizes: Of the free axes of the inputs, by their names.
    """

    profile: int
    name: Literal["min", "opt", "max"]
    sizes: dict[str, int]


@dataclass(frozen=True)
class EngineReport:
    """What TensorRT made of a graph of a bundle.

    Attributes:
        bundle: Folder of the bundle.
        graph: Name of the graph.
        engine: The engine that was asked about; None for a graph alone.
        parser: Package and version that parsed the graph for this report.
        nodes: Operator of every ONNX node of the graph, by its name.
        initializer_bytes: Bytes of the weights in the ONNX file.
        points: Sizes that layers were measured at: those of each profile of the engine, or of the one that it would
            get by default.
        not_measured: Why no sizes are known; empty if they are.
        layers: The layers of the parsed network.
        engine_layers: The layers of the engine itself, after fusion; None if they were not read.
        not_read: Why they were not; empty if they were.
    """

    bundle: Path
    graph: str
    engine: EngineManifest | None
    parser: str
    nodes: dict[str, str]
    initializer_bytes: int
    points: tuple[Point, ...]
    not_measured: str
    layers: tuple[Layer, ...]
    engine_layers: tuple[EngineLayer, ...] | None
    not_read: str

    def __bool__(self) -> bool:
        """Tell whether the network is as large as that from which the engine was built."""
        return self.engine is None or self.engine.num_layers == len(self.layers)

    @property
    def parts(self) -> list[str]:
        """The parts of the model that have layers, in order."""
        return sort_parts(layer.part for layer in self.layers)

    @property
    def tuned_for(self) -> int | None:
        """Index of the point that the first profile is tuned for; None if nothing was measured."""
        return None if self.not_measured else next(i for i, point in enumerate(self.points) if point.name == "opt")

    def list_part(self, part: str) -> list[Layer]:
        """Return the layers of a part of the model."""
        return [layer for layer in self.layers if layer.part == part]

    def list_nodes_without_layers(self) -> list[str]:
        """Return the ONNX nodes that no layer came from."""
        found = {name for layer in self.layers for name in layer.nodes}
        return [name for name in self.nodes if name not in found]

    def to_json(self) -> str:
        """Return strict JSON."""
        return format_json(self)


def sum_weights(layers: Iterable[Layer]) -> int:
    """Return the bytes of the weights of some layers."""
    return sum(layer.weights_bytes for layer in layers)


def sum_flops(layers: Iterable[Layer], point: int) -> int:
    """Return the work of some layers at a point."""
    return sum(layer.outputs[point].flops for layer in layers)


def sum_outputs(layers: Iterable[Layer], point: int) -> int:
    """Return the bytes of all that some layers give at a point; constants and sizes do not count."""
    return sum(layer.outputs[point].size_bytes for layer in layers if layer.works)
