"""Whether serving many lengths from one session costs more than serving each of them warm.

    python benchmarks/mixed_lengths.py [--number 200] [--json FILE] [--quick]

Random lengths in random order, each run twice in a row: the first run follows one of another length, as in service,
the second finds everything as the first left it. The sums of both are compared, so that noise, which lasts longer
than a run, falls on both. For every combination of onnxruntime's memory pattern and arena, each in a process of its
own. Outputs are allocated by onnxruntime at each run, as a server's are.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from harness.models import export_ours, select_configs
from harness.processes import read_peak_mib, restart_peak, run_in_process
from harness.report import judge, make_parser, print_rows, write_json
from harness.sessions import make_token_feeds, make_tokens, open_session
from harness.timing import Activity, time_run

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


SETTINGS = tuple(Setting(pattern, arena) for arena, pattern in itertools.product((True, False), repeat=2))


@dataclass(frozen=True)
class MixCost:
    """What a mix of lengths costs with one setting."""

    setting: Setting
    mixed_s: float  # all lengths, each after another length
    warm_s: float  # the same lengths, each after itself
    median_ratio: float  # median over the lengths of the ratio of both
    peak_mib: float  # highest resident memory, less what the open session held before
    end_mib: float  # resident memory at the end, counted in the same way
    others_share: float  # of the processors, what other processes took meanwhile

    @property
    def ratio(self) -> float:
        """How much longer the mix takes than the same lengths warm."""
        return self.mixed_s / self.warm_s

    @property
    def target(self) -> str:
        """Whether that is little enough."""
        return judge(self.ratio, at_most=TARGET)


COLUMNS = {"setting": "setting.name", "mixed s": "mixed_s", "warm s": "warm_s", "ratio": "ratio", "target": "target"}
COLUMNS |= {"median ratio": "median_ratio", "peak MiB": "peak_mib", "at the end": "end_mib"}
COLUMNS |= {"others": "others_share:.0%"}


def measure_setting(path: Path, setting: Setting, lengths: list[int], vocab_size: int) -> MixCost:
    """Run the mix in this process."""
    session = open_session(path, enable_mem_pattern=setting.mem_pattern, enable_cpu_mem_arena=setting.cpu_mem_arena)
    before_mib = restart_peak()
    session.run(None, make_token_feeds(session, make_tokens(1, vocab_size)))  # a session's first run is never typical
    mixed_ms, warm_ms, activity = [], [], Activity.read()
    for seq_len in lengths:
        run = partial(session.run, None, make_token_feeds(session, make_tokens(seq_len, vocab_size)))
        mixed_ms.append(time_run(run))
        warm_ms.append(time_run(run))
    others_share, peak_mib = activity.compute_others_share(), read_peak_mib()
    ratio = statistics.median(a / b for a, b in zip(mixed_ms, warm_ms, strict=True))
    memory_mib = peak_mib - before_mib, restart_peak() - before_mib
    return MixCost(setting, sum(mixed_ms) / 1e3, sum(warm_ms) / 1e3, ratio, *memory_mib, others_share)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = make_parser(__doc__, models=True)
    parser.add_argument("--number", type=int, help=f"number of lengths, default {NUMBER}")
    options = parser.parse_args(arguments)
    number, longest = (5, 64) if options.quick else (options.number or NUMBER, MAX_SEQ_LEN)
    lengths = np.random.default_rng(0).integers(1, longest, number, endpoint=True).tolist()
    results = []
    for config in select_configs(options):
        with tempfile.TemporaryDirectory() as folder:
            path = export_ours(config, Path(folder))
            costs = [run_in_process(measure_setting, path, one, lengths, config.num_tokens) for one in SETTINGS]
        print_rows(f"{len(lengths)} lengths in 1..{max(lengths)}: {config.title}", costs, COLUMNS)
        results.append({"model": asdict(config), "settings": [asdict(cost) for cost in costs]})
    write_json(options.json, {"lengths": lengths, "mixed_lengths": results})


if __name__ == "__main__":
    main()
