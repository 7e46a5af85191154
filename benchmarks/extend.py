"""Reading on from inside a chunk: blocks of the extend graph against single steps and whole chunks.

    python benchmarks/extend.py [--json FILE] [--quick]

The bundled causal model, one sequence, float32, two threads. Every graph is a session with its inputs and outputs
bound, so that what is timed is the graph. The turn of a conversation goes through ``Generator.prefill``, as ``generate
--load-state`` does it, and once through the steps that it took before there was an extend graph.

Before anything is timed, the logits of each block have to be those of the forward graph.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from flash_export import Bundle, Generator, export_onnx
from flash_export.config import DECODE, EXTEND, PREFILL
from flash_export.generation.ort_state import OrtStateRunner
from harness.models import TINY, TOLERANCE, export_ours
from harness.report import Figure, make_parser, print_figures, print_table, write_json
from harness.sessions import THREADS, bind_run, check_agreement, make_tokens, open_session
from harness.timing import QUICK_EFFORT, Effort, time_alternating

if TYPE_CHECKING:
    from collections.abc import Callable

ASSET = Path(__file__).parents[1] / "flash_export" / "assets" / "byte-causal"
TURN_LEN = 100
# How many times the other an extend may take, and how many times faster than steps a turn has to be.
ONE_TARGET, FEW_TARGET, CHUNK_TARGET, TURN_TARGET = 1.3, 2.0, 1.4, 6.0
FEW = 8
STEP, WHOLE_CHUNK = "decode of 1", "prefill of a chunk"
TURN, TURN_OF_STEPS = "turn, extend", "turn, steps"


@dataclass(frozen=True)
class Conversation:
    """A text that was read to inside of a chunk, and what goes on from there."""

    bundle: Bundle
    tokens: np.ndarray  # (seq)
    start: int

    def bind(self, graph: str, num_tokens: int, start: int) -> Callable[[], object]:
        """Return a function that reads so many tokens by a graph.

        Raises:
            RuntimeError: It computes other logits than the forward graph.
        """
        session = open_session(self.bundle.get_graph_path(graph))
        with Generator.open(self.bundle, threads=THREADS) as generator:
            _, state = generator.prefill([self.tokens[:start]])
        read = self.tokens[None, start : start + num_tokens]
        feeds = {"input_ids": read, **state.to_inputs()}
        feeds |= {} if graph == DECODE else {"lengths": np.array([num_tokens])}
        whole = open_session(self.bundle.get_graph_path()).run(
            ["logits"], {"input_ids": self.tokens[None, : start + num_tokens]}
        )[0]
        found = session.run(["logits"], feeds)[0]
        check_agreement(f"{graph} of {num_tokens}", found, whole[:, start:], "the forward graph", TOLERANCE)
        return bind_run(session, feeds)

    def bind_turns(self, generator: Generator, decoder: OrtStateRunner) -> dict[str, Callable[[], object]]:
        """Return functions that read a turn which begins inside a chunk: at once, and token by token."""
        _, state = generator.prefill([self.tokens[: self.start]])
        turn = self.tokens[self.start : self.start + TURN_LEN]

        def step() -> object:
            decoder.load_state(state)
            for token in turn:
                logits = decoder.step(token[None])
            return logits, decoder.read_state()

        return {TURN: lambda: generator.prefill([turn], state), TURN_OF_STEPS: step}


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    options = make_parser(__doc__).parse_args(arguments)
    torch.set_num_threads(THREADS)
    effort = QUICK_EFFORT if options.quick else Effort()
    with tempfile.TemporaryDirectory() as folder:
        bundle = _export(Path(folder), quick=options.quick)
        chunk_size = bundle.manifest.interface.window
        tokens = make_tokens(6 * chunk_size + TURN_LEN, int(bundle.read_config()["vocab_size"]))[0]
        talk = Conversation(bundle, tokens, 2 * chunk_size + chunk_size // 2)
        sizes = (1, FEW, min(TURN_LEN, chunk_size), chunk_size)
        path = bundle.get_graph_path(DECODE)
        with (
            Generator.open(bundle, threads=THREADS) as generator,
            OrtStateRunner(bundle.get_graph(DECODE), path, threads=THREADS) as decoder,
        ):
            candidates = {
                STEP: talk.bind(DECODE, 1, talk.start),
                **{f"extend of {size}": talk.bind(EXTEND, size, talk.start) for size in sizes},
                "extend of a chunk": talk.bind(EXTEND, chunk_size, 2 * chunk_size),
                WHOLE_CHUNK: talk.bind(PREFILL, chunk_size, 2 * chunk_size),
                **talk.bind_turns(generator, decoder),
            }
            timings = time_alternating(candidates, effort)
    ratios = (
        ("extend of 1", STEP, ONE_TARGET),
        (f"extend of {FEW}", STEP, FEW_TARGET),
        ("extend of a chunk", WHOLE_CHUNK, CHUNK_TARGET),
    )
    figures = [
        *(Figure(f"{name}, ms", time_ms) for name, time_ms in timings.medians_ms.items()),
        *(Figure.judge(f"{a} / {b}", timings.compute_ratio(a, b), at_most=target) for a, b, target in ratios),
        Figure.judge(f"{TURN_OF_STEPS} / {TURN}", timings.compute_ratio(TURN_OF_STEPS, TURN), at_least=TURN_TARGET),
    ]
    print_figures(f"Reading on: a turn of {TURN_LEN} tokens, chunks of {chunk_size}", figures)
    noise = [("all", f"{timings.spread:.0%}", f"{timings.others:.0%}")]
    print_table("How noisy it was", ("measurement", "spread", "others"), noise)
    write_json(options.json, {"extend": [asdict(figure) for figure in figures], "timings": asdict(timings)})


def _export(folder: Path, *, quick: bool) -> Bundle:
    if quick:
        return Bundle.open(export_ours(replace(TINY, causal=True), folder).parent)
    return export_onnx(ASSET, folder / "bundle")


if __name__ == "__main__":
    main()
