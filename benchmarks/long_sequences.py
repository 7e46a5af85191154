"""Whether time and memory per token stay the same on long sequences.

    python benchmarks/long_sequences.py [--long] [--lengths 4096,65536] [--memory-pattern] [--json FILE] [--quick]

One pass of the forward graph and, for the causal model, segments of 2,048 tokens through the prefill graph, whose state
is carried from one to the next. Each length runs in a process of its own, so that its peak memory is its own.
``--long`` adds 262,144 tokens, and 1,048,576 in segments; a length whose memory is not there is left out and said to
be. onnxruntime's memory pattern is off unless asked for: it plans one more block as large as all that the first run
took, see ``mixed_lengths.py``.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path

from flash_export import ExportOptions
from flash_export.config import DEFAULT_MAX_SEQ_LEN
from flash_export.validators.memory import read_free_bytes
from harness.models import PeerConfig, export_ours, select_configs
from harness.processes import run_in_process
from harness.report import describe, judge, make_parser, print_table, write_json
from harness.sessions import LengthCost, measure_length, measure_segments

LENGTHS, QUICK_LENGTHS = [4096, 16384, 65536], [64, 256]
LONGEST, LONGEST_IN_SEGMENTS = 262144, 1048576
TARGET_FROM = 65536
TARGET = 1.25
REPEATS, QUICK_REPEATS = 7, 2
FREE_SHARE = 0.8


def measure_lengths(
    config: PeerConfig, path: Path, lengths: list[int], repeats: int, mem_pattern: bool
) -> list[LengthCost]:
    """Measure one length after the other, up to where the memory ends."""
    costs: list[LengthCost] = []
    for seq_len in sorted(lengths):
        if costs and costs[-1].token_kib * 1024 * seq_len > FREE_SHARE * read_free_bytes():
            print(f"{seq_len} tokens left out: they would need {costs[-1].token_kib * seq_len / 1024:.0f} MiB")
            break
        costs.append(run_in_process(measure_length, path, seq_len, config.num_tokens, repeats, mem_pattern))
    return costs


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = make_parser(__doc__, models=True, lengths=True)
    parser.add_argument("--long", action="store_true", help=f"measure {LONGEST} tokens as well")
    parser.add_argument("--memory-pattern", action="store_true", help="leave onnxruntime's memory pattern on")
    options = parser.parse_args(arguments)
    lengths = options.lengths or (QUICK_LENGTHS if options.quick else LENGTHS)
    lengths = [*lengths, LONGEST] if options.long else lengths
    repeats = QUICK_REPEATS if options.quick else REPEATS
    export_options = ExportOptions(max_seq_len=max(*lengths, DEFAULT_MAX_SEQ_LEN))
    results = []
    for config in select_configs(options):
        with tempfile.TemporaryDirectory() as folder:
            path = export_ours(config, Path(folder), options=export_options)
            ways = {"one pass": measure_lengths(config, path, lengths, repeats, options.memory_pattern)}
            if config.causal:
                longer = [*lengths, LONGEST_IN_SEGMENTS] if options.long else lengths
                numbers = {n: 1 if n == LONGEST_IN_SEGMENTS else repeats for n in sorted(longer)}  # the longest once
                ways["segments"] = [
                    run_in_process(measure_segments, path, n, config.num_tokens, number)
                    for n, number in numbers.items()
                ]
        for way, costs in ways.items():
            ratios = [cost.time_us / costs[0].time_us for cost in costs]
            _print_costs(f"Long sequences, {way}: {config.title}", costs, ratios)
            described = [
                describe(one, "token_kib") | {"time_ratio": ratio} for one, ratio in zip(costs, ratios, strict=True)
            ]
            results.append({"model": asdict(config), "way": way, "lengths": described})
    write_json(options.json, {"memory_pattern": options.memory_pattern, "long_sequences": results})


def _print_costs(title: str, costs: list[LengthCost], ratios: list[float]) -> None:
    print_table(
        title,
        (
            "tokens",
            "us per token",
            f"times {costs[0].seq_len}",
            "target",
            "peak MiB",
            "KiB per token",
            "runs",
            "others",
        ),
        [
            (
                *(cost.seq_len, cost.time_us, ratio),
                judge(ratio, at_most=TARGET) if cost.seq_len >= TARGET_FROM else None,
                *(cost.peak_mib, cost.token_kib, cost.runs, f"{cost.others_share:.0%}"),
            )
            for cost, ratio in zip(costs, ratios, strict=True)
        ],
    )


if __name__ == "__main__":
    main()
