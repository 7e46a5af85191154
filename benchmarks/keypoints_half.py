"""What half precision costs a SimCC head in pixels, with and without fp32 islands.

    python benchmarks/keypoints_half.py [--json FILE] [--quick]

The weights are random, in the sizes of RTMPose-m: no trained head is at hand. The classifiers' weights are smooth along
the bins, so that scores have peaks some pixels wide, as trained ones have; features are normal. Graphs run on the CPU
with the rounding of a GPU spelled out. "Taken back" shows what is fp32 in every half graph, and why.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from flash_export import Bundle, ExportOptions, export_onnx
from flash_export.data.sources import RandomSource
from flash_export.errors import ConfigError
from flash_export.exporters.lowering.rtmpose_gau import Classifiers
from flash_export.exporters.lowering.shared_modules import LoweredScaleNorm
from flash_export.models.rtmpose_gau import RtmposeGauConfig, RtmposeGauModel, SimccHead
from flash_export.runtime.ort import OrtRunner
from flash_export.tasks.base import join_comparisons
from flash_export.tasks.keypoints import PIXELS, WITHIN, KeypointsTask
from harness.report import make_parser, print_rows, write_json
from harness.undone_steps import replace_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from harness.undone_steps import Replacements

HEAD = SimccHead(in_channels=768, map_width=6, map_height=8, kernel_size=7, image_width=192, image_height=256)
CONFIG = RtmposeGauConfig(num_keypoints=17, dim=256, hidden_dim=512, out_dim=256, qk_dim=128, head=HEAD)
TINY = replace(CONFIG, dim=16, hidden_dim=32, out_dim=16, qk_dim=8, head=replace(HEAD, in_channels=4))
BATCH = 50
PEAK_BINS = 10.0  # standard deviation along the bins: the labels of RTMPose-m are 9.8 and 11.3 wide
# Factors of the convolution, and of queries and keys, which make attention weights of the fourth power.
SCALES = {"as initialised": (1.0, 1.0), "maps x 3000": (3000.0, 1.0), "queries and keys x 4": (1.0, 4.0)}
SCALES |= {"queries and keys x 10": (1.0, 10.0)}


@dataclass(frozen=True)
class Row:
    """What a graph gives beside the fp32 model; None where that is not finite, or not exported."""

    model: str
    graph: str
    pixels: float | None
    within: float | None
    islands: int | None


def build_model(config: RtmposeGauConfig, maps: float, heads: float) -> RtmposeGauModel:
    """Make a model whose values have a size of about 1 at factors of 1."""
    torch.manual_seed(0)
    model = RtmposeGauModel(config).requires_grad_(requires_grad=False).eval()
    linear: Any = model.mlp[1]
    for weight in (model.final_layer.weight, linear.weight, model.gau.uv.weight, model.gau.o.weight):
        torch.nn.init.normal_(weight, std=1 / math.sqrt(weight[0].numel()))
    model.final_layer.weight.mul_(maps)
    torch.nn.init.normal_(model.gau.gamma, std=heads)
    torch.nn.init.normal_(model.gau.beta, std=0.1)
    for classifier in (model.cls_x, model.cls_y):
        classifier.weight.copy_(smooth_bins(*classifier.weight.shape))
    return model


def smooth_bins(bins: int, dim: int) -> Tensor:
    """Return white noise that was smoothed along the bins by a Gaussian."""
    reach = 4 * int(PEAK_BINS)
    kernel = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * PEAK_BINS**2))
    noise = torch.randn(dim, 1, bins + 2 * reach)
    return F.conv1d(noise, (kernel / kernel.norm())[None, None])[:, 0].mT / math.sqrt(dim)


def compare(model: RtmposeGauModel, bundle: Bundle, batches: int) -> tuple[float, float] | None:
    """Return the mean distance in pixels and the share within half a pixel; None where a score is not finite."""
    interface, task = model.config.interface, KeypointsTask()
    source, parts = RandomSource(interface), []
    counted = np.ones((BATCH, model.config.num_keypoints), dtype=np.bool_)
    with OrtRunner(bundle.get_graph(), bundle.get_graph_path()) as runner:
        for seed in range(batches):
            features = source.draw(BATCH, model.config.num_keypoints, seed=seed).arrays["features"]
            scores: Any = model(torch.from_numpy(features))
            expected = {spec.name: x.numpy() for spec, x in zip(interface.outputs, scores, strict=True)}
            actual = runner.run({"features": features})
            if not all(np.isfinite(values).all() for values in actual.values()):
                return None
            parts.append(task.compare(interface, expected, actual, counted))
    measures = join_comparisons(parts).measures
    return measures[PIXELS.name], measures[WITHIN.name]


def norm_in_half(self: Any, x: Tensor) -> Tensor:
    """Normalise in the dtype of the input, as a converter does that knows no norms."""
    return x / (x * x).sum(dim=-1, keepdim=True).sqrt().clamp(min=self.floor)


def classify_in_half(self: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Multiply in half precision."""
    hidden = hidden.half()
    return (hidden @ self.x_weight.half()).float(), (hidden @ self.y_weight.half()).float()


GRAPHS: dict[str, tuple[ExportOptions, Replacements]] = {
    "fp32": (ExportOptions(), {}),
    "fp16, islands minimal": (ExportOptions(precision="fp16", islands="minimal"), {}),
    "fp16, islands auto": (ExportOptions(precision="fp16"), {}),
    "fp16, islands all": (ExportOptions(precision="fp16", islands="all"), {}),
    "bf16": (ExportOptions(precision="bf16"), {}),
    "bf16, islands all": (ExportOptions(precision="bf16", islands="all"), {}),
    "fp16, norms taken back": (ExportOptions(precision="fp16"), {(LoweredScaleNorm, "forward"): norm_in_half}),
    "fp16, scores taken back": (ExportOptions(precision="fp16"), {(Classifiers, "forward"): classify_in_half}),
}


def measure(config: RtmposeGauConfig, folder: Path, batches: int) -> Iterator[Row]:
    """Yield a row for each model and graph."""
    for name, (maps, heads) in SCALES.items():
        model = build_model(config, maps, heads)
        checkpoint = folder / f"{maps:g}-{heads:g}"
        model.save_pretrained(checkpoint)
        for index, (graph, (options, taken_back)) in enumerate(GRAPHS.items()):
            try:
                with replace_names(taken_back):
                    bundle = export_onnx(checkpoint, checkpoint / f"{index}", options=options)
            except ConfigError:
                yield Row(name, graph, None, None, None)
                continue
            facts = bundle.manifest.precision
            pixels, within = compare(model, bundle, batches) or (None, None)
            yield Row(name, graph, pixels, within, len(facts.islands) if facts else 0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    options = make_parser(__doc__).parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        rows = list(measure(TINY if options.quick else CONFIG, Path(folder), 1 if options.quick else 10))
    columns = {"model": "model", "graph": "graph", "mean px": "pixels", "within 0.5 px": "within:.2%"}
    title = "keypoints of a half-precision head beside those of the model"
    print_rows(title, rows, columns | {"islands": "islands"})
    write_json(options.json, {"keypoints_half": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
