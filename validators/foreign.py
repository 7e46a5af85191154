"""Graphs that this tool did not export, such as one of torch's own exporter: validated like ours."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flash_export.bundle.external_data import check_external_data
from flash_export.bundle.manifest import GraphSpec
from flash_export.errors import BundleError
from flash_export.files import check_utf8
from flash_export.interface import TensorSpec
from flash_export.runtime.ort import OrtRunner

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    import numpy as np
    import onnx
    from typing_extensions import Self

    from flash_export.interface import Interface
    from flash_export.runtime.runner import Runner

_MASK_WORD = "mask"


@dataclass(frozen=True)
class ForeignGraph:
    """What a foreign ONNX file takes and returns.

    Attributes:
        spec: Its contract, under its own names, with the ranges of the bundle's graph.
        names: Its names by ours.
    """

    spec: GraphSpec
    names: dict[str, str]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What it takes, under our names."""
        return self._rename(self.spec.inputs)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What it returns, under our names, in the order of the interface."""
        return self._rename(self.spec.outputs)

    def _rename(self, specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        ours = {theirs: name for name, theirs in self.names.items()}
        return tuple(replace(spec, name=ours[spec.name]) for spec in specs)


def read_foreign_graph(path: Path, interface: Interface, graph: GraphSpec) -> ForeignGraph:
    """Read what a graph takes and returns that should compute what ``graph`` does.

    Inputs and outputs are told apart by their names if these are ours, else by their order; an input with ``mask`` in
    its name says what is padding. Its shapes are not believed: every length in the range of ``graph`` is asked for.

    Raises:
        BundleError: The file is no ONNX, or does not take and return what the model does.
        ConfigError: Its path is no UTF-8.
    """
    check_utf8(path)
    from flash_export.graph_files import read_graph

    model = read_graph(path)
    check_external_data(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    given = [value for value in model.graph.input if value.name not in weights]
    masks = [value for value in given if interface.mask is not None and _MASK_WORD in value.name.lower()]
    inputs, outputs = [value for value in given if value not in masks], list(model.graph.output)
    if len(inputs) != len(interface.inputs) or len(masks) > 1 or len(outputs) < len(interface.outputs):
        mask = "" if interface.mask is None else f", and at most one other input, whose name has {_MASK_WORD!r} in it"
        raise BundleError(
            f"{path} takes {_list_names(given)} and returns {_list_names(outputs)}; wanted "
            f"{_list_names(interface.inputs)} and {_list_names(interface.outputs)}, or as many in this order{mask}"
        )
    sizes = {axis: axis if bounds.min < bounds.max else bounds.max for axis, bounds in graph.axes.items()}
    pairs = [*_match(interface.inputs, inputs), *((interface.mask, value) for value in masks if interface.mask)]
    answers = _match(interface.outputs, outputs)
    try:
        spec = GraphSpec(
            file=path.name,
            opset=max((opset.version for opset in model.opset_import if not opset.domain), default=0),
            precision=graph.precision,
            inputs=tuple(_describe(ours, theirs, sizes) for ours, theirs in pairs),
            outputs=tuple(_describe(ours, theirs, sizes) for ours, theirs in answers),
            axes=graph.axes,
        )
    except (KeyError, ValueError) as error:  # KeyError: a type that ONNX has not
        wanted = f"{_list_names(interface.inputs)} and {_list_names(interface.outputs)}"
        raise BundleError(f"{path} cannot be run: {error}; give a graph of {wanted}") from error
    return ForeignGraph(spec, {ours.name: theirs.name for ours, theirs in (*pairs, *answers)})


def _match(
    specs: Sequence[TensorSpec], values: Sequence[onnx.ValueInfoProto]
) -> list[tuple[TensorSpec, onnx.ValueInfoProto]]:
    by_name = {value.name: value for value in values}
    if all(spec.name in by_name for spec in specs):
        return [(spec, by_name[spec.name]) for spec in specs]
    return list(zip(specs, values, strict=False))


def _describe(ours: TensorSpec, theirs: onnx.ValueInfoProto, sizes: Mapping[str, int | str]) -> TensorSpec:
    shape = tuple(sizes[size] if isinstance(size, str) else size for size in ours.shape)
    return TensorSpec(theirs.name, _read_dtype(theirs), shape, ours.content)


def _list_names(values: Iterable[TensorSpec | onnx.ValueInfoProto]) -> str:
    return ", ".join(value.name for value in values) or "nothing"


class ForeignRunner:
    """Runs a foreign graph in onnxruntime under our names."""

    def __init__(self, path: Path, graph: ForeignGraph, *, threads: int | None = None) -> None:
        """Open the file.

        Raises:
            BackendUnavailableError: onnxruntime cannot be used here.
            BundleError: onnxruntime refuses the file.
        """
        self._runner: Runner = OrtRunner(graph.spec, path, threads=threads)
        self._names = graph.names

    @property
    def name(self) -> str:
        """Name in reports."""
        return self._runner.name

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph once.

        Raises:
            InputError: An input does not fit.
        """
        outputs = self._runner.run({self._names[name]: value for name, value in inputs.items()})
        return {name: outputs[theirs] for name, theirs in self._names.items() if theirs in outputs}

    def __enter__(self) -> Self:
        """Enter the session."""
        self._runner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave it."""
        self._runner.__exit__(kind, error, trace)


def _read_dtype(value: onnx.ValueInfoProto) -> str:
    import numpy as np
    import onnx

    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)).name
