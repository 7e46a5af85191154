"""MossFormer2 in clearvoice's published sizes: our graph beside clearvoice's module, and beside its legacy export.

    python benchmarks/speech.py [--clearvoice FOLDER] [--kind NAME] [--no-build] [--no-int8] [--json FILE]

Weights are random. FOLDER is where ``pip install --no-deps --target FOLDER clearvoice==0.1.2`` put the package, if it
is not installed. Lengths are frames of enhancement and samples of separation. ``products`` is the share of
onnxruntime's time in matrix products and convolutions.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from torch import nn

from flash_export import (
    BuildOptions,
    ExportOptions,
    QuantizeOptions,
    build_engine,
    export_onnx,
    quantize_bundle,
)
from flash_export.config import TENSORRT_RTX
from flash_export.exporters.tracing import quiet_exporter
from flash_export.originals.clearvoice import DISTRIBUTION, FILES
from harness.models import LEGACY_OPSET, count_parameters
from harness.report import Figure, make_parser, print_figures, print_rows, write_json
from harness.sessions import bind_run, open_session
from harness.timing import QUICK_EFFORT, Effort, time_alternating
from profile_graph import read_nodes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Feeds = Mapping[str, np.ndarray]

PRODUCTS = ("MatMul", "Gemm", "FusedMatMul", "Conv", "FusedConv", "ConvTranspose")
PROFILED_RUNS = 6
INT8_BUDGET = 0.05  # of the energy: random weights of many blocks make much of rounding


@dataclass(frozen=True)
class Kind:
    """One of the two models."""

    name: str
    input_name: str
    output_name: str
    lengths: tuple[int, ...]
    agree_at: tuple[int, ...]  # lengths at which outputs are compared
    max_seq_len: int
    arguments: dict[str, Any]
    build: Callable[[Any, int], nn.Module]  # given clearvoice's modules and the number of blocks


@dataclass(frozen=True)
class Row:
    """Times at one length, in milliseconds, and how many times as fast as the others our graph is."""

    kind: str
    length: int
    ours_ms: float
    int8_ms: float | None
    legacy_ms: float
    eager_ms: float
    against_legacy: float
    against_eager: float
    products: float


class Enhancement(nn.Module):
    """clearvoice's network of enhancement, with one output."""

    def __init__(self, modules: Any, depth: int) -> None:
        """Create it with random weights."""
        super().__init__()
        self.mossformer = modules[0].MossFormer_MaskNet(180, 512, 961, num_blocks=depth)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the mask."""
        return self.mossformer(features.transpose(1, 2))


class Separation(nn.Module):
    """clearvoice's model of separation, with one output."""

    def __init__(self, modules: Any, depth: int) -> None:
        """Create it with random weights."""
        super().__init__()
        model = modules[3].MossFormer(512, 512, num_blocks=depth, kernel_size=16)
        self.enc, self.mask_net, self.dec = model.enc, model.mask_net, model.dec
        self._call = [type(model).forward, model]  # in a list, so that its weights are not there twice

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        """Return the waveforms of the speakers."""
        function, model = self._call
        return torch.stack(function(model, waveform), dim=1)


KINDS = (
    Kind(
        *("enhancement", "features", "mask", (200, 1000), (1, 17, 200, 246, 255, 256, 257, 400, 777, 2000), 4096),
        {"group_size": 256},
        Enhancement,
    ),
    Kind(
        *("separation", "waveform", "sources", (8000, 32000), (24, 31, 4000, 16000, 32001, 320000), 400_000),
        {"group_size": 256, "sampling_rate": 16000},
        Separation,
    ),
)


def build_original(kind: Kind, modules: Any, depth: int) -> nn.Module:
    """Build clearvoice's module with random weights whose attention is not negligible."""
    torch.manual_seed(0)
    model = kind.build(modules, depth).eval().requires_grad_(requires_grad=False)
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            parameter.normal_(1.0, 0.1)
    return model


def draw(kind: Kind, length: int) -> Feeds:
    """Return an input of a length."""
    shape = (1, length, 180) if kind.name == "enhancement" else (1, length)
    values = np.random.default_rng(length).standard_normal(shape, dtype=np.float32)
    return {kind.input_name: values if kind.name == "enhancement" else 0.1 * values}


def export_legacy(kind: Kind, model: nn.Module, path: Path, length: int) -> Path:
    """Export clearvoice's module with torch's TorchScript exporter, at a length that is no multiple of the chunk."""
    (example,) = draw(kind, length).values()
    sequence = {0: "batch", 1: "seq"}
    output = sequence if kind.name == "enhancement" else {0: "batch", 2: "seq"}
    with quiet_exporter():
        torch.onnx.export(
            model,
            (torch.from_numpy(example),),
            str(path),
            dynamo=False,
            opset_version=LEGACY_OPSET,
            input_names=[kind.input_name],
            output_names=[kind.output_name],
            dynamic_axes={kind.input_name: sequence, kind.output_name: output},
        )
    return path


def measure_products(path: Path, feeds: Feeds, folder: Path) -> float:
    """Return the share of the time of all nodes that products and convolutions take."""
    session = open_session(path, enable_profiling=True, profile_file_prefix=str(folder / "trace"))
    for _ in range(PROFILED_RUNS):
        session.run(None, dict(feeds))
    nodes = read_nodes(json.loads(Path(session.end_profiling()).read_text()))
    inside = sum(node.time_ms for node in nodes if node.operator.removesuffix("_token") in PRODUCTS)
    return inside / sum(node.time_ms for node in nodes)


def measure_agreement(kind: Kind, model: nn.Module, path: Path, lengths: tuple[int, ...]) -> float:
    """Return the largest error of the graph, as a multiple of that of clearvoice's own module in fp32."""
    session, worst = open_session(path), 0.0
    for length in lengths:
        feeds = draw(kind, length)
        (example,) = (torch.from_numpy(values) for values in feeds.values())
        eager = model(example).numpy()
        exact = model.double()(example.double()).numpy()
        model.float()
        (found,) = session.run(None, dict(feeds))
        worst = max(worst, float(np.abs(found - exact).max() / np.abs(eager - exact).max()))
    return worst


def measure(kind: Kind, modules: Any, *, quick: bool, build: bool, int8: bool) -> tuple[list[Row], list[Figure]]:
    """Export, compare and time one of the models."""
    depth = 1 if quick else 24
    lengths, agree_at = (kind.agree_at[2:3], kind.agree_at[1:2]) if quick else (kind.lengths, kind.agree_at)
    effort = QUICK_EFFORT if quick else Effort(rounds=5)
    model, figures = build_original(kind, modules, depth), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save({"model": model.state_dict()}, folder / "model.pt")
        np.savez(folder / "data.npz", **dict(draw(kind, kind.agree_at[3])))  # type: ignore[arg-type]
        print(f"{kind.name}: exporting ...", flush=True)
        bundle = export_onnx(
            folder / "model.pt",
            folder / "bundle",
            options=ExportOptions(max_seq_len=kind.max_seq_len),
            config=kind.arguments,
            heldout_file=folder / "data.npz",
        )
        graphs = {"ours": bundle.get_graph_path()}
        if int8:
            options = QuantizeOptions(scheme="int8", budget=INT8_BUDGET)
            graphs["int8"] = quantize_bundle(bundle, folder / "int8", options=options).get_graph_path()
        legacy = export_legacy(kind, build_original(kind, modules, depth), folder / "legacy.onnx", kind.agree_at[2])
        graphs["legacy"] = legacy
        counts = [len(onnx.load(graphs[name]).graph.node) for name in ("ours", "legacy")]
        print(f"{kind.name}: comparing at {', '.join(map(str, agree_at))} ...", flush=True)
        error = measure_agreement(kind, model, bundle.get_graph_path(), agree_at)
        label = kind.name
        figures += [
            Figure(f"{label}: parameters, millions", count_parameters(model) / 1e6),
            Figure.judge(f"{label}: nodes", counts[0], at_most=3500),
            Figure(f"{label}: nodes of the legacy export", counts[1]),
            Figure.judge(f"{label}: error as a multiple of clearvoice's own", error, at_most=8),
        ]
        if build:
            engine = build_engine(bundle, options=BuildOptions(flavour=TENSORRT_RTX.name)).engine
            figures += [
                Figure.judge(f"{label}: TensorRT-RTX layers", engine.num_layers, at_most=8000),
                Figure.judge(f"{label}: TensorRT-RTX build, s", engine.build_seconds, at_most=20),
            ]
        print(f"{kind.name}: timing ...", flush=True)
        rows = [_time(kind, model, graphs, length, effort, folder) for length in lengths]
    return rows, figures


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = make_parser(__doc__)
    parser.add_argument("--clearvoice", type=Path, metavar="FOLDER")
    parser.add_argument("--kind", choices=[kind.name for kind in KINDS], help="one of the models alone")
    parser.add_argument("--no-build", dest="build", action="store_false", help="leave the engines out")
    parser.add_argument(
        "--no-int8", dest="int8", action="store_false", help="leave int8 out, which takes long to choose"
    )
    options = parser.parse_args(arguments)
    if options.clearvoice is not None:
        sys.path.insert(0, str(options.clearvoice))
    modules, _ = FILES.load()
    rows: list[Row] = []
    figures: list[Figure] = []
    for kind in KINDS:
        if options.kind in (None, kind.name):
            build = options.build and not options.quick
            found = measure(kind, modules, quick=options.quick, build=build, int8=options.int8)
            rows, figures = rows + found[0], figures + found[1]
    columns = {"model": "kind", "length": "length", "ours, ms": "ours_ms", "int8, ms": "int8_ms"}
    columns |= {"legacy, ms": "legacy_ms", f"{DISTRIBUTION}, ms": "eager_ms", "times legacy": "against_legacy:.2f"}
    print_rows("Speed", rows, {**columns, "times eager": "against_eager:.2f", "products": "products:.0%"})
    print_figures("Size and agreement", figures)
    write_json(options.json, {"speeds": list(map(asdict, rows)), "figures": list(map(asdict, figures))})


def _time(kind: Kind, model: nn.Module, graphs: Mapping[str, Path], length: int, effort: Effort, folder: Path) -> Row:
    feeds = draw(kind, length)
    (example,) = (torch.from_numpy(values) for values in feeds.values())
    runs = {name: bind_run(open_session(path), feeds) for name, path in graphs.items()}
    timings = time_alternating({**runs, "eager": lambda: model(example)}, effort)
    times = timings.medians_ms
    return Row(
        *(kind.name, length, times["ours"], times.get("int8"), times["legacy"], times["eager"]),
        timings.compute_ratio("legacy", "ours"),
        timings.compute_ratio("eager", "ours"),
        measure_products(graphs["ours"], feeds, folder),
    )


if __name__ == "__main__":
    main()
