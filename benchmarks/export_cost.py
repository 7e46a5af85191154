"""What export itself costs: time, memory, engine build, layers per block, and how fast the commands answer.

    python benchmarks/export_cost.py [--no-build] [--json FILE] [--quick]

The model has 24 layers of width 768 and 15,000 tokens: 110 million parameters. The layers per block are the difference
between the networks of one and two blocks.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from flash_export import BuildOptions, Bundle, build_engine, export_onnx
from flash_export.config import TENSORRT_RTX
from flash_export.errors import BackendUnavailableError
from harness.models import TINY, PeerConfig, build_original, count_parameters, save_original
from harness.processes import MIB, read_peak_mib, restart_peak, run_in_process
from harness.report import Figure, make_parser, print_figures, write_json
from harness.timing import time_run

LARGE = PeerConfig(dim=768, depth=24, num_tokens=15000)
SMALL = PeerConfig(dim=64, num_tokens=100, depth=1, group_size=64, query_key_dim=32)
COMMAND_RUNS = 7
ATTENTIONS = (False, True)  # causal


def measure_export(weights: Path, config: PeerConfig) -> tuple[float, float, float]:
    """Export in this process, into ``bundle`` beside the weights.

    Returns:
        Seconds, MiB of resident memory before it (Python, torch and the libraries), and the highest during it.
    """
    torch.zeros(1)
    start_mib, started = restart_peak(), time.perf_counter()
    export_onnx(weights, weights.parent / "bundle", **config.import_options)
    return time.perf_counter() - started, start_mib, read_peak_mib()


def time_command(*arguments: str) -> float:
    """Return the median seconds of a flash-export command, in a new process each."""
    command = [str(Path(sys.executable).parent / "flash-export"), *arguments]

    def run() -> object:
        return subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    return statistics.median(time_run(run) for _ in range(COMMAND_RUNS)) / 1e3


def measure_costs(large: PeerConfig, small: PeerConfig, folder: Path, *, build: bool) -> list[Figure]:
    """Export and build the large model, and the small one in two depths."""
    name, weights = large.attention, save_original(large, folder / "large")
    seconds, start_mib, peak_mib = run_in_process(measure_export, weights, large)
    multiple = peak_mib / (weights.stat().st_size / MIB)
    figures = [
        Figure(f"{name}: parameters, millions", count_parameters(build_original(large)) / 1e6),
        Figure.judge(f"{name}: export, s", seconds, at_most=60),
        Figure(f"{name}: memory before, MiB", start_mib),
        Figure(f"{name}: peak memory, MiB", peak_mib),
        Figure.judge(f"{name}: peak memory / weights", multiple, at_most=3),
    ]
    if build:
        try:
            figures += _measure_builds(name, small, folder)
        except BackendUnavailableError as error:
            print(f"Engines left out: {error}")
    inspect_s = time_command("inspect", str(folder / "large" / "bundle"))
    return [*figures, Figure.judge(f"{name}: flash-export inspect, s", inspect_s, at_most=1.0)]


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = make_parser(__doc__)
    parser.add_argument("--no-build", dest="build", action="store_false", help="leave the engines out")
    options = parser.parse_args(arguments)
    large, small = (TINY, TINY) if options.quick else (LARGE, SMALL)
    seconds = time_command("--help")
    figures = [Figure.judge("flash-export --help, s", seconds, at_most=0.3)]
    for causal in ATTENTIONS:
        with tempfile.TemporaryDirectory() as folder:
            models = replace(large, causal=causal), replace(small, causal=causal)
            figures += measure_costs(*models, Path(folder), build=options.build)
    print_figures("Export", figures)
    write_json(options.json, {"model": asdict(large), "export_cost": [asdict(figure) for figure in figures]})


def _measure_builds(name: str, small: PeerConfig, folder: Path) -> list[Figure]:
    seconds, layers = _build(folder / "large")
    counts = []
    for config in (replace(small, depth=1), replace(small, depth=2)):
        place = folder / f"depth-{config.depth}"
        run_in_process(measure_export, save_original(config, place), config)
        counts.append(_build(place)[1])
    per_block = counts[1] - counts[0]
    return [
        Figure.judge(f"{name}: TensorRT-RTX build, s", seconds, at_most=40),
        Figure(f"{name}: network layers", layers),
        Figure.judge(f"{name}: network layers per block", per_block, at_most=120),
    ]


def _build(folder: Path) -> tuple[float, int]:
    """Return the seconds a build took and the layers of its network."""
    engine = build_engine(Bundle.open(folder / "bundle"), options=BuildOptions(flavour=TENSORRT_RTX.name)).engine
    return engine.build_seconds, engine.num_layers


if __name__ == "__main__":
    main()
