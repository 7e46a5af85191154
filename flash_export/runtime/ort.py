"""Running a graph with onnxruntime, on the CPU or on a CUDA device; never on one in place of the other.

On a CUDA device, inputs and outputs are bound to its memory, which is kept from run to run where shapes repeat.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from flash_export.errors import BackendUnavailableError, BundleError, FlashExportError, describe_reason
from flash_export.install import get_install_command
from flash_export.processor import INT8_FLAGS, list_instructions
from flash_export.runtime.inputs import check_inputs, check_shapes
from flash_export.runtime.ort_binding import DeviceBuffers, run_on_tensors
from flash_export.runtime.ort_providers import CPU, PROVIDERS, make_options
from flash_export.runtime.ort_start import LOG_FATAL, find_start_failure, read_versions, start_session

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import ModuleType, TracebackType

    import numpy as np
    from torch import Tensor
    from typing_extensions import Self

    from flash_export.bundle.manifest import GraphSpec
    from flash_export.runtime.ort_providers import EngineNeeds, Provider


class OrtRunner:
    """Runs one ONNX file of a bundle with one execution provider."""

    def __init__(
        self,
        graph: GraphSpec,
        path: Path,
        *,
        provider: str = "cpu",
        threads: int | None = None,
        fixed_axes: Mapping[str, int] | None = None,
        inner_values: Sequence[str] = (),
        rounds: bool = True,
        needs: EngineNeeds | None = None,
    ) -> None:
        """Create the session.

        Args:
            graph: Contract of the graph, from the bundle's manifest.
            path: The ONNX file.
            provider: ``cpu``, ``cuda``, ``tensorrt`` or ``tensorrt-rtx``.
            threads: Threads of one operator; None: as many as there are cores.
            fixed_axes: Sizes of symbolic axes, for a session that is optimised for them and takes no others.
            inner_values: Names of values inside the graph that are returned too. What is read is not fused away, so
                that such a session may be slower and round otherwise.
            rounds: Whether a half-precision graph on the CPU rounds after every node, as a GPU does; if not, it is
                given to onnxruntime as it is, which computes fp16 partly in fp32 and has no bf16.
            needs: What the TensorRT providers have to know of the graph; None: they find shapes out by themselves, and
                keep nothing of what they build.

        Raises:
            BackendUnavailableError: onnxruntime, or this provider, cannot be used here.
            BundleError: The file cannot be loaded, or has other inputs or outputs than the manifest says.
        """
        self._graph = graph
        self._provider = PROVIDERS[provider]
        self._ort = _import_onnxruntime()
        model: str | bytes = str(path)
        spells_rounding = rounds and self._provider is CPU and graph.is_half
        if inner_values or spells_rounding:
            model = _rewrite_graph(path, inner_values, spells_rounding=spells_rounding)
        if fixed_axes or not isinstance(model, str):
            needs = None  # they are those of the graph as it is
        options = _make_session_options(self._ort, threads, fixed_axes or {})
        if not isinstance(model, str):
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        self._session = _open_session(self._ort, self._provider, path, model, options, needs)
        self._output_names = [*(spec.name for spec in graph.outputs), *inner_values]
        for kind, names, found in (
            ("inputs", [spec.name for spec in graph.inputs], self._session.get_inputs()),
            ("outputs", self._output_names, self._session.get_outputs()),
        ):
            wanted, actual = sorted(names), sorted(item.name for item in found)
            if wanted != actual:
                raise BundleError(
                    f"{path} has the {kind} {', '.join(actual)}, the manifest says {', '.join(wanted)}; "
                    "export the bundle again"
                )
        self._device_buffers: DeviceBuffers | None = None
        if self._provider.binds:
            self._device_buffers = DeviceBuffers(self._ort, self._session, self._output_names)

    @property
    def name(self) -> str:
        """Name in reports: ``ort-cpu``, ``ort-cuda``, ``ort-tensorrt`` or ``ort-tensorrt-rtx``."""
        return f"ort-{self._provider.name}"

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the graph once.

        Raises:
            InputError: An input does not fit the graph's contract.
        """
        check_inputs(self._graph, inputs)
        if self._device_buffers is not None:
            return self._device_buffers.run(inputs)
        outputs = self._session.run(self._output_names, dict(inputs))
        return dict(zip(self._output_names, outputs, strict=True))

    def run_on_device(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run the graph once on tensors where the provider computes, and wait for it; nothing is copied.

        Values are not looked at: ids outside of the vocabulary give any answer.

        Args:
            inputs: Every input of the graph, in the dtype of its contract.

        Returns:
            The outputs, on the device, which are the caller's.

        Raises:
            InputError: A name, dtype or shape does not fit the graph's contract.
        """
        check_shapes(self._graph, inputs)
        return run_on_tensors(self._ort, self._session, self._output_names, inputs)

    def __enter__(self) -> Self:
        """Return the runner."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drop the buffers, then the session and the memory of its arena."""
        self._device_buffers = self._session = None


def _import_onnxruntime() -> ModuleType:
    # From 1.2x on it keeps a device id and a database of events in ~/.cache, and a file in TMPDIR, unless told not to.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise BackendUnavailableError(
            f"onnxruntime is not installed; {get_install_command('cpu')} (or [gpu])"
        ) from error


def _make_session_options(ort: ModuleType, threads: int | None, fixed_axes: Mapping[str, int]) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = LOG_FATAL  # failures are raised; the log would repeat them on stderr
    # Threads spin while a graph runs, which is a third of the time of a decode step; between runs they sleep, so that
    # they slow no one beside them.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # x86 processors without VNNI add pairs of int8 products in 16 bits, which saturate: a sum of 64 becomes 0.5. Those
    # that have it are right without this, which makes their products take twice the time.
    # https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html#when-and-why-do-i-need-to-try-u8u8
    if not list_instructions(INT8_FLAGS):
        options.add_session_config_entry("session.x64quantprecision", "1")
    # A memory pattern is planned for one length and takes twice the memory of running without: at 65,536 tokens of a
    # d = 512 model 8.5 GiB in place of 4.5 (benchmarks/long_sequences.py).
    options.enable_mem_pattern = False
    for axis, size in fixed_axes.items():
        options.add_free_dimension_override_by_name(axis, size)
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def _open_session(
    ort: ModuleType, provider: Provider, path: Path, model: str | bytes, options: Any, needs: EngineNeeds | None
) -> Any:
    """Open a session in which the provider that was asked for computes."""
    if not provider.plugin and provider.title not in (available := ort.get_available_providers()):
        raise BackendUnavailableError(
            f"this onnxruntime has no {provider.title}, only {', '.join(available)}; on a machine with an NVIDIA GPU, "
            f"{get_install_command(provider.extra)} in place of the CPU build"
        )
    if provider is not CPU:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")  # see _takes_part
    versions = read_versions(ort, provider) if provider.builds_engines else ()
    try:
        session = start_session(ort, provider, model, options, make_options(provider, needs, versions))
    except FlashExportError:
        raise
    except Exception as error:  # onnxruntime's exceptions have no common base below Exception
        if not path.is_file():
            raise BundleError(f"{path} is missing; export the bundle again") from error
        if provider is not CPU:
            _check_start(ort, provider, error)
        raise BundleError(
            f"{path} cannot be loaded by onnxruntime {ort.__version__} ({describe_reason(error)}); export it again"
        ) from error
    session.disable_fallback()
    if provider is not CPU and not _takes_part(session, provider):
        _check_start(ort, provider)
        raise BackendUnavailableError(
            f"{provider.title} starts here, but takes no node of {path.name}; use another backend"
        )
    return session


def _check_start(ort: ModuleType, provider: Provider, cause: Exception | None = None) -> None:
    """Check that a provider can be used at all, since with one graph it could not."""
    if (failure := find_start_failure(ort, provider)) is not None:
        raise BackendUnavailableError(
            f"onnxruntime cannot start {provider.title}: {failure.reason}; {failure.cure}"
        ) from cause


def _takes_part(session: Any, provider: Provider) -> bool:
    """Tell whether a provider was left out of a session, or, where onnxruntime says so, got no node of the graph."""
    if provider.title not in session.get_providers():
        return False
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return True
    return any(one.ep_name == provider.title for one in session.get_provider_graph_assignment_info())


def _rewrite_graph(path: Path, exposed: Sequence[str], *, spells_rounding: bool) -> bytes:
    """Return the graph as it has to be for what is asked of it.

    Args:
        path: The ONNX file.
        exposed: Values that become further outputs; onnxruntime infers their types.
        spells_rounding: Whether a half-precision graph is to round as a GPU does.
    """
    import onnx

    from flash_export.graph_files import read_graph
    from flash_export.runtime.half_on_cpu import spell_rounding

    model = read_graph(path, weights=True)
    if spells_rounding:
        model = spell_rounding(model)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in exposed)
    return bytes(model.SerializeToString())


def list_values(path: Path) -> set[str]:
    """Return the names of all values that the nodes of a graph compute."""
    from flash_export.graph_files import read_graph

    graph = read_graph(path).graph
    return {name for node in graph.node for name in node.output}
