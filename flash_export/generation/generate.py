"""Generating text with carried state.

Prompts go through ``prefill`` in segments, from inside of a chunk on through ``extend``, new tokens through ``decode``.

with Generator.open(Bundle.open("bundle")) as generator:
    tokens = generator.generate([prompt_ids], SamplingOptions(max_tokens=100)).tokens[0]
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from flash_export.bundle.bundle import reads_bundles
from flash_export.errors import InputError
from flash_export.generation.sampling import Sampler, SamplingOptions
from flash_export.generation.state import State, check_state
from flash_export.interface import TokenIds
from flash_export.models.token_model import LOGITS, TOKENS
from flash_export.runtime.inputs import check_axis, check_content

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from jaxtyping import Float, Int
    from typing_extensions import Self

    from flash_export.bundle.bundle import Bundle
    from flash_export.generation.backends import StateRunners
    from flash_export.runtime.runner import Runner

DEFAULT_SEGMENT_LEN = 2048


@dataclass(frozen=True)
class Generation:
    """What was written after the prompts.

    Attributes:
        tokens: New token ids of each row, int64; a stop token is the last of them.
        state: State after the prompts and all new tokens, to go on from.
    """

    tokens: tuple[Int[np.ndarray, " new"], ...]
    state: State


class Generator:
    """The graphs of one model that carry a state, driven for batches of prompts of any lengths."""

    def __init__(self, runners: StateRunners) -> None:
        """Wrap open graphs, which are entered and left with the generator; :meth:`open` makes it from a bundle."""
        self._runners = runners
        self._graph = runners.graph
        self._vocab_size = int(runners.graph.outputs[0].shape[-1])
        self._min_batch = runners.graph.axes["batch"].min  # more than 1 in graphs of one fixed batch

    @classmethod
    @reads_bundles
    def open(cls, bundle: Bundle, backend: str = "ort-cpu", *, threads: int | None = None) -> Generator:
        """Open a bundle for generation.

        Args:
            bundle: Bundle of a causal model.
            backend: ``ort-cpu``, ``ort-cuda``, ``trt``, or ``eager``: the reference model, which reads the text again
                for every token.
            threads: Threads of one operator on the CPU; None: what the backend chooses.

        Raises:
            BundleError: The model cannot generate, or the bundle lacks the graphs or engines for it.
            BackendUnavailableError: The backend cannot be used here.
            ConfigError: There is no such backend, or ``threads`` is below 1.
        """
        from flash_export.generation.backends import open_runners

        return cls(open_runners(bundle, backend, threads=threads))

    @property
    def runners(self) -> StateRunners:
        """What runs the graphs."""
        return self._runners

    @property
    def vocab_size(self) -> int:
        """Number of tokens that the model knows."""
        return self._vocab_size

    def prefill(
        self,
        prompts: Sequence[Int[np.ndarray, " seq"]],
        state: State | None = None,
        *,
        segment_len: int = DEFAULT_SEGMENT_LEN,
    ) -> tuple[Float[np.ndarray, "batch vocab"], State]:
        """Read prompts.

        Where the rest of a row is no longer than a chunk, one run of extend reads it from any position; a longer one
        that begins inside a chunk is read to the end of that chunk, and then in segments by prefill. Models without
        chunks go on in segments from any position.

        Args:
            prompts: Token ids of each row, at least one; the lengths may differ.
            state: Where the texts go on from, a row a prompt; None: new texts.
            segment_len: Most tokens of a row in one run of the prefill graph, rounded to whole chunks. Longer is
                faster, and takes memory in proportion.

        Returns:
            Logits of the token after each prompt, and the state there.

        Raises:
            InputError: A prompt is empty or no int64 vector, a token is not in the vocabulary, there are more prompts
                than the graph's largest batch, or ``segment_len`` is below 1.
            StateError: The state is of another model, has another batch, or is damaged.
        """
        for row, prompt in enumerate(prompts):
            check_prompt(f"prompt {row}", prompt, self._vocab_size)
        if not prompts:
            raise InputError("there are no prompts; give at least one")
        batch = len(prompts)
        check_axis("batch", max(batch, self._min_batch), self._graph.axes["batch"])
        segment_len = round_segment(segment_len, self._runners.chunk_size, self._graph.axes["seq"].max)
        if state is None:
            state = State.zeros(self._graph, batch, model_sha256=self._runners.model_sha256)
        check_state(state, self._graph, batch=batch, model_sha256=self._runners.model_sha256)
        if not state.model_sha256:
            state = replace(state, model_sha256=self._runners.model_sha256)
        logits = np.zeros((batch, self._vocab_size), np.float32)
        lengths = np.array([prompt.size for prompt in prompts])
        fed = np.zeros_like(lengths)
        while (remaining := lengths - fed).any():
            rows, counts, runner = self._choose_run(state.position, remaining, segment_len)
            pieces = [prompts[row][fed[row] : fed[row] + count] for row, count in zip(rows, counts, strict=True)]
            is_all = rows.size == batch  # nothing is copied then
            logits[rows], new_state = self._feed(runner, pieces, state if is_all else state.select(rows))
            state = new_state if is_all else state.replace(rows, new_state)
            fed[rows] += counts
        return logits, state

    def generate(
        self,
        prompts: Sequence[Int[np.ndarray, " seq"]],
        options: SamplingOptions | None = None,
        state: State | None = None,
        *,
        on_token: Callable[[int, int], None] | None = None,
    ) -> Generation:
        """Read prompts and go on writing, each row until its stop token or ``options.max_tokens``.

        Args:
            prompts: Token ids of each row, at least one.
            options: How tokens are chosen; None: greedily.
            state: Where the texts go on from; the repetition penalty does not know what stands before it.
            on_token: Called with row and token as each is chosen.

        Raises:
            InputError: A prompt is unusable, see :meth:`prefill`, or the model computes NaN.
            StateError: The state is unusable, see :meth:`prefill`.
            ConfigError: A stop token is not in the vocabulary.
        """
        options = options or SamplingOptions()
        sampler = Sampler(options, len(prompts), self._vocab_size)
        logits, state = self.prefill(prompts, state)
        sampler.read_prompts(prompts)
        written: list[list[int]] = [[] for _ in prompts]
        rows = np.arange(len(prompts))
        self._load(state)
        for _ in range(options.max_tokens):
            tokens = sampler.choose(logits, rows)
            for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
                written[row].append(token)
                if on_token:
                    on_token(row, token)
            logits = self._step(tokens)
            going_on = ~np.isin(tokens, options.stop_tokens)
            if not going_on.all():
                state = state.replace(rows, self._read(rows.size))
                rows, logits = rows[going_on], logits[going_on]
                if not rows.size:
                    break
                self._load(state.select(rows))
        if rows.size:
            state = state.replace(rows, self._read(rows.size))
        return Generation(tuple(np.array(tokens, np.int64) for tokens in written), state)

    def _choose_run(
        self, position: Int[np.ndarray, " batch"], remaining: Int[np.ndarray, " batch"], segment_len: int
    ) -> tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " rows"], Runner | None]:
        """Return which rows are read next, how many tokens of each, and by what; None: by decode, one of each."""
        runners, chunk_size = self._runners, self._runners.chunk_size
        if runners.extend is not None:
            to_boundary = -position % chunk_size
            rows = np.flatnonzero((remaining > 0) & ((to_boundary > 0) | (remaining <= chunk_size)))
            counts = np.where(remaining <= chunk_size, remaining, to_boundary)[rows]
            if rows.size:
                return rows, counts, None if counts.max() == 1 else runners.extend
        rows = np.flatnonzero(remaining)
        return rows, np.minimum(remaining[rows], segment_len), runners.prefill

    def _feed(
        self, runner: Runner | None, pieces: list[Int[np.ndarray, " seq"]], state: State
    ) -> tuple[Float[np.ndarray, "rows vocab"], State]:
        """Feed pieces of any lengths at once, padded on the right; return the logits after each, and the state."""
        ends = np.array([piece.size for piece in pieces])
        if runner is None:
            self._load(state)
            return self._step(np.concatenate(pieces)), self._read(ends.size)
        lengths = self._fill(ends)
        input_ids = np.zeros((lengths.size, lengths.max()), np.int64)
        for row, piece in enumerate(pieces):
            input_ids[row, : piece.size] = piece
        inputs = self._fill_state(state).reserve(self._graph, lengths).to_inputs()
        outputs = runner.run({TOKENS: input_ids, "lengths": lengths, **inputs})
        new_state = State.from_outputs(self._graph, outputs, model_sha256=self._runners.model_sha256)
        return outputs[LOGITS][np.arange(ends.size), ends - 1], self._cut_state(new_state, ends.size)

    def _load(self, state: State) -> None:
        self._runners.decoder.load_state(self._fill_state(state))

    def _step(self, tokens: Int[np.ndarray, " rows"]) -> Float[np.ndarray, "rows vocab"]:
        return self._runners.decoder.step(self._fill(tokens))[: tokens.size]

    def _read(self, num_rows: int) -> State:
        return self._cut_state(self._runners.decoder.read_state(), num_rows)

    def _fill(self, values: Int[np.ndarray, " rows"]) -> Int[np.ndarray, " batch"]:
        """Repeat the last row until there are as many as the graph takes."""
        return np.pad(values, (0, max(self._min_batch - values.size, 0)), mode="edge")

    def _fill_state(self, state: State) -> State:
        return state if state.batch >= self._min_batch else state.select(self._fill(np.arange(state.batch)))

    def _cut_state(self, state: State, num_rows: int) -> State:
        return state if state.batch == num_rows else state.select(np.arange(num_rows))

    def __enter__(self) -> Self:
        """Enter both runners."""
        self._runners.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free sessions, engines and states."""
        self._runners.__exit__(kind, error, trace)


def round_segment(segment_len: int, chunk_size: int, longest: int) -> int:
    """Return the number of tokens of a segment: whole chunks, if the longest sequence has room for one.

    Args:
        segment_len: Most tokens, where that is a chunk at least.
        chunk_size: Prefill starts at multiples of it.
        longest: Longest sequence of the prefill graph.

    Raises:
        InputError: ``segment_len`` is below 1.

    >>> round_segment(2048, 100, 65536), round_segment(2048, 100, 60)
    (2000, 60)
    """
    if segment_len < 1:
        raise InputError(f"segment_len={segment_len} is not usable; use a whole number of at least 1")
    chunks = min(max(segment_len // chunk_size, 1), longest // chunk_size)
    return chunks * chunk_size or longest


def check_prompt(name: str, prompt: Int[np.ndarray, " seq"], vocab_size: int) -> None:
    """Check that a prompt can be read.

    Raises:
        InputError: It is empty or no int64 vector, or a token is not in the vocabulary.
    """
    if prompt.ndim != 1 or prompt.dtype != np.int64:
        raise InputError(
            f"{name} is {prompt.dtype} of shape {prompt.shape}, wanted an int64 vector of token ids; "
            "convert it with np.asarray(ids, np.int64)"
        )
    if prompt.size == 0:
        raise InputError(f"{name} has no tokens; give at least one, such as a line break, to go on from")
    check_content(name, prompt, TokenIds(vocab_size))
