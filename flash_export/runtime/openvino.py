"""Running a graph with OpenVINO on the CPU: a second reader of the graph, that shares no code with onnxruntime."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from flash_export.errors import BackendUnavailableError, BundleError
from flash_export.install import get_install_command
from flash_export.runtime.inputs import check_inputs

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from types import TracebackType

    import numpy as np
    from typing_extensions import Self

    from flash_export.bundle.manifest import GraphSpec

DEVICE = "CPU"


class OpenVinoRunner:
    """Runs one ONNX file of a bundle with OpenVINO's CPU plugin, in the precisions that the graph says.

    A graph in fp32 is computed in fp32 whatever the processor could do. One in bf16, with its islands of fp32, runs
    natively where the processor has instructions for it; elsewhere OpenVINO computes all of it in fp32, with weights
    that were rounded to bf16.
    """

    def __init__(
        self,
        graph: GraphSpec,
        path: Path,
        *,
        threads: int | None = None,
        fixed_axes: Mapping[str, int] | None = None,
    ) -> None:
        """Read and compile the graph.

        Args:
            graph: Contract of the graph, from the bundle's manifest.
            path: The ONNX file.
            threads: Threads of one run; None: as many as there are cores.
            fixed_axes: Sizes of symbolic axes, for a model that is compiled for them and takes no others.

        Raises:
            BackendUnavailableError: OpenVINO is not installed.
            BundleError: OpenVINO cannot read or compile the file, or would compute in another precision.
        """
        try:
            openvino: Any = importlib.import_module("openvino")
        except ImportError as error:
            raise BackendUnavailableError(f"OpenVINO is not installed; {get_install_command('openvino')}") from error
        self._graph, core = graph, openvino.Core()
        # Left alone it computes an fp32 graph in bf16 where the processor can, and an island with it: another model.
        hints: Any = importlib.import_module("openvino.properties.hint")
        kept = {"INFERENCE_PRECISION_HINT": openvino.Type.f32, "EXECUTION_MODE_HINT": hints.ExecutionMode.ACCURACY}
        settings: dict[str, Any] = {**kept, "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            model = core.read_model(str(path))
            if fixed_axes:
                model.reshape({spec.name: _fix(spec.shape, fixed_axes) for spec in graph.inputs})
            compiled = core.compile_model(model, DEVICE, settings)
            self._request = compiled.create_infer_request()
        except Exception as error:  # OpenVINO's errors are RuntimeErrors of many lines
            raise BundleError(
                f"{path} cannot be loaded by OpenVINO {openvino.__version__} ({' '.join(str(error).split())}); "
                "use another backend"
            ) from error
        for name, wanted in kept.items():
            if (got := compiled.get_property(name)) != wanted:
                raise BundleError(
                    f"OpenVINO {openvino.__version__} answers {name}={got} where {wanted} was asked for, and would "
                    "compute another model; use another version or backend"
                )

    @property
    def name(self) -> str:
        """Name in reports."""
        return "openvino"

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph once.

        Raises:
            InputError: An input does not fit the graph's contract.
        """
        check_inputs(self._graph, inputs)
        found = self._request.infer(dict(inputs), share_inputs=True)
        return {spec.name: found[spec.name].copy() for spec in self._graph.outputs}

    def __enter__(self) -> Self:
        """Return the runner."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drop the compiled model."""
        self._request = None


def describe_openvino_arithmetic(precision: str) -> str | None:
    """Say in what OpenVINO computes a graph of this precision, where that is not what the graph says.

    Returns:
        A sentence; None where it is, or where OpenVINO is not installed.
    """
    if precision != "bf16":
        return None
    try:
        openvino: Any = importlib.import_module("openvino")
    except ImportError:
        return None
    if "BF16" in openvino.Core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"):
        return None
    return (
        "OpenVINO computes bf16 in fp32 here, because this processor has no instructions for it: weights alone are "
        "rounded."
    )


def _fix(shape: tuple[int | str, ...], fixed_axes: Mapping[str, int]) -> list[int]:
    return [fixed_axes.get(size, -1) if isinstance(size, str) else size for size in shape]
