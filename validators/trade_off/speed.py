"""How long each bundle takes: one run of every bundle in turn, so that whatever else the machine does falls on all."""

from __future__ import annotations

import contextlib
import itertools
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from flash_export.config import DECODE
from flash_export.errors import InputError
from flash_export.interface import PAST
from flash_export.runtime.backends import find_target
from flash_export.runtime.inputs import check_axis
from flash_export.validators.backends import GRAPH
from flash_export.validators.latency import Percentiles, Ratio, time_in_turn
from flash_export.validators.shape_checks import describe_exception
from flash_export.validators.trade_off.results import Timing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flash_export.data.sources import RandomSource
    from flash_export.validators.lengths import Cell
    from flash_export.validators.trade_off.candidates import Candidate

    Prepare = Callable[[Candidate], Callable[[], object]]

# A bundle whose run takes longer would take all the time, and is a different kind of slow.
MAX_RUN_S = 20.0
_LONG_RUN_S, _BURST_S, _MAX_BURST = 1.0, 0.01, 10


@dataclass(frozen=True)
class _Run:
    """What is timed, and how often in a turn."""

    run: Callable[[], object]
    burst: int


def time_forward(
    candidates: Sequence[Candidate],
    cell: Cell,
    source: RandomSource,
    budget_s: float,
    *,
    backend: str,
    threads: int | None,
) -> list[Timing]:
    """Time the forward graphs at one shape.

    Args:
        candidates: The bundles, the one that the others are compared with first.
        cell: The shape.
        source: Where its inputs come from.
        budget_s: Time, a bundle.
        backend: Where they run.
        threads: Threads of one operator; None: what the backend chooses.
    """
    inputs = source.draw(cell.batch, cell.seq_len)

    def prepare(candidate: Candidate) -> Callable[[], object]:
        assert candidate.runner is not None
        graph = candidate.bundle.get_graph(GRAPH)
        check_axis("seq", cell.seq_len, graph.axes["seq"])
        check_axis("batch", cell.batch, graph.axes["batch"])
        runner = candidate.runner
        if graph.is_half:  # not as it rounds here, but as it is shipped
            target = find_target(candidate.bundle, backend, GRAPH)
            runner = stack.enter_context(target.open(threads=threads, rounds=False))
        return partial(runner.run, inputs.to_inputs(graph.inputs))

    with contextlib.ExitStack() as stack:
        return _time(candidates, prepare, cell.seq_len, budget_s)


def time_decode(
    candidates: Sequence[Candidate],
    batch: int,
    source: RandomSource,
    budget_s: float,
    *,
    backend: str,
    threads: int | None,
) -> list[Timing]:
    """Time decode steps, from the beginning of a text on; a state that grows does so on the way, to the longest text.

    Args:
        candidates: The bundles, the one that the others are compared with first.
        batch: Rows.
        source: Where the tokens come from.
        budget_s: Time, a bundle.
        backend: Where they run.
        threads: Threads of one operator; None: what the backend chooses.
    """
    (tokens,) = source.draw(batch, 1).arrays.values()

    def prepare(candidate: Candidate) -> Callable[[], object]:
        from flash_export.generation.backends import open_decoder
        from flash_export.generation.state import State

        bundle = candidate.bundle
        if not has_decode(candidate):
            raise InputError(f"the bundle has no {DECODE} graph")
        target = find_target(bundle, backend, DECODE)
        decoder = stack.enter_context(open_decoder(bundle, target, threads=threads, rounds=False))
        graph = bundle.get_graph(DECODE)
        empty, steps = State.zeros(graph, batch), itertools.count(1)
        longest = graph.axes[PAST].max if PAST in graph.axes else None
        decoder.load_state(empty)

        def step() -> object:
            logits = decoder.step(tokens[:, 0])
            if longest is not None and next(steps) % longest == 0:
                decoder.load_state(empty)
            return logits

        return step

    with contextlib.ExitStack() as stack:
        return _time(candidates, prepare, None, budget_s)


def has_decode(candidate: Candidate) -> bool:
    """Tell whether a bundle has a decode graph."""
    return DECODE in candidate.bundle.manifest.graphs


def _time(candidates: Sequence[Candidate], prepare: Prepare, seq_len: int | None, budget_s: float) -> list[Timing]:
    """Time what can be run; the others get a timing with the reason."""
    prepared = {candidate.name: _try_run(candidate, prepare) for candidate in candidates}
    runs = {name: found for name, found in prepared.items() if isinstance(found, _Run)}
    samples: dict[str, list[float]] = {}
    if runs:
        taken = time_in_turn(
            [one.run for one in runs.values()],
            bursts=[one.burst for one in runs.values()],
            budget_s=budget_s * len(runs),
            warmup=0,
        )
        samples = dict(zip(runs, taken, strict=True))
    baseline = samples.get(candidates[0].name)
    timings = []
    for name, found in prepared.items():
        if isinstance(found, str):
            timings.append(Timing(seq_len, found))
        else:
            ratio = None if baseline is None else Ratio.from_seconds(samples[name], baseline)
            timings.append(Timing(seq_len, None, Percentiles.from_seconds(samples[name]), ratio))
    return timings


def _try_run(candidate: Candidate, prepare: Prepare) -> _Run | str:
    """Run a candidate twice, which is not counted; return what runs it, or why it cannot be timed."""
    if candidate.reason is not None:
        return candidate.reason
    try:
        run = prepare(candidate)
        run()
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
    except Exception as error:  # whatever a bundle raises, the others still have something to tell
        return describe_exception(error, candidate.bundle.path)
    return f"not timed: one run takes {seconds:.0f} s" if seconds > MAX_RUN_S else _Run(run, choose_burst(seconds))


def choose_burst(seconds: float) -> int:
    """Return how many runs a turn has: short ones are repeated, and one that takes seconds has no need of warm caches.

    >>> choose_burst(0.001), choose_burst(0.03), choose_burst(3.0)
    (11, 2, 1)
    """
    if seconds > _LONG_RUN_S:
        return 1
    return 1 + max(1, min(_MAX_BURST, round(_BURST_S / max(seconds, 1e-6))))
