"""Decoding with onnxruntime, the state staying where it is: two sets of buffers that each step swaps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from flash_export.bundle.manifest import NEW_STATE_PREFIX, STATE_PREFIX
from flash_export.generation.decoder import CopyingDecoder, Room, check_loaded, check_tokens
from flash_export.generation.state import (
    POSITION,
    check_state,
    is_updated_in_place,
    iterate_specs,
)
from flash_export.models.token_model import LOGITS, TOKENS
from flash_export.runtime.inputs import check_axis
from flash_export.runtime.ort import OrtRunner
from flash_export.runtime.ort_binding import copy_to_host
from flash_export.runtime.ort_providers import CPU

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from jaxtyping import Float, Int

    from flash_export.bundle.manifest import GraphSpec
    from flash_export.generation.state import State


class OrtStateRunner(OrtRunner, CopyingDecoder):
    """Runs a decode graph with its inputs and outputs bound to buffers, so that a step copies tokens and logits alone.

    What grows a model's state, sums and caches, is updated in place, which the graph allows. The rest is small: a step
    reads it from one set of buffers and writes it to the other, and there is one binding for each direction.
    """

    _batch: int
    _current: int
    _shapes: dict[str, tuple[int, ...]]
    _room: Room
    _input_ids: Any
    _logits: Any

    def __init__(
        self, graph: GraphSpec, path: Path, *, provider: str = "cpu", threads: int | None = None, rounds: bool = True
    ) -> None:
        """Create the session; see :class:`OrtRunner` for arguments and errors."""
        super().__init__(graph, path, provider=provider, threads=threads, rounds=rounds)
        self._model_sha256 = ""
        self._forget_state()

    def load_state(self, state: State) -> None:
        """Copy a state into the buffers, and go on from it.

        Raises:
            InputError: The batch is out of the graph's range.
            StateError: The state has other tensors than the graph takes.
        """
        check_state(state, self._graph, batch=state.batch, model_sha256=state.model_sha256)
        check_axis("batch", state.batch, self._graph.axes["batch"])
        if self._shapes != (shapes := {name: value.shape for name, value in state.tensors.items()}):
            self._allocate(shapes)
        for name, value in state.tensors.items():
            self._buffers[self._current][name].update_inplace(np.ascontiguousarray(value))
        self._model_sha256, self._room = state.model_sha256, Room(state)

    def step(self, tokens: Int[np.ndarray, " batch"]) -> Float[np.ndarray, "batch vocab"]:
        """Feed one token per row and return the logits of the next.

        Raises:
            InputError: No state was loaded, it has another batch, or an id is not in the vocabulary.
        """
        check_loaded(self._batch > 0)
        check_tokens(self._graph, tokens, self._batch)
        if not self._room.take():
            self.load_state(self.read_state().reserve(self._graph, 1))
            return self.step(tokens)
        self._input_ids.update_inplace(np.ascontiguousarray(tokens[:, None], dtype=np.int64))
        binding = self._bindings[self._current]
        if self._provider is not CPU:
            # An input that the graph wants on another device is copied when it is bound, not when the graph is run
            # (https://github.com/microsoft/onnxruntime/issues/5857). Integers alone may be: a CUDA graph reads sizes
            # and indices on the host, and tokens come from there.
            binding.bind_ortvalue_input(TOKENS, self._input_ids)
            binding.bind_ortvalue_input(f"{STATE_PREFIX}{POSITION}", self._buffers[self._current][POSITION])
        self._session.run_with_iobinding(binding)
        self._current = 1 - self._current
        logits = copy_to_host(self._logits)
        return logits[:, 0]

    def read_tensors(self) -> dict[str, np.ndarray]:
        """Return copies of the tensors of the state after the last step."""
        check_loaded(self._batch > 0)
        return {name: copy_to_host(buffer) for name, buffer in self._buffers[self._current].items()}

    def attach(self, tensors: Mapping[str, np.ndarray], model_sha256: str) -> None:
        """Step on the caller's arrays themselves, where they are in the memory that the provider computes in."""
        if self._provider is not CPU:
            super().attach(tensors, model_sha256)
            return
        self._forget_state()
        values = {name: self._ort.OrtValue.ortvalue_from_numpy(value) for name, value in tensors.items()}
        self._bind(values, {name: value.shape for name, value in tensors.items()})
        self._attached, self._model_sha256, self._room = tensors, model_sha256, Room(None)

    def detach(self) -> None:
        """Leave the state in the arrays: what is updated in place is there, the rest after every other step."""
        if self._provider is not CPU:
            super().detach()
        elif self._current:
            for name, value in self._attached.items():
                if not is_updated_in_place(name):
                    value[...] = self._buffers[self._current][name].numpy()
        self._forget_state()

    def __exit__(self, *error: Any) -> None:
        """Drop the bindings before the buffers, and these before the session."""
        self._forget_state()
        super().__exit__(*error)

    def _forget_state(self) -> None:
        self._batch = self._current = 0
        self._bindings: list[Any] = []
        self._buffers: list[dict[str, Any]] = []
        self._shapes = {}
        self._input_ids = self._logits = None

    def _allocate(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Make buffers and bindings for a state; tokens and logits live on the host, the state on the device."""
        self._forget_state()
        first = {name: self._create(shapes[name], spec.dtype) for name, spec in iterate_specs(self._graph)}
        self._bind(first, shapes)

    def _create(self, shape: tuple[int, ...], dtype: str, device: str = "") -> Any:
        return self._ort.OrtValue.ortvalue_from_shape_and_type(shape, np.dtype(dtype), device or self._provider.name)

    def _bind(self, first: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
        """Make the other buffers for a state, and the bindings of both directions."""
        batch, _ = shapes[POSITION]
        vocab_size = int(self._graph.outputs[0].shape[-1])
        self._input_ids = self._create((batch, 1), "int64", "cpu")
        self._logits = self._create((batch, 1, vocab_size), "float32", "cpu")
        second = {
            name: first[name] if is_updated_in_place(name) else self._create(shapes[name], spec.dtype)
            for name, spec in iterate_specs(self._graph)
        }
        self._buffers = [first, second]
        for source, target in (self._buffers, reversed(self._buffers)):
            binding = self._session.io_binding()
            binding.bind_ortvalue_input(TOKENS, self._input_ids)
            binding.bind_ortvalue_output(LOGITS, self._logits)
            for name in source:
                binding.bind_ortvalue_input(f"{STATE_PREFIX}{name}", source[name])
                binding.bind_ortvalue_output(f"{NEW_STATE_PREFIX}{name}", target[name])
            self._bindings.append(binding)
        self._batch, self._shapes = batch, shapes
