"""Continuous batching against the same prompts in batches, one after the other, and one at a time.

    python benchmarks/batching.py [--slots 16] [--soak 100000] [--json FILE] [--quick]

The bundled causal model, two threads: 64 prompts of 1 to 2,000 bytes of held-out text, 256 new tokens each, half of
them drawn with a seed of their own. All are queued at the start. Time counts reading and writing on all sides. Every
sequence has to be token for token what ``generate`` gives alone. ``--soak`` goes on until so many tokens were written,
and reports by how much the process grew after the first twentieth.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flash_export import Bundle, ExportOptions, Generator, SamplingOptions, export_onnx
from flash_export.generation.batcher import Batcher, Request
from harness.models import ASSETS, BUNDLED
from harness.processes import MIB, restart_peak, run_in_process
from harness.report import Figure, make_parser, print_figures, write_json
from harness.sessions import THREADS
from harness.timing import Activity

if TYPE_CHECKING:
    from collections.abc import Callable

CAUSAL = BUNDLED[0]
BATCHES_TARGET, ALONE_TARGET, GROWTH_TARGET_MIB = 0.8, 1.6, 20.0


@dataclass(frozen=True)
class Size:
    """What is written."""

    prompts: int = 64
    longest: int = 2000
    new: int = 256


QUICK = Size(3, 40, 8)


@dataclass(frozen=True)
class Run:
    """Sequences that were written in one way.

    Attributes:
        tokens_s: New tokens a second, reading of prompts included.
        others_share: Of the processors, what other processes took meanwhile.
    """

    tokens_s: float
    others_share: float


def make_requests(size: Size) -> list[Request]:
    """Return the prompts: pieces of held-out text, the even ones greedy."""
    text = np.frombuffer((ASSETS / CAUSAL / "heldout.txt").read_bytes(), np.uint8).astype(np.int64)
    random = np.random.default_rng(0)
    requests = []
    for index in range(size.prompts):
        length = int(random.integers(1, size.longest, endpoint=True))
        start = int(random.integers(text.size - length))
        options = SamplingOptions(temperature=0.8 * (index % 2), seed=index, max_tokens=size.new)
        requests.append(Request(str(index), text[start : start + length].copy(), options))
    return requests


def time_run(write: Callable[[], int]) -> Run:
    """Time what returns the number of tokens it wrote."""
    activity, start = Activity.read(), time.perf_counter()
    tokens = write()
    return Run(tokens / (time.perf_counter() - start), activity.compute_others_share())


class Written:
    """What a batcher wrote, and how long a running sequence waited at most."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.tokens: dict[str, list[int]] = {}
        self.longest_pause_s = 0.0

    def write(self, generator: Generator, slots: int, requests: list[Request]) -> int:
        """Write all requests, and return the number of tokens."""
        batcher, last = Batcher(generator, slots), dict[str, float]()
        self.state_bytes = batcher.num_bytes
        for request in requests:
            batcher.submit(request)
        for event in batcher.run():
            if event.token is not None:
                now = time.perf_counter()
                self.longest_pause_s = max(self.longest_pause_s, now - last.get(event.id, now))
                last[event.id] = now
                self.tokens.setdefault(event.id, []).append(event.token)
        return sum(map(len, self.tokens.values()))


def write_alone(generator: Generator, requests: list[Request], texts: dict[str, list[int]]) -> int:
    """Write one request after the other."""
    for request in requests:
        texts[request.id] = generator.generate([request.prompt], request.options).tokens[0].tolist()
    return sum(map(len, texts.values()))


def write_in_batches(generator: Generator, requests: list[Request], slots: int) -> int:
    """Write so many at a time; the next are begun when all of them are through. All are greedy: a batch has one way."""
    written = 0
    for start in range(0, len(requests), slots):
        batch = requests[start : start + slots]
        options = SamplingOptions(max_tokens=batch[0].options.max_tokens)
        found = generator.generate([request.prompt for request in batch], options)
        written += sum(tokens.size for tokens in found.tokens)
    return written


def soak(path: Path, slots: int, size: Size, wanted: int) -> float:
    """Write until there are so many tokens, and return by how many MiB the process grew after the first twentieth."""
    with Generator.open(Bundle.open(path), threads=THREADS) as generator:
        batcher, requests = Batcher(generator, slots), make_requests(size)
        written = submitted = 0
        first: float | None = None
        while written < wanted:
            while batcher.num_waiting < slots:
                batcher.submit(Request(str(submitted), *_split(requests[submitted % len(requests)])))
                submitted += 1
            written += sum(event.token is not None for event in batcher.step())
            if first is None and written >= wanted / 20:
                first = restart_peak()
        return restart_peak() - (first or 0.0)


def _split(request: Request) -> tuple[np.ndarray, SamplingOptions]:
    return request.prompt, request.options


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = make_parser(__doc__)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--soak", type=int, default=0, metavar="TOKENS", help="watch the memory over so many tokens")
    options = parser.parse_args(arguments)
    size = QUICK if options.quick else Size()
    requests, written, texts = make_requests(size), Written(), dict[str, list[int]]()
    with tempfile.TemporaryDirectory() as folder:
        path = export_onnx(ASSETS / CAUSAL, Path(folder) / "bundle", options=ExportOptions()).path
        with Generator.open(Bundle.open(path), threads=THREADS) as generator:
            runs = {
                "batcher": time_run(lambda: written.write(generator, options.slots, requests)),
                "batches": time_run(lambda: write_in_batches(generator, requests, options.slots)),
                "one at a time": time_run(lambda: write_alone(generator, requests, texts)),
            }
        growth = run_in_process(soak, path, options.slots, size, options.soak) if options.soak else None
    equal = sum(written.tokens[name] == tokens for name, tokens in texts.items()) / len(texts)
    batcher = runs["batcher"].tokens_s
    figures = [
        Figure.judge("sequences equal to those alone", equal, at_least=1.0),
        *(Figure(f"{name}: tokens a second", run.tokens_s) for name, run in runs.items()),
        Figure.judge("batcher / batches", batcher / runs["batches"].tokens_s, at_least=BATCHES_TARGET),
        Figure.judge("batcher / one at a time", batcher / runs["one at a time"].tokens_s, at_least=ALONE_TARGET),
        Figure("longest pause of a running sequence, ms", 1e3 * written.longest_pause_s),
        Figure("states, MiB", written.state_bytes / MIB),
        Figure("others' share of the processors", max(run.others_share for run in runs.values())),
    ]
    if growth is not None:
        figures.append(Figure.judge(f"growth over {options.soak:,} tokens, MiB", growth, at_most=GROWTH_TARGET_MIB))
    print_figures(
        f"{size.prompts} prompts of 1 to {size.longest:,} tokens, {size.new} new, {options.slots} slots", figures
    )
    write_json(
        options.json,
        {"size": asdict(size), "slots": options.slots, "figures": [asdict(figure) for figure in figures]},
    )


if __name__ == "__main__":
    main()
