"""Whether time and memory a token stay the same on long sequences.

    python benchmarks/long_sequences.py [--long] [--lengths 4096,65536] [--memory-pattern] [--json FILE] [--quick]

One pass of the forward graph and, for the causal model, segments of 2,048 tokens through the prefill graph, whose state
is carried from one to the next. Each length runs in a process of its own, so that its peak memory is its own.
``--long`` adds 262,144 tokens, and 1,048,576 in segments; a length whose memory is not there is left out and said to
be. onnxruntime's memory pattern is off unless asked for: it plans one more block as large as all that the first run
took, see ``mixed_lengths.py``.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from activity import Activity
from memory import read_peak_bytes, reset_peak, run_in_process
from peers import PeerConfig, add_model_options, export_ours, name_attention, select_configs
from report import MIB, judge, make_parser, print_table, write_json
from sessions import THREADS, bind_run, make_options, make_token_feeds, make_tokens, open_session

from flash_export.bundle.bundle import Bundle
from flash_export.config import DEFAULT_MAX_SEQ_LEN, ExportOptions
from flash_export.generation.generate import Generator

if TYPE_CHECKING:
    from collections.abc import Callable

LENGTHS = (4096, 16384, 65536)
WARM_UP_LEN = 4096
LONGEST, LONGEST_IN_SEGMENTS = 262144, 1048576
QUICK_LENGTHS = (64, 256)
TARGET_FROM = 65536
TARGET = 1.25
REPEATS = 7
MAX_SECONDS_A_LENGTH = 120.0
FREE_SHARE = 0.8


@dataclass(frozen=True)
class LengthCost:
    """What one length costs.

    Attributes:
        seq_len: Tokens.
        time_us: Microseconds a token, the median of the runs.
        runs: Number of runs.
        peak_mib: Highest resident memory while running, less what the open session held before.
        others_share: Share of the processors that other processes took meanwhile.
    """

    seq_len: int
    time_us: float
    runs: int
    peak_mib: float
    others_share: float

    @property
    def token_kib(self) -> float:
        """KiB of peak memory a token."""
        return self.peak_mib * 1024 / self.seq_len


def measure_length(path: str, seq_len: int, vocab_size: int, repeats: int, mem_pattern: bool) -> LengthCost:
    """Time one length in this process and read its peak memory, output included."""
    options = make_options()
    options.enable_mem_pattern = mem_pattern
    session = open_session(Path(path), options)
    feeds = make_token_feeds(session, make_tokens(seq_len, vocab_size))
    return _measure(lambda: bind_run(session, feeds), seq_len, repeats)


def measure_segments(path: str, seq_len: int, vocab_size: int, repeats: int) -> LengthCost:
    """Time one text that is read in segments."""
    tokens = make_tokens(seq_len, vocab_size)[0]
    with Generator.open(Bundle.open(Path(path).parent), threads=THREADS) as generator:

        def warm_up() -> Callable[[], object]:
            generator.prefill([tokens[:WARM_UP_LEN]])
            return lambda: generator.prefill([tokens])

        return _measure(warm_up, seq_len, repeats)


def measure_lengths(
    config: PeerConfig, path: Path, lengths: list[int], *, repeats: int, mem_pattern: bool
) -> list[LengthCost]:
    """Measure one length after the other, up to where the memory ends."""
    costs: list[LengthCost] = []
    for seq_len in sorted(lengths):
        if costs and costs[-1].token_kib * 1024 * seq_len > FREE_SHARE * _read_available_bytes():
            print(f"{seq_len} tokens left out: they would need {costs[-1].token_kib * seq_len / 1024:.0f} MiB")
            break
        costs.append(run_in_process(measure_length, str(path), seq_len, config.num_tokens, repeats, mem_pattern))
    return costs


def measure_lengths_in_segments(
    config: PeerConfig, path: Path, lengths: list[int], *, repeats: int
) -> list[LengthCost]:
    """Measure one length after the other; the longest once."""
    numbers = {seq_len: 1 if seq_len == LONGEST_IN_SEGMENTS else repeats for seq_len in sorted(lengths)}
    return [
        run_in_process(measure_segments, str(path), seq_len, config.num_tokens, number)
        for seq_len, number in numbers.items()
    ]


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = make_parser(__doc__)
    add_model_options(parser)
    parser.add_argument("--long", action="store_true", help=f"measure {LONGEST} tokens as well")
    parser.add_argument("--memory-pattern", action="store_true", help="leave onnxruntime's memory pattern on")
    parser.add_argument("--lengths", type=lambda text: [int(part) for part in text.split(",")])
    options = parser.parse_args(arguments)
    lengths = options.lengths or list(QUICK_LENGTHS if options.quick else LENGTHS)
    lengths = [*lengths, LONGEST] if options.long else lengths
    export_options = ExportOptions(max_seq_len=max(*lengths, DEFAULT_MAX_SEQ_LEN))
    results = []
    for config in select_configs(options):
        with tempfile.TemporaryDirectory() as folder:
            path = export_ours(config, Path(folder), options=export_options)
            repeats = 2 if options.quick else REPEATS
            costs = {
                "one pass": measure_lengths(config, path, lengths, repeats=repeats, mem_pattern=options.memory_pattern)
            }
            if config.causal:
                longer = [*lengths, LONGEST_IN_SEGMENTS] if options.long else lengths
                costs["segments"] = measure_lengths_in_segments(config, path, longer, repeats=repeats)
        for way, lengths_costs in costs.items():
            _print_costs(config, way, lengths_costs)
            described = [_describe(cost, lengths_costs[0]) for cost in lengths_costs]
            results.append({"model": asdict(config), "way": way, "lengths": described})
    write_json(options.json, {"memory_pattern": options.memory_pattern, "long_sequences": results})


def _print_costs(config: PeerConfig, way: str, costs: list[LengthCost]) -> None:
    first = costs[0]
    print_table(
        f"Long sequences, {way}: {name_attention(config)}, d={config.dim}, {config.depth} layers",
        ("tokens", "us a token", f"times {first.seq_len}", "target", "peak MiB", "KiB a token", "runs", "others"),
        [
            (
                str(cost.seq_len),
                cost.time_us,
                cost.time_us / first.time_us,
                judge(cost.time_us / first.time_us, at_most=TARGET) if cost.seq_len >= TARGET_FROM else None,
                cost.peak_mib,
                cost.token_kib,
                cost.runs,
                f"{cost.others_share:.0%}",
            )
            for cost in costs
        ],
    )


def _describe(cost: LengthCost, first: LengthCost) -> dict[str, Any]:
    return {**asdict(cost), "token_kib": cost.token_kib, "time_ratio": cost.time_us / first.time_us}


def _measure(prepare: Callable[[], Callable[[], object]], seq_len: int, repeats: int) -> LengthCost:
    """Time the function that ``prepare`` returns, and read how far both drive the memory of this process."""
    reset_peak()
    before = read_peak_bytes()
    run = prepare()
    quiet = Activity.read()
    started = time.perf_counter()
    times: list[float] = []
    while len(times) < repeats and (len(times) < 2 or time.perf_counter() - started < MAX_SECONDS_A_LENGTH):
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    others_share = quiet.compute_others_share(Activity.read())
    time_us, peak_mib = float(np.median(times)) * 1e6 / seq_len, (read_peak_bytes() - before) / MIB
    return LengthCost(seq_len, time_us, len(times), peak_mib, others_share)


def _read_available_bytes() -> float:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return float("inf")
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


if __name__ == "__main__":
    main()
