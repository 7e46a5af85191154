"""What TensorRT's parser made of a graph, run on the CPU: no engine, and no GPU.

The network that a build would start from is taken layer by layer and computed with PyTorch, shapes and all, in the
dtype of each layer. That shows whether the parser read the graph as it is meant, at every length. What a builder does
to the network afterwards, its kernels, fusions and rounding, only a run of the engine shows.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.numpy_helper
import torch

from flash_export.config import TENSORRT, TENSORRT_RTX
from flash_export.errors import BackendUnavailableError, EngineBuildError
from flash_export.runtime.inputs import check_inputs
from flash_export.runtime.trt_api import is_installed, name_dtype, parse_network
from flash_export.runtime.trt_layers import to_tensor
from flash_export.runtime.trt_steps import CONSTANT, NAME, TORCH_DTYPES, make_step, sort_steps

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    from torch import Tensor
    from typing_extensions import Self

    from flash_export.bundle.manifest import GraphSpec
    from flash_export.runtime.trt_steps import Step


class Constants:
    """The constants of a network.

    TensorRT's Python API shows no weights of types that numpy lacks, such as bfloat16: those are read from the ONNX
    file, by name, and that the parser took them as they are is not shown.
    """

    def __init__(self, path: Path) -> None:
        """Take the ONNX file."""
        self.values: dict[str, Tensor] = {}
        self._path = path

    def add(self, layer: Any) -> None:
        """Take a layer, cast to its class.

        Raises:
            BackendUnavailableError: The file has no such tensor.
        """
        output = layer.get_output(0)
        dtype = TORCH_DTYPES.get(name_dtype(output.dtype))
        weights = layer.weights
        if not isinstance(weights, np.ndarray):
            weights = self._stored.get(layer.name)
        if weights is None or dtype is None:
            raise BackendUnavailableError(f"TensorRT shows no values of {layer.name!r}, which {NAME} needs")
        self.values[output.name] = to_tensor(weights).to(dtype).reshape(tuple(layer.shape))

    @functools.cached_property
    def _stored(self) -> dict[str, np.ndarray]:
        """The initializers of types that numpy lacks, as numbers that hold them exactly."""
        found = {}
        for tensor in onnx.load(self._path).graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            if values.dtype.isbuiltin != 1:
                found[tensor.name] = values.astype(np.int8 if "int" in values.dtype.name else np.float32)
        return found


class NetworkRunner:
    """Computes the parsed network of one ONNX file."""

    def __init__(
        self, graph: GraphSpec, path: Path, *, threads: int | None = None, inner_values: tuple[str, ...] = ()
    ) -> None:
        """Parse the graph.

        Args:
            graph: Contract of the graph, from the bundle's manifest.
            path: The ONNX file.
            threads: Threads of one operator; None: what PyTorch has.
            inner_values: Further values of the graph to return, as far as the network has them.

        Raises:
            BackendUnavailableError: TensorRT is not installed, its parser cannot take the graph, or a layer is of a
                kind that nothing here computes.
        """
        flavour = TENSORRT_RTX if is_installed(TENSORRT_RTX) or not is_installed(TENSORRT) else TENSORRT
        self._graph, self._threads = graph, threads
        try:
            self._parsed = parse_network(flavour, path)
        except EngineBuildError as error:
            raise BackendUnavailableError(str(error)) from error
        network = self._parsed.network
        self._wanted = {network.get_output(index).name for index in range(network.num_outputs)} | set(inner_values)
        self._constants = Constants(path)
        self._steps = sort_steps(self._read_layers(), self._wanted)
        self._last_use = {name: place for place, step in enumerate(self._steps) for name in step.inputs if name}

    @property
    def name(self) -> str:
        """Name in reports."""
        return NAME

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute the network once.

        Raises:
            InputError: An input does not fit the graph's contract.
            BackendUnavailableError: A layer is used in a way that nothing here computes.
            BundleError: A layer fails.
        """
        check_inputs(self._graph, inputs)
        values = {**self._constants.values, **{name: to_tensor(value) for name, value in inputs.items()}}
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads or before)
        try:
            with torch.inference_mode():
                for place, step in enumerate(self._steps):
                    values[step.output] = step.run([None if name is None else values[name] for name in step.inputs])
                    for name in step.inputs:
                        if name and self._last_use[name] == place and name not in self._wanted:
                            values.pop(name, None)
        finally:
            torch.set_num_threads(before)
        return {name: _to_numpy(values[name]) for name in sorted(self._wanted & values.keys())}

    def _read_layers(self) -> dict[str, Step]:
        """Return the layers by the names of their outputs, constants computed.

        Raises:
            BackendUnavailableError: Nothing here computes one of them.
        """
        trt, network, steps = self._parsed.trt, self._parsed.network, {}
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            if layer.type.name == CONSTANT:
                layer.__class__ = trt.IConstantLayer
                self._constants.add(layer)
            else:
                step = make_step(trt, layer)
                steps[step.output] = step
        return steps

    def __enter__(self) -> Self:
        """Return the runner."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drop the layers before the network, and the network before its parser."""
        del self._steps, self._constants, self._parsed


def _to_numpy(x: Tensor) -> np.ndarray:
    """Return an array of its own: a constant's values belong to the parser, and an input's to the caller."""
    return np.array((x.float() if x.dtype == torch.bfloat16 else x).numpy())
