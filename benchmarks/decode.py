"""Decoding with carried state: time and memory per step, against the forward graph, and against a Transformer.

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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from flash_export import Bundle, Generator, State
from flash_export.config import DECODE
from flash_export.generation.ort_state import OrtStateRunner
from harness.models import TINY, TOLERANCE, PeerConfig, export_ours
from harness.processes import MIB, restart_peak, run_in_process
from harness.report import Figure, make_parser, print_figures, print_table, write_json
from harness.sessions import THREADS, bind_run, check_agreement, make_tokens, open_session
from harness.timing import QUICK_EFFORT, Activity, Effort, Timings, time_alternating
from harness.transformer import CachedDecoder, Transformer, build_transformer, export_cached_transformer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    # A step, ready to be run at its position or soon after, and the bytes of what it carries.
    Step = tuple[Callable[[], object], int]

LONGEST_FORWARD = 16384
STEPS_A_LOAD = 400
CHECKED_TOKENS = 256
POSITION_TARGET = 1.1
GROWTH_TARGET_MIB = 1.0
FORWARD_TARGET = 60.0
DECODE_STEP, FORWARD_RUN, OURS, TRANSFORMER = "decode step", "forward", "ours", "Transformer"
AT_ONCE = "reading the text at once"


@dataclass(frozen=True)
class Sizes:
    """At what lengths is measured, in tokens."""

    positions: tuple[int, int] = (100, 100_000)  # whose steps are compared
    forward_len: int = 4096  # context at which a step is compared with the forward graph
    # Contexts at which the Transformer is compared, and how many times longer its step has to be.
    contexts: Mapping[int, float] = field(default_factory=lambda: {1024: 0.8, 16384: 3.0})
    steps: int = 100_000  # whose memory is watched
    sample_every: int = 1000  # steps between two readings of memory; growth counts from the first reading on


QUICK = Sizes(positions=(10, 100), forward_len=64, contexts={16: 0.8, 64: 3.0}, steps=40, sample_every=10)


@dataclass(frozen=True)
class Endurance:
    """What many steps in a row cost."""

    steps: int
    steps_s: float  # steps a second
    resident_mib: tuple[float, ...]  # one reading every so many steps
    others_share: float  # of the processors, what other processes took meanwhile

    @property
    def figures(self) -> list[Figure]:
        """Speed and memory; growth is the highest reading after the first, less the first."""
        first, growth = self.resident_mib[0], max(self.resident_mib) - self.resident_mib[0]
        return [
            Figure(f"{self.steps} steps in a row, a second", self.steps_s),
            Figure("resident memory at the first reading, MiB", first),
            Figure.judge("growth after it, MiB", growth, at_most=GROWTH_TARGET_MIB),
        ]


def prepare_step(path: Path, context: int, vocab_size: int) -> Step:
    """Read a text of ``context`` tokens up to its last one, which the step feeds.

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
    before, last, numbers = decoder.read_state(), tokens[-1:], itertools.count()
    check_agreement(f"decoding at position {context - 1}", decoder.step(last), expected, AT_ONCE, TOLERANCE)

    def run() -> object:
        if next(numbers) % STEPS_A_LOAD == 0:
            decoder.load_state(before)
        return decoder.step(last)

    return run, sum(array.nbytes for array in before.tensors.values())


def prepare_transformer_step(model: Transformer, path: Path, context: int) -> Step:
    """Return the step that feeds the last token of a context.

    Raises:
        RuntimeError: Decoding computes other logits than the Transformer that reads the text at once.
    """
    decoder, vocab_size = CachedDecoder(path, context), model.token_emb.num_embeddings
    tokens = make_tokens(min(context, CHECKED_TOKENS), vocab_size)
    logits = np.stack([decoder.step(token, position) for position, token in enumerate(tokens[0].tolist())])
    expected = model(torch.from_numpy(tokens))[0].numpy()
    check_agreement("the Transformer's cache", logits, expected, AT_ONCE, TOLERANCE)
    return lambda: decoder.step(0, context - 1), decoder.cache_bytes


def measure_endurance(path: Path, steps: int, sample_every: int) -> Endurance:
    """Decode in this process, whose resident memory is then that of decoding."""
    bundle, resident = Bundle.open(path.parent), []
    with _open_decoder(bundle) as decoder:
        decoder.load_state(State.zeros(bundle.get_graph(DECODE), 1))
        token, activity, started = np.zeros(1, np.int64), Activity.read(), time.perf_counter()
        for step in range(1, steps + 1):
            token = decoder.step(token).argmax(-1)
            if step % sample_every == 0:
                resident.append(restart_peak())
        seconds = time.perf_counter() - started
    return Endurance(steps, steps / seconds, tuple(resident), activity.compute_others_share())


@dataclass(frozen=True)
class Measurement:
    """What was timed, and the figures that it gives."""

    name: str
    timings: Timings
    figures: list[Figure]


def compare_steps(path: Path, config: PeerConfig, sizes: Sizes, effort: Effort) -> Measurement:
    """Time the step of an early and a late position."""
    early, late = (f"position {position}" for position in sizes.positions)
    steps = [prepare_step(path, position + 1, config.num_tokens)[0] for position in sizes.positions]
    timings = time_alternating({early: steps[0], late: steps[1]}, effort)
    figures = [Figure(f"step at {name}, ms", time_ms) for name, time_ms in timings.medians_ms.items()]
    ratio = Figure.judge(f"step at {late} / {early}", timings.compute_ratio(late, early), at_most=POSITION_TARGET)
    return Measurement("positions", timings, [*figures, ratio])


def compare_forward(path: Path, config: PeerConfig, sizes: Sizes, effort: Effort) -> Measurement:
    """Time a step, and the forward graph over the whole text."""
    n = sizes.forward_len
    forward = bind_run(open_session(path), {"input_ids": make_tokens(n, config.num_tokens)})
    candidates = {DECODE_STEP: prepare_step(path, n, config.num_tokens)[0], FORWARD_RUN: forward}
    timings = time_alternating(candidates, effort)
    figures = [Figure(f"{name} at {n} tokens, ms", time_ms) for name, time_ms in timings.medians_ms.items()]
    ratio = timings.compute_ratio(FORWARD_RUN, DECODE_STEP)
    figures.append(Figure.judge(f"forward / step at {n}", ratio, at_least=FORWARD_TARGET))
    return Measurement("forward", timings, figures)


def compare_transformer(path: Path, config: PeerConfig, sizes: Sizes, effort: Effort) -> Iterator[Measurement]:
    """Time a step of ours and one of a Transformer with a cache, at several lengths of context."""
    model = build_transformer(config)
    transformer = export_cached_transformer(model, path.parents[1] / "transformer.onnx")
    for n, target in sizes.contexts.items():
        ours, state_bytes = prepare_step(path, n, config.num_tokens)
        peer, cache_bytes = prepare_transformer_step(model, transformer, n)
        timings = time_alternating({OURS: ours, TRANSFORMER: peer}, effort)
        ratio = timings.compute_ratio(TRANSFORMER, OURS)
        figures = [
            *(Figure(f"{name}, step at {n}, ms", time_ms) for name, time_ms in timings.medians_ms.items()),
            Figure.judge(f"Transformer / ours at {n}", ratio, at_least=target),
            Figure(f"state, MiB at {n}", state_bytes / MIB),
            Figure(f"keys and values, MiB at {n}", cache_bytes / MIB),
            Figure(f"keys and values / state at {n}", cache_bytes / state_bytes),
        ]
        yield Measurement(f"at {n}", timings, figures)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = make_parser(__doc__)
    parser.add_argument("--steps", type=int, help=f"steps whose memory is watched, default {Sizes.steps}")
    options = parser.parse_args(arguments)
    torch.set_num_threads(THREADS)
    sizes, effort = (QUICK, QUICK_EFFORT) if options.quick else (Sizes(), Effort())
    config = replace(TINY if options.quick else PeerConfig(), causal=True)
    with tempfile.TemporaryDirectory() as folder:
        path = export_ours(config, Path(folder))
        measured = [compare(path, config, sizes, effort) for compare in (compare_steps, compare_forward)]
        measured += compare_transformer(path, config, sizes, effort)
        endurance = run_in_process(measure_endurance, path, options.steps or sizes.steps, sizes.sample_every)
    figures = [figure for one in measured for figure in one.figures] + endurance.figures
    print_figures(f"Decoding: d={config.dim}, {config.depth} layers", figures)
    rows = [(one.name, f"{one.timings.spread:.0%}", f"{one.timings.others:.0%}") for one in measured]
    rows.append(("steps", "-", f"{endurance.others_share:.0%}"))
    print_table("How noisy it was", ("measurement", "spread", "others"), rows)
    write_json(
        options.json,
        {
            "model": asdict(config),
            "decode": [asdict(figure) for figure in figures],
            "timings": {one.name: asdict(one.timings) for one in measured},
            "endurance": asdict(endurance),
        },
    )


def _open_decoder(bundle: Bundle) -> OrtStateRunner:
    return OrtStateRunner(bundle.get_graph(DECODE), bundle.get_graph_path(DECODE), threads=THREADS)


if __name__ == "__main__":
    main()
