"""Opening the graphs of a bundle that carry a state on a backend."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from flash_export.config import DECODE, EXTEND, MAX_THREADS, PREFILL, check_count
from flash_export.errors import BundleError, ConfigError
from flash_export.generation.decoder import RunnerDecoder
from flash_export.generation.state import identify_model
from flash_export.generation.state_graphs import check_state_graphs, list_state_graphs
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
class StateRunners:
    """What runs the graphs of one model that carry a state; a context manager that enters and leaves all.

    Attributes:
        prefill: Runner of the prefill graph.
        decoder: The decode graph.
        graph: Contract of the prefill graph.
        chunk_size: Prefill takes positions that are multiples of this.
        model_sha256: See :func:`identify_model`.
        extend: Runner of the extend graph; None where prefill takes any position.
    """

    prefill: Runner
    decoder: Decoder
    graph: GraphSpec
    chunk_size: int
    model_sha256: str
    extend: Runner | None = None

    def __enter__(self) -> Self:
        """Enter all."""
        with ExitStack() as stack:
            for one in self._list():
                stack.enter_context(one)
            stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free sessions, engines and states."""
        with ExitStack() as stack:
            for one in self._list():
                stack.push(one)

    def _list(self) -> list[Runner | Decoder]:
        return [self.prefill, *([self.extend] if self.extend else []), self.decoder]


def open_runners(bundle: Bundle, backend: str, *, threads: int | None = None) -> StateRunners:
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


def _open_graphs(bundle: Bundle, threads: int | None, *, backend: str) -> StateRunners:
    check_state_graphs(bundle)
    found = {name: BACKENDS[backend].find(bundle, name) for name in list_state_graphs(bundle)}
    if missing := [name for name, targets in found.items() if not targets]:
        raise BundleError(
            f"{bundle.path} has no engine of {', '.join(missing)}; build it with 'flash-export trt --graph NAME'"
        )
    # Of several engines the last by name, so that one that is built for more can be put behind the others.
    prefill = found[PREFILL][-1].open(threads=threads)
    extend = found[EXTEND][-1].open(threads=threads) if EXTEND in found else None
    decoder = open_decoder(bundle, found[DECODE][-1], threads=threads)
    chunk_size = bundle.manifest.interface.window
    return StateRunners(prefill, decoder, bundle.get_graph(PREFILL), chunk_size, identify_model(bundle), extend)


def _open_eager(bundle: Bundle, threads: int | None) -> StateRunners:
    from flash_export.generation.eager_state import EagerStateRunner, describe_eager_graph

    forward = bundle.get_graph()
    graph = describe_eager_graph(int(forward.outputs[0].shape[-1]), forward.axes)
    model = bundle.load_model()
    prefill, decode = (EagerStateRunner(model, graph, threads=threads) for _ in range(2))
    return StateRunners(prefill, RunnerDecoder(decode, graph), graph, 1, identify_model(bundle))


# Backends by their provider of onnxruntime.
_ORT_PROVIDERS = {"ort-cpu": "cpu", "ort-cuda": "cuda"}
_OPENERS: dict[str, Callable[[Bundle, int | None], StateRunners]] = {
    **{name: partial(_open_graphs, backend=name) for name in BACKENDS},
    "eager": _open_eager,
}
