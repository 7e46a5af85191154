"""Opening the prefill and decode graphs of a bundle on a backend."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from flash_export.config import DECODE, MAX_THREADS, PREFILL, check_count
from flash_export.errors import BundleError, ConfigError
from flash_export.generation.decoder import RunnerDecoder
from flash_export.generation.state import identify_model
from flash_export.runtime.backends import BACKENDS
from flash_export.suggest import describe_unknown

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

    from flash_export.bundle.bundle import Bundle
    from flash_export.bundle.manifest import GraphSpec
    from flash_export.generation.decoder import Decoder
    from flash_export.runtime.backends import Target
    from flash_export.runtime.runner import Runner


@dataclass(frozen=True)
class StatePair:
    """A prefill runner and a decoder of one model; a context manager that enters and leaves both.

    Attributes:
        prefill: Runner of the prefill graph.
        decoder: The decode graph.
        graph: Contract of the prefill graph.
        chunk_size: Prefill takes positions that are multiples of this.
        model_sha256: See :func:`identify_model`.
    """

    prefill: Runner
    decoder: Decoder
    graph: GraphSpec
    chunk_size: int
    model_sha256: str

    def __enter__(self) -> Self:
        """Enter both."""
        with ExitStack() as stack:
            stack.enter_context(self.prefill)
            stack.enter_context(self.decoder)
            stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free sessions, engines and states."""
        with ExitStack() as stack:
            stack.push(self.prefill)
            stack.push(self.decoder)


def open_pair(bundle: Bundle, backend: str, *, threads: int | None = None) -> StatePair:
    """Open what generation needs; see :meth:`Generator.open`.

    Raises:
        BundleError: The model cannot generate, or the bundle lacks the graphs or engines for it.
        BackendUnavailableError: The backend cannot be used here.
        ConfigError: There is no such backend, or ``threads`` is below 1.
    """
    check_count("threads", threads, MAX_THREADS)
    if backend not in _OPENERS:
        raise ConfigError(describe_unknown("backend", backend, _OPENERS))
    if not bundle.manifest.interface.is_causal:
        raise BundleError(
            f"{bundle.path} holds a model that is not causal: it sees a text as a whole and cannot generate one; "
            "export a causal model"
        )
    return _OPENERS[backend](bundle, threads)


def open_decoder(bundle: Bundle, target: Target, *, threads: int | None = None, rounds: bool = True) -> Decoder:
    """Open what runs the decode graph of a bundle; see :class:`OpenOptions` for ``rounds``.

    Raises:
        BackendUnavailableError: It cannot be used here.
    """
    if target.name in _ORT_PROVIDERS:
        from flash_export.generation.ort_state import OrtStateRunner

        graph, path = bundle.get_graph(DECODE), bundle.get_graph_path(DECODE)
        return OrtStateRunner(graph, path, provider=_ORT_PROVIDERS[target.name], threads=threads, rounds=rounds)
    if target.engine is not None:
        from flash_export.generation.trt_state import TrtStateRunner
        from flash_export.runtime.trt import load_engine
        from flash_export.runtime.trt_session import EngineOptions

        return TrtStateRunner(bundle.get_graph(DECODE), load_engine(bundle, target.engine, EngineOptions(True)))
    return RunnerDecoder(target.open(threads=threads, rounds=rounds), bundle.get_graph(DECODE))


def _open_graphs(bundle: Bundle, threads: int | None, *, backend: str) -> StatePair:
    graph = _get_prefill_graph(bundle)
    found = {name: BACKENDS[backend].find(bundle, name) for name in (PREFILL, DECODE)}
    if missing := [name for name, targets in found.items() if not targets]:
        raise BundleError(
            f"{bundle.path} has no engine of {' and '.join(missing)}; build it with 'flash-export trt --graph NAME'"
        )
    # Of several engines the last by name, so that one that is built for more can be put behind the others.
    prefill = found[PREFILL][-1].open(threads=threads)
    decoder = open_decoder(bundle, found[DECODE][-1], threads=threads)
    return StatePair(prefill, decoder, graph, bundle.manifest.interface.window, identify_model(bundle))


def _open_eager(bundle: Bundle, threads: int | None) -> StatePair:
    from flash_export.generation.eager_state import EagerStateRunner, describe_eager_graph

    forward = bundle.get_graph()
    graph = describe_eager_graph(int(forward.outputs[0].shape[-1]), forward.axes)
    model = bundle.load_model()
    prefill, decode = (EagerStateRunner(model, graph, threads=threads) for _ in range(2))
    return StatePair(prefill, RunnerDecoder(decode, graph), graph, 1, identify_model(bundle))


def _get_prefill_graph(bundle: Bundle) -> GraphSpec:
    from flash_export.models.registry import get_family

    graphs = bundle.manifest.graphs
    if PREFILL in graphs and DECODE in graphs:
        return graphs[PREFILL]
    values = bundle.read_config()
    if refusal := get_family(values["model_type"]).config_class.from_dict(values).state_refusal:
        raise BundleError(
            f"{bundle.path} has no prefill and decode graphs: {refusal}; use --backend eager, which reads the text "
            "again for every token"
        )
    raise BundleError(
        f"{bundle.path} has no prefill and decode graphs, only {', '.join(graphs)}; export it again with "
        "'flash-export onnx', which writes them"
    )


# Backends by their provider of onnxruntime.
_ORT_PROVIDERS = {"ort-cpu": "cpu", "ort-cuda": "cuda"}
_OPENERS: dict[str, Callable[[Bundle, int | None], StatePair]] = {
    **{name: partial(_open_graphs, backend=name) for name in BACKENDS},
    "eager": _open_eager,
}
