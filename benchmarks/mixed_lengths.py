"""Whether serving many lengths from one session costs more than serving each of them warm.

    python benchmarks/mixed_lengths.py [--number 200] [--json FILE] [--quick]

Random lengths in random order, each run twice in a row: the first run follows one of another length, as in service,
the second finds everything as the first left it. The sums of both are compared, so that noise, which lasts longer
than a run, falls on both. For every combination of onnxruntime's memory pattern and arena, each in a process of its
own. Outputs are allocated by onnxruntime at each run, as a server's are.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from activity import Activity
from memory import read_peak_bytes, reset_peak, run_in_process
from peers import PeerConfig, add_model_options, export_ours, name_attention, select_configs
from report import MIB, judge, make_parser, print_table, write_json
from sessions import make_options, make_token_feeds, make_tokens, open_session

MAX_SEQ_LEN = 4096
NUMBER = 200
TARGET = 1.1


@dataclass(frozen=True)
class Setting:
    """Two of onnxruntime's session options."""

    mem_pattern: bool
    cpu_mem_arena: bool

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"pattern {'on' if self.mem_pattern else 'off'}, arena {'on' if self.cpu_mem_arena else 'off'}"


SETTINGS = tuple(Setting(pattern, arena) for arena in (True, False) for pattern in (True, False))


@dataclass(frozen=True)
class MixCost:
    """What a mix of lengths costs with one setting.

    Attributes:
        setting: The options.
        mixed_s: Seconds of all lengths, each after another length.
        warm_s: Seconds of the same lengths, each after itself.
        median_ratio: Median over the lengths of the ratio of both.
        peak_mib: Highest resident memory, less what the open session held before.
        end_mib: Resident memory at the end, counted in the same way.
        others_share: Share of the processors that other processes took meanwhile.
    """

    setting: Setting
    mixed_s: float
    warm_s: float
    median_ratio: float
    peak_mib: float
    end_mib: float
    others_share: float

    @property
    def ratio(self) -> float:
        """How much longer the mix takes than the same lengths warm."""
        return self.mixed_s / self.warm_s


def measure_setting(path: str, setting: Setting, lengths: list[int], vocab_size: int) -> MixCost:
    """Run the mix in this process."""
    options = make_options()
    options.enable_mem_pattern, options.enable_cpu_mem_arena = setting.mem_pattern, setting.cpu_mem_arena
    session = open_session(Path(path), options)
    reset_peak()
    before = read_peak_bytes()
    session.run(None, make_token_feeds(session, make_tokens(1, vocab_size)))  # a session's first run is never typical
    mixed, warm, quiet = [], [], Activity.read()
    for seq_len in lengths:
        feeds = make_token_feeds(session, make_tokens(seq_len, vocab_size))
        mixed.append(_time_run(session, feeds))
        warm.append(_time_run(session, feeds))
    others_share = quiet.compute_others_share(Activity.read())
    peak = read_peak_bytes()
    reset_peak()
    ratios = [a / b for a, b in zip(mixed, warm, strict=True)]
    peak_mib, end_mib = (peak - before) / MIB, (read_peak_bytes() - before) / MIB
    return MixCost(setting, sum(mixed), sum(warm), statistics.median(ratios), peak_mib, end_mib, others_share)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = make_parser(__doc__)
    add_model_options(parser)
    parser.add_argument("--number", type=int, help=f"number of lengths, default {NUMBER}")
    options = parser.parse_args(arguments)
    number, longest = (5, 64) if options.quick else (options.number or NUMBER, MAX_SEQ_LEN)
    lengths = np.random.default_rng(0).integers(1, longest, number, endpoint=True).tolist()
    results = []
    for config in select_configs(options):
        with tempfile.TemporaryDirectory() as folder:
            path = export_ours(config, Path(folder))
            costs = [
                run_in_process(measure_setting, str(path), setting, lengths, config.num_tokens) for setting in SETTINGS
            ]
        _print_costs(config, lengths, costs)
        results.append({"model": asdict(config), "settings": [asdict(cost) for cost in costs]})
    write_json(options.json, {"lengths": lengths, "mixed_lengths": results})


def _time_run(session: Any, feeds: dict[str, np.ndarray]) -> float:
    started = time.perf_counter()
    session.run(None, feeds)
    return time.perf_counter() - started


def _print_costs(config: PeerConfig, lengths: list[int], costs: list[MixCost]) -> None:
    print_table(
        f"{len(lengths)} lengths in 1..{max(lengths)}: {name_attention(config)}, d={config.dim}, {config.depth} layers",
        ("setting", "mixed s", "warm s", "ratio", "target", "median ratio", "peak MiB", "at the end", "others"),
        [
            (
                c.setting.name,
                c.mixed_s,
                c.warm_s,
                c.ratio,
                judge(c.ratio, at_most=TARGET),
                c.median_ratio,
                c.peak_mib,
                c.end_mib,
                f"{c.others_share:.0%}",
            )
            for c in costs
        ],
    )


if __name__ == "__main__":
    main()
