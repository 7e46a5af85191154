"""Graphs that this tool did not export, such as one of torch's own exporter: validated like ours."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from flash_export.errors import BundleError
from flash_export.external_data import check_external_data
from flash_export.files import check_utf8
from flash_export.interface import TensorSpec
from flash_export.manifest import GraphSpec
from flash_export.runtime.ort import OrtRunner

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    import numpy as np
    import onnx
    from typing_extensions import Self

    from flash_export.runtime.runner import Runner

_MASK_WORD = "mask"


@dataclass(frozen=True)
class ForeignGraph:
    """What a foreign ONNX file takes and returns.

    Attributes:
        spec: Its contract, under its own names, with the ranges of the bundle's graph.
        names: Its names by ours: ``input_ids``, ``attention_mask``, ``logits``.
    """

    spec: GraphSpec
    names: dict[str, str]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What it takes, under our names."""
        ours = {theirs: name for name, theirs in self.names.items()}
        return tuple(replace(spec, name=ours[spec.name]) for spec in self.spec.inputs)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What it returns, under our names."""
        ours = {theirs: name for name, theirs in self.names.items()}
        return tuple(replace(spec, name=ours[spec.name]) for spec in self.spec.outputs)


def read_foreign_graph(path: Path, graph: GraphSpec) -> ForeignGraph:
    """Read the interface of a graph that should compute what ``graph`` does.

    Its shapes are not believed: every length in the range of ``graph`` is asked for.

    Raises:
        BundleError: The file is no ONNX, or does not take token ids, and perhaps a mask.
        ConfigError: Its path is no UTF-8.
    """
    check_utf8(path)
    from flash_export.graph_files import read_graph

    model = read_graph(path)
    check_external_data(path)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    masks = [value for value in inputs if _MASK_WORD in value.name.lower()]
    tokens = [value for value in inputs if value not in masks]
    if len(tokens) != 1 or len(masks) > 1 or not model.graph.output:
        raise BundleError(
            f"{path} takes {', '.join(value.name for value in inputs) or 'nothing'}; wanted token ids, and at most one "
            "other input, whose name has 'mask' in it"
        )
    names = {"input_ids": tokens[0].name, "logits": model.graph.output[0].name}
    if masks:
        names["attention_mask"] = masks[0].name
    ids = next(spec.content for spec in graph.inputs if spec.name == "input_ids")
    try:
        spec = GraphSpec(
            file=path.name,
            opset=max((opset.version for opset in model.opset_import if not opset.domain), default=0),
            precision=graph.precision,
            inputs=tuple(
                TensorSpec(value.name, _read_dtype(value), ("batch", "seq"), None if value in masks else ids)
                for value in inputs
            ),
            outputs=tuple(
                TensorSpec(value.name, _read_dtype(value), graph.outputs[0].shape) for value in model.graph.output
            ),
            axes=graph.axes,
        )
    except (KeyError, ValueError) as error:  # KeyError: a type that ONNX has not
        raise BundleError(f"{path} cannot be run: {error}; give a graph of token ids and logits") from error
    return ForeignGraph(spec, names)


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
        return {"logits": outputs[self._names["logits"]]}

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
