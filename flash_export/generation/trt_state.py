"""Decoding with a TensorRT engine, the state staying on the device: two sets of buffers that each step swaps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from flash_export.bundle.manifest import NEW_STATE_PREFIX, STATE_PREFIX
from flash_export.generation.decoder import CopyingDecoder, Room, check_loaded, check_tokens
from flash_export.generation.state import POSITION, check_state, iterate_specs
from flash_export.models.token_model import LOGITS, TOKENS
from flash_export.runtime.inputs import check_axis

if TYPE_CHECKING:
    from types import TracebackType

    from jaxtyping import Float, Int
    from torch import Tensor
    from typing_extensions import Self

    from flash_export.bundle.manifest import GraphSpec
    from flash_export.generation.state import State
    from flash_export.runtime.trt_session import Binding, LoadedEngine


class TrtStateRunner(CopyingDecoder):
    """Runs a decode engine so that a step copies tokens and logits alone.

    A step reads the state from one set of buffers and writes it to the other. Both directions are bound once, so that
    with CUDA graphs a step is one launch.
    """

    _batch: int
    _current: int
    _shapes: dict[str, tuple[int, ...]]
    _room: Room

    def __init__(self, graph: GraphSpec, engine: LoadedEngine) -> None:
        """Open a session of a loaded engine, which is freed at the end."""
        self._graph, self._engine, self._session = graph, engine, engine.open_session()
        self._model_sha256 = ""
        self._forget_state()

    def load_state(self, state: State) -> None:
        """Copy a state into the buffers, and go on from it.

        Raises:
            InputError: The batch is out of the range of graph and engine.
            StateError: The state has other tensors than the graph takes.
        """
        check_state(state, self._graph, batch=state.batch, model_sha256=state.model_sha256)
        check_axis("batch", state.batch, self._graph.axes["batch"])
        if self._shapes != (shapes := {name: value.shape for name, value in state.tensors.items()}):
            self._allocate(shapes)
        with self._session.use():
            for name, value in state.tensors.items():
                self._buffers[self._current][name].copy_(torch.from_numpy(np.ascontiguousarray(value)))
        self._model_sha256, self._room = state.model_sha256, Room(state)

    def step(self, tokens: Int[np.ndarray, " batch"]) -> Float[np.ndarray, "batch vocab"]:
        """Feed one token per row and return the logits of the next.

        Raises:
            InputError: No state was loaded, it has another batch, or an id is not in the vocabulary.
            BackendUnavailableError: TensorRT reported that the run failed.
        """
        check_loaded(self._batch > 0)
        check_tokens(self._graph, tokens, self._batch)
        if not self._room.take():
            self.load_state(self.read_state().reserve(self._graph, 1))
            return self.step(tokens)
        binding = self._bindings[self._current]
        self._tokens.copy_(torch.from_numpy(np.ascontiguousarray(tokens[:, None], dtype=np.int64)))
        with self._session.use():
            binding.inputs[TOKENS].copy_(self._tokens, non_blocking=True)
            binding.run()
            self._logits.copy_(binding.outputs[LOGITS], non_blocking=True)
            self._session.stream.synchronize()
        self._current = 1 - self._current
        return np.array(self._logits[:, 0].numpy())

    def read_tensors(self) -> dict[str, np.ndarray]:
        """Return copies of the tensors of the state after the last step."""
        check_loaded(self._batch > 0)
        with self._session.use():
            return {name: one.cpu().clone().numpy() for name, one in self._buffers[self._current].items()}

    def __enter__(self) -> Self:
        """Return the decoder."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Drop the bindings before the session, and this before the engine."""
        self._forget_state()
        self._engine.__exit__(kind, error, trace)

    def _forget_state(self) -> None:
        self._batch = self._current = 0
        self._bindings: list[Binding] = []
        self._buffers: list[dict[str, Tensor]] = []
        self._shapes = {}

    def _allocate(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Make buffers and bindings for a state; what TensorRT reads on the host lies there."""
        self._forget_state()
        batch, _ = shapes[POSITION]

        def create(name: str, shape: tuple[int | str, ...], dtype: str) -> Tensor:
            on_host = name in self._engine.on_host
            return self._engine.device.create((batch, *map(int, shape[1:])), getattr(torch, dtype), on_host=on_host)

        specs = dict(iterate_specs(self._graph))
        logits = self._graph.outputs[0]
        with self._session.use():
            tokens = create(TOKENS, (batch, 1), "int64")
            shown = create(LOGITS, logits.shape, logits.dtype)
            self._buffers = [
                {name: create(f"{STATE_PREFIX}{name}", shapes[name], spec.dtype) for name, spec in specs.items()}
                for _ in range(2)
            ]
        self._tokens = self._engine.device.create((batch, 1), torch.int64, on_host=True)
        self._logits = self._engine.device.create(shown.shape, shown.dtype, on_host=True)
        for source, target in (self._buffers, reversed(self._buffers)):
            inputs = {f"{STATE_PREFIX}{name}": tensor for name, tensor in source.items()}
            outputs = {f"{NEW_STATE_PREFIX}{name}": tensor for name, tensor in target.items()}
            self._bindings.append(self._session.bind({TOKENS: tokens, **inputs}, {LOGITS: shown, **outputs}))
        self._batch, self._shapes = batch, shapes
