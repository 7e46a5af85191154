"""Decoding with carried state: time and memory a step, against the forward graph, and against a Transformer.

    python benchmarks/decode.py [--steps 100000] [--json FILE] [--quick]

The causal model, one sequence, float32, two threads. A step takes a token and returns logits, through the decoder that
``flash-export generate`` uses. The steps that are timed stay near their position: the state is loaded anew after every
400. The steps whose memory is watched go on, each fed the likeliest token of the one before. The Transformer's cache
of keys and values is exactly as long as the context, which it attends to in whole at every step.

Before a step is timed, its logits have to be those of the forward graph, or at positions where that would need
gigabytes, those of the prefill graph, which reads the end of the text at once.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from activity import Activity
from cached_transformer import CachedDecoder, export_cached_transformer
from memory import read_peak_bytes, reset_peak, run_in_process
from peers import TOLERANCE, PeerConfig, choose_configs, compute_error, export_ours
from report import MIB, judge, make_parser, print_table, write_json
from sessions import THREADS, bind_run, make_tokens, open_session
from timing import DEFAULT_BLOCK_MS, DEFAULT_ROUNDS, Timings, time_alternating
from transformer import Transformer, build_transformer

from flash_export.bundle.bundle import Bundle
from flash_export.config import DECODE
from flash_export.generation.generate import Generator
from flash_export.generation.ort_state import OrtStateRunner
from flash_export.generation.state import State

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LONGEST_FORWARD = 16384
STEPS_A_LOAD = 400
CHECKED_TOKENS = 256
POSITION_TARGET = 1.1
GROWTH_TARGET_MIB = 1.0
FORWARD_TARGET = 60.0
DECODE_STEP, FORWARD_RUN, OURS, TRANSFORMER = "decode step", "forward", "ours", "Transformer"

Row = tuple[str, float, str | None]  # what, how much, verdict


@dataclass(frozen=True)
class Sizes:
    """At what lengths is measured.

    Attributes:
        positions: The two positions whose steps are compared.
        forward_len: Tokens of context at which a step is compared with the forward graph.
        contexts: Tokens of context at which the Transformer is compared, and how many times longer its step has to be.
        steps: Decode steps whose memory is watched.
        sample_every: Steps between two readings of memory; growth counts from the first reading on.
    """

    positions: tuple[int, int] = (100, 100_000)
    forward_len: int = 4096
    contexts: Mapping[int, float] = field(default_factory=lambda: {1024: 0.8, 16384: 3.0})
    steps: int = 100_000
    sample_every: int = 1000


QUICK = Sizes(positions=(10, 100), forward_len=64, contexts={16: 0.8, 64: 3.0}, steps=40, sample_every=10)


@dataclass(frozen=True)
class Step:
    """A step of ours, ready to run.

    Attributes:
        run: Runs it, at this position or soon after.
        state_bytes: Size of the state.
    """

    run: Callable[[], object]
    state_bytes: int


@dataclass(frozen=True)
class Endurance:
    """What many steps in a row cost.

    Attributes:
        steps: Number of steps.
        steps_s: Steps a second.
        resident_mib: Resident memory, one reading every so many steps.
        others_share: Share of the processors that other processes took meanwhile.
    """

    steps: int
    steps_s: float
    resident_mib: tuple[float, ...]
    others_share: float

    @property
    def growth_mib(self) -> float:
        """Highest reading after the first, less the first."""
        return max(self.resident_mib) - self.resident_mib[0]


def prepare_step(path: Path, context: int, vocab_size: int) -> Step:
    """Read a text up to its last token, which the step feeds.

    Args:
        path: The forward graph, in its bundle.
        context: Length of the text.
        vocab_size: Number of tokens.

    Raises:
        RuntimeError: The step computes other logits than the graphs that read the text at once.
    """
    bundle, tokens = Bundle.open(path.parent), make_tokens(context, vocab_size)[0]
    decoder = _open_decoder(bundle)
    chunk_size = bundle.read_config()["chunk_size"]
    boundary = (context - 1) // chunk_size * chunk_size
    with Generator.open(bundle, threads=THREADS) as generator:
        state = State.zeros(bundle.get_graph(DECODE), 1)
        if boundary:
            _, state = generator.prefill([tokens[:boundary]])
        decoder.load_state(state)
        for token in tokens[boundary:-1]:
            decoder.step(token[None])
        if context > LONGEST_FORWARD:
            expected = generator.prefill([tokens[boundary:]], state)[0]
        else:
            expected = open_session(path).run(["logits"], {"input_ids": tokens[None]})[0][0, -1:]
    before = decoder.read_state()
    _check(f"decoding at position {context - 1}", decoder.step(tokens[-1:]), expected)
    return Step(_bind_steps(decoder, before, tokens[-1:]), sum(array.nbytes for array in before.tensors.values()))


def prepare_transformer_step(model: Transformer, path: Path, context: int) -> tuple[Callable[[], object], int]:
    """Return the step that feeds the last token of a context, and the bytes of the cache.

    Raises:
        RuntimeError: Decoding computes other logits than the Transformer that reads the text at once.
    """
    decoder, vocab_size = CachedDecoder(path, context), model.token_emb.num_embeddings
    tokens = make_tokens(min(context, CHECKED_TOKENS), vocab_size)
    logits = np.stack([decoder.step(token, position) for position, token in enumerate(tokens[0].tolist())])
    _check("the Transformer's cache", logits, model(torch.from_numpy(tokens))[0].numpy())
    return lambda: decoder.step(0, context - 1), decoder.cache_bytes


def measure_endurance(path: str, steps: int, sample_every: int) -> Endurance:
    """Decode in this process, whose resident memory is then that of decoding."""
    bundle, resident = Bundle.open(Path(path).parent), []
    with _open_decoder(bundle) as decoder:
        decoder.load_state(State.zeros(bundle.get_graph(DECODE), 1))
        token, quiet, started = np.zeros(1, np.int64), Activity.read(), time.perf_counter()
        for step in range(1, steps + 1):
            token = decoder.step(token).argmax(-1)
            if step % sample_every == 0:
                reset_peak()
                resident.append(read_peak_bytes() / MIB)
        seconds = time.perf_counter() - started
    return Endurance(steps, steps / seconds, tuple(resident), quiet.compute_others_share(Activity.read()))


def compare_positions(
    path: Path, config: PeerConfig, positions: tuple[int, int], **how: Any
) -> tuple[list[Row], Timings]:
    """Time the step of an early and a late position."""
    early, late = (f"position {position}" for position in positions)
    timings = time_alternating(
        {
            name: prepare_step(path, position + 1, config.num_tokens).run
            for name, position in zip((early, late), positions, strict=True)
        },
        **how,
    )
    ratio = timings.compute_ratio(late, early)
    rows = [(f"step at {name}, ms", timings.get_median_ms(name), None) for name in (early, late)]
    return [*rows, (f"step at {late} / {early}", ratio, judge(ratio, at_most=POSITION_TARGET))], timings


def compare_forward(path: Path, config: PeerConfig, seq_len: int, **how: Any) -> tuple[list[Row], Timings]:
    """Time a step, and the forward graph over the whole text."""
    step = prepare_step(path, seq_len, config.num_tokens)
    forward = bind_run(open_session(path), {"input_ids": make_tokens(seq_len, config.num_tokens)})
    timings = time_alternating({DECODE_STEP: step.run, FORWARD_RUN: forward}, **how)
    ratio = timings.compute_ratio(FORWARD_RUN, DECODE_STEP)
    rows = [(f"{name} at {seq_len} tokens, ms", timings.get_median_ms(name), None) for name in timings.rounds_ms]
    return [*rows, (f"forward / step at {seq_len}", ratio, judge(ratio, at_least=FORWARD_TARGET))], timings


def compare_transformer(
    path: Path, config: PeerConfig, contexts: Mapping[int, float], folder: Path, **how: Any
) -> tuple[list[Row], dict[int, Timings]]:
    """Time a step of ours and one of a Transformer with a cache, at several lengths of context."""
    model = build_transformer(config)
    transformer = export_cached_transformer(model, folder / "transformer.onnx")
    rows: list[Row] = []
    timings = {}
    for context, target in contexts.items():
        ours = prepare_step(path, context, config.num_tokens)
        peer, cache_bytes = prepare_transformer_step(model, transformer, context)
        timings[context] = timing = time_alternating({OURS: ours.run, TRANSFORMER: peer}, **how)
        ratio = timing.compute_ratio(TRANSFORMER, OURS)
        rows += [(f"{name}, step at {context}, ms", timing.get_median_ms(name), None) for name in timing.rounds_ms]
        rows += [
            (f"Transformer / ours at {context}", ratio, judge(ratio, at_least=target)),
            (f"state, MiB at {context}", ours.state_bytes / MIB, None),
            (f"keys and values, MiB at {context}", cache_bytes / MIB, None),
            (f"keys and values / state at {context}", cache_bytes / ours.state_bytes, None),
        ]
    return rows, timings


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = make_parser(__doc__)
    parser.add_argument("--steps", type=int, help=f"steps whose memory is watched, default {Sizes.steps}")
    options = parser.parse_args(arguments)
    torch.set_num_threads(THREADS)
    sizes = QUICK if options.quick else Sizes()
    how = {"rounds": 1, "block_ms": 1.0} if options.quick else {"rounds": DEFAULT_ROUNDS, "block_ms": DEFAULT_BLOCK_MS}
    _, config = choose_configs(quick=options.quick)
    with tempfile.TemporaryDirectory() as name:
        path = export_ours(config, Path(name))
        rows, positions = compare_positions(path, config, sizes.positions, **how)
        forward_rows, forward = compare_forward(path, config, sizes.forward_len, **how)
        peer_rows, peers = compare_transformer(path, config, sizes.contexts, Path(name), **how)
        endurance = run_in_process(measure_endurance, str(path), options.steps or sizes.steps, sizes.sample_every)
    rows += [*forward_rows, *peer_rows, *_summarise_endurance(endurance)]
    timings = {"positions": positions, "forward": forward} | {f"at {length}": peer for length, peer in peers.items()}
    print_table(f"Decoding: d={config.dim}, {config.depth} layers", ("", "measured", "target"), rows)
    print_table(
        "How noisy it was",
        ("measurement", "spread", "others"),
        [(name, f"{t.compute_spread():.0%}", f"{t.get_others_share():.0%}") for name, t in timings.items()]
        + [("steps", "-", f"{endurance.others_share:.0%}")],
    )
    write_json(
        options.json,
        {
            "model": asdict(config),
            "decode": [{"name": name, "value": value, "target": target} for name, value, target in rows],
            "timings": {name: asdict(timing) for name, timing in timings.items()},
            "endurance": asdict(endurance),
        },
    )


def _summarise_endurance(endurance: Endurance) -> list[Row]:
    growth = endurance.growth_mib
    return [
        (f"{endurance.steps} steps in a row, a second", endurance.steps_s, None),
        ("resident memory at the first reading, MiB", endurance.resident_mib[0], None),
        ("growth after it, MiB", growth, judge(growth, at_most=GROWTH_TARGET_MIB)),
    ]


def _open_decoder(bundle: Bundle) -> OrtStateRunner:
    return OrtStateRunner(bundle.get_graph(DECODE), bundle.get_graph_path(DECODE), threads=THREADS)


def _bind_steps(decoder: OrtStateRunner, state: State, token: np.ndarray) -> Callable[[], object]:
    numbers = itertools.count()

    def run() -> object:
        if next(numbers) % STEPS_A_LOAD == 0:
            decoder.load_state(state)
        return decoder.step(token)

    return run


def _check(what: str, actual: np.ndarray, expected: np.ndarray) -> None:
    error = compute_error(actual, expected)
    if not error <= TOLERANCE:
        raise RuntimeError(f"{what} differs by {error:.2g} of the output's scale from reading the text at once")


if __name__ == "__main__":
    main()
