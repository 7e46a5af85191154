"""What export itself costs: time, memory, engine build, layers a block, and how fast the commands answer.

    python benchmarks/export_cost.py [--no-build] [--json FILE] [--quick]

The model has 24 layers of width 768 and 15,000 tokens: 110 million parameters. The layers a block are the difference
between the networks of one and two blocks.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from memory import read_peak_bytes, reset_peak, run_in_process
from peers import TINY, PeerConfig, build_original, name_attention
from report import MIB, judge, make_parser, print_table, write_json
from transformer import count_parameters

from flash_export.bundle.bundle import Bundle
from flash_export.config import TENSORRT_RTX, BuildOptions
from flash_export.errors import BackendUnavailableError
from flash_export.exporters.engine import build_engine
from flash_export.exporters.export import export_onnx

LARGE = PeerConfig(dim=768, depth=24, num_tokens=15000)
SMALL = PeerConfig(dim=64, num_tokens=100, depth=1, group_size=64, query_key_dim=32)
COMMAND_RUNS = 7
ATTENTIONS = (False, True)  # causal


@dataclass(frozen=True)
class ExportCost:
    """What one export costs, in a process of its own.

    Attributes:
        seconds: From the weights file to the bundle.
        start_mib: Resident memory before it: Python, torch and the libraries.
        peak_mib: Highest resident memory during it.
        weights_mib: Size of the weights.
    """

    seconds: float
    start_mib: float
    peak_mib: float
    weights_mib: float

    @property
    def multiple(self) -> float:
        """Peak memory as a multiple of the weights, the libraries included."""
        return self.peak_mib / self.weights_mib


@dataclass(frozen=True)
class Row:
    """One line of the table: what, how much, and the verdict."""

    name: str
    value: float
    target: str | None = None


def measure_export(weights: str, config: PeerConfig, output: str) -> ExportCost:
    """Export in this process."""
    torch.zeros(1)
    reset_peak()
    start = read_peak_bytes()
    started = time.perf_counter()
    arguments = {"group_size": config.group_size, "causal": config.causal}
    export_onnx(weights, output, family="flash", config=arguments, assume_defaults=True)
    seconds = time.perf_counter() - started
    return ExportCost(seconds, start / MIB, read_peak_bytes() / MIB, Path(weights).stat().st_size / MIB)


def export_in_process(config: PeerConfig, folder: Path) -> ExportCost:
    """Write the weights of a model, then export them in a fresh process into ``folder/bundle``."""
    folder.mkdir(parents=True)
    torch.save(build_original(config).state_dict(), folder / "model.pt")
    return run_in_process(measure_export, str(folder / "model.pt"), config, str(folder / "bundle"))


def count_layers(config: PeerConfig, folder: Path) -> int:
    """Build an engine and return the number of its network's layers."""
    export_in_process(config, folder)
    return _build(folder / "bundle")[1]


def time_command(*arguments: str) -> float:
    """Return the median seconds of a flash-export command, in a new process each."""
    command = [str(Path(sys.executable).parent / "flash-export"), *arguments]
    times = []
    for _ in range(COMMAND_RUNS):
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def measure_costs(large: PeerConfig, small: PeerConfig, folder: Path, *, build: bool) -> list[Row]:
    """Export and build the large model, and the small one in two depths."""
    name = name_attention(large)
    cost = export_in_process(large, folder / "large")
    rows = [
        Row(f"{name}: parameters, millions", count_parameters(build_original(large)) / 1e6),
        Row(f"{name}: export, s", cost.seconds, judge(cost.seconds, at_most=60)),
        Row(f"{name}: memory before, MiB", cost.start_mib),
        Row(f"{name}: peak memory, MiB", cost.peak_mib),
        Row(f"{name}: peak memory / weights", cost.multiple, judge(cost.multiple, at_most=3)),
    ]
    if build:
        try:
            rows += _measure_builds(large, small, folder)
        except BackendUnavailableError as error:
            print(f"Engines left out: {error}")
    seconds = time_command("inspect", str(folder / "large" / "bundle"))
    return [*rows, Row(f"{name}: flash-export inspect, s", seconds, judge(seconds, at_most=1.0))]


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = make_parser(__doc__)
    parser.add_argument("--no-build", dest="build", action="store_false", help="leave the engines out")
    options = parser.parse_args(arguments)
    large, small = (TINY, TINY) if options.quick else (LARGE, SMALL)
    seconds = time_command("--help")
    rows = [Row("flash-export --help, s", seconds, judge(seconds, at_most=0.3))]
    for causal in ATTENTIONS:
        with tempfile.TemporaryDirectory() as folder:
            models = replace(large, causal=causal), replace(small, causal=causal)
            rows += measure_costs(*models, Path(folder), build=options.build)
    print_table("Export", ("", "measured", "target"), [(row.name, row.value, row.target) for row in rows])
    write_json(options.json, {"model": asdict(large), "export_cost": [asdict(row) for row in rows]})


def _measure_builds(large: PeerConfig, small: PeerConfig, folder: Path) -> list[Row]:
    name = name_attention(large)
    seconds, layers = _build(folder / "large" / "bundle")
    one, two = (count_layers(replace(small, depth=depth), folder / f"depth-{depth}") for depth in (1, 2))
    return [
        Row(f"{name}: TensorRT-RTX build, s", seconds, judge(seconds, at_most=40)),
        Row(f"{name}: network layers", layers),
        Row(f"{name}: network layers a block", two - one, judge(two - one, at_most=120)),
    ]


def _build(bundle: Path) -> tuple[float, int]:
    """Return the seconds a build took and the layers of its network."""
    engine = build_engine(Bundle.open(bundle), options=BuildOptions(flavour=TENSORRT_RTX.name))
    return engine.build_seconds, engine.num_layers


if __name__ == "__main__":
    main()
