"""RTMPose's unit and head, exported: lowered, traced, in half precision and built, each against what came before."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flash_export.bundle.bundle import Bundle
from flash_export.bundle.manifest import AxisRange, ProfileShapes
from flash_export.config import BuildOptions, ExportOptions
from flash_export.data.sources import Data, RandomSource
from flash_export.errors import ConfigError
from flash_export.exporters.engine import build_engine
from flash_export.exporters.export import export_onnx
from flash_export.exporters.islands import choose_islands
from flash_export.exporters.lowering.precision import Precision
from flash_export.exporters.lowering.registry import lower_model
from flash_export.exporters.lowering.rtmpose_gau import RTMPOSE_GAU
from flash_export.models.rtmpose_gau import RtmposeGauConfig, RtmposeGauModel, SimccHead
from flash_export.runtime.ort import OrtRunner
from tests.models.mmpose_release import import_mmpose

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor


RELATIVE_TOLERANCE = 1e-5  # of the output's scale: fp32 rounding in another order
HALF_ROUNDING = 8e-3  # of the output's scale: some units in the last place, accumulated

BLOCK = RtmposeGauConfig(num_keypoints=17, dim=24, hidden_dim=48, out_dim=24, qk_dim=8)
# Maps whose sizes, and batches that a traced size must not be taken for, all above what counts axes.
HEAD = SimccHead(in_channels=5, map_width=12, map_height=11, kernel_size=7, image_width=38, image_height=40)
CONFIGS = {
    "block": BLOCK,
    "block of other width": replace(BLOCK, out_dim=10, act_fn="relu", num_keypoints=133),
    "block with all": replace(BLOCK, bias=True, rel_bias=True, rotary=True, eps=0.3),
    "one keypoint": replace(BLOCK, num_keypoints=1, rotary=True),
    "head": replace(BLOCK, head=HEAD),
    "head with relative bias": replace(BLOCK, rel_bias=True, head=HEAD),
    "head with all": replace(BLOCK, rel_bias=True, rotary=True, head=replace(HEAD, kernel_size=1, bins_per_pixel=1.3)),
}
# Rotary is four nodes, a relative bias one, biases of the linear layers two; published heads have none of these.
NODES = {
    "block": 22,
    "block of other width": 19,
    "block with all": 29,
    "one keypoint": 26,
    "head": 22,
    "head with relative bias": 23,
    "head with all": 27,
}


def build_model(config: RtmposeGauConfig, seed: int = 0) -> RtmposeGauModel:
    """Make a model whose keypoints attend to each other and whose gains are not 1."""
    torch.manual_seed(seed)
    model = RtmposeGauModel(config).requires_grad_(requires_grad=False).eval()
    for parameter in model.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    model.gau.beta.add_(1)  # scores that cancel to next to nothing would be all rounding
    return model


def draw_features(config: RtmposeGauConfig, batch: int, seed: int = 1) -> Tensor:
    interface = config.interface
    return torch.from_numpy(RandomSource(interface).draw(batch, config.num_keypoints, seed=seed).arrays["features"])


def list_outputs(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def compute_error(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> float:
    """Return the largest error of an output as a fraction of its scale; NaN if there is one."""
    errors = [(a - b).abs().max() / a.abs().max().clamp(min=1e-30) for a, b in zip(expected, actual, strict=True)]
    return float(torch.stack(errors).max())


def run_graph(bundle: Bundle, features: Tensor) -> list[Tensor]:
    with OrtRunner(bundle.get_graph(), bundle.get_graph_path()) as runner:
        return [torch.from_numpy(values) for values in runner.run({"features": features.numpy()}).values()]


def export(model: RtmposeGauModel, folder: Path, **options: Any) -> Bundle:
    model.save_pretrained(folder / "checkpoint")
    return export_onnx(folder / "checkpoint", folder / "bundle", options=ExportOptions(**options))


heads = st.none() | st.builds(
    SimccHead,
    in_channels=st.integers(1, 5),
    map_width=st.integers(1, 4),
    map_height=st.integers(1, 4),
    kernel_size=st.sampled_from((1, 3, 7)),
    image_width=st.integers(1, 9),
    image_height=st.integers(1, 9),
    bins_per_pixel=st.sampled_from((1.0, 1.3, 2.0)),
)
configs = st.builds(
    lambda keypoints, rel_bias, **rest: RtmposeGauConfig(
        num_keypoints=keypoints, rel_bias=rel_bias and keypoints > 1, **rest
    ),
    keypoints=st.integers(1, 30),
    rel_bias=st.booleans(),
    dim=st.sampled_from((1, 7, 16)),
    hidden_dim=st.sampled_from((3, 16)),
    out_dim=st.sampled_from((7, 16)),
    qk_dim=st.sampled_from((2, 6, 32)),
    act_fn=st.sampled_from(("silu", "relu")),
    bias=st.booleans(),
    rotary=st.booleans(),
    eps=st.sampled_from((1e-5, 0.5)),
    head=heads,
)


@settings(max_examples=50, deadline=None)
@given(configs, st.integers(1, 3), st.integers(0, 2**16))
def test_lowered_model_is_the_reference(config: RtmposeGauConfig, batch: int, seed: int) -> None:
    model, features = build_model(config, seed), draw_features(config, batch, seed)
    expected, actual = list_outputs(model(features)), list_outputs(lower_model(model)(features))
    assert compute_error(expected, actual) <= RELATIVE_TOLERANCE


SLOW = {"block of other width", "one keypoint", "head with relative bias"}


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in CONFIGS]
)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Bundle, RtmposeGauModel]:
    model = build_model(CONFIGS[request.param])
    return request.param, export(model, tmp_path_factory.mktemp("rtmpose")), model


def test_graph_is_the_reference_for_every_batch(exported: tuple[str, Bundle, RtmposeGauModel]) -> None:
    _, bundle, model = exported
    for batch in (1, 2, 13, 64):
        features = draw_features(model.config, batch)
        assert compute_error(list_outputs(model(features)), run_graph(bundle, features)) <= RELATIVE_TOLERANCE


def test_blocks_stay_within_the_node_budget(exported: tuple[str, Bundle, RtmposeGauModel]) -> None:
    name, bundle, model = exported
    graph = onnx.load(bundle.get_graph_path()).graph
    scopes = Counter(node.name.partition("/")[0].partition(".norm")[0] for node in graph.node)
    assert set(scopes) == ({"layers.0"} if model.config.head is None else {"layers.0", "maps", "classifiers"})
    assert scopes["layers.0"] == NODES[name]
    assert scopes["maps"] + scopes["classifiers"] in (0, 10)


def test_graph_holds_no_shape_arithmetic(exported: tuple[str, Bundle, RtmposeGauModel]) -> None:
    graph = onnx.load(exported[1].get_graph_path()).graph
    operators = {node.op_type for node in graph.node}
    assert not operators & {"Shape", "Range", "Gather", "Sin", "Cos", "Expand", "Where", "Cast", "Squeeze", "Unsqueeze"}


def test_manifest_says_what_the_graph_takes(exported: tuple[str, Bundle, RtmposeGauModel]) -> None:
    _, bundle, model = exported
    graph, keypoints = bundle.get_graph(), model.config.num_keypoints
    interface = model.config.interface
    assert (graph.inputs, graph.outputs) == (interface.inputs, interface.outputs)
    assert Bundle.open(bundle.path).manifest.interface == interface  # as it was written and read
    assert graph.axes == {"batch": AxisRange(1, 64), "seq": AxisRange(keypoints, keypoints)}
    assert bundle.manifest.model is not None
    flops = 2 * model.config.count_macs(keypoints) // keypoints
    assert bundle.manifest.model.flops_per_token == {str(keypoints): flops}


def test_marks_are_the_quantities_of_the_reference(exported: tuple[str, Bundle, RtmposeGauModel]) -> None:
    _, bundle, model = exported
    features = draw_features(model.config, 2)
    readings: dict[str, Tensor] = {}
    with model.read_probes(readings.__setitem__):
        model(features)
    probes = {probe.name: probe for probe in bundle.read_probes().probes}
    outputs = {spec.name for spec in model.config.interface.outputs}
    assert probes.keys() == readings.keys() | outputs
    inner = [probes[name].tensor for name in readings if probes[name].tensor not in outputs]
    with OrtRunner(bundle.get_graph(), bundle.get_graph_path(), inner_values=inner) as runner:
        values = runner.run({"features": features.numpy()})
    for name, expected in readings.items():
        actual = torch.from_numpy(values[probes[name].tensor]) * probes[name].scale
        assert compute_error([expected], [actual]) <= RELATIVE_TOLERANCE, name


def test_graph_is_mmpose_itself(tmp_path: Path) -> None:
    """A state dict of mmpose's own head becomes a graph that gives what that head gives."""
    arguments: dict[str, Any] = {
        "in_channels": 16,
        "out_channels": 17,
        "input_size": (48, 64),
        "in_featuremap_size": (6, 8),
        "final_layer_kernel_size": 7,
        "gau_cfg": {
            "hidden_dims": 32,
            "s": 16,
            "expansion_factor": 2,
            "dropout_rate": 0.0,
            "drop_path": 0.0,
            "act_fn": "SiLU",
            "use_rel_bias": True,
            "pos_enc": True,
        },
    }
    torch.manual_seed(0)
    theirs = import_mmpose().head(**arguments).eval().requires_grad_(requires_grad=False)
    torch.save({f"head.{name}": tensor for name, tensor in theirs.state_dict().items()}, tmp_path / "rtmpose.pth")
    bundle = export_onnx(tmp_path / "rtmpose.pth", tmp_path / "bundle", family="rtmpose_gau", config=arguments)
    features = torch.randn(3, 16, 8, 6)
    assert compute_error(theirs((features,)), run_graph(bundle, features)) <= RELATIVE_TOLERANCE


def test_fixed_batch_has_no_symbolic_axis(tmp_path: Path) -> None:
    model = build_model(CONFIGS["head"])
    bundle = export(model, tmp_path, batch=20, opset=18)
    features = draw_features(model.config, 20)
    assert bundle.get_graph().inputs[0].shape == (20, 5, 11, 12)
    assert compute_error(model(features), run_graph(bundle, features)) <= RELATIVE_TOLERANCE


@pytest.mark.parametrize(
    ("name", "precision", "rounding"),
    [
        ("head", "fp16", HALF_ROUNDING),
        pytest.param("block with all", "fp16", HALF_ROUNDING, marks=pytest.mark.slow),
        pytest.param("head", "bf16", 8 * HALF_ROUNDING, marks=pytest.mark.slow),
    ],
)
def test_half_graph_is_the_reference_up_to_rounding(name: str, precision: str, rounding: float, tmp_path: Path) -> None:
    model = build_model(CONFIGS[name])
    bundle = export(model, tmp_path, precision=precision)
    features = draw_features(model.config, 3)
    error = compute_error(list_outputs(model(features)), run_graph(bundle, features))
    assert 0 < error < rounding
    facts = bundle.manifest.precision
    assert facts is not None
    assert (facts.islands, facts.horizon) == ((), None)
    assert (facts.data, facts.seq_lens) == (("random inputs", (17,)) if precision == "fp16" else (None, ()))


def test_all_islands_leave_the_convolution_in_half() -> None:
    model = build_model(CONFIGS["head"])
    precision = choose_islands(
        model, Data(RandomSource(model.config.interface)), ExportOptions(precision="fp16", islands="all")
    ).precision
    lowered = lower_model(model, precision)
    half = {name for name, weight in lowered.state_dict().items() if weight.dtype == torch.float16}
    assert half == {"maps.conv_weight", "maps.conv_bias"}
    features = draw_features(model.config, 3)
    plain = compute_error(model(features), lower_model(model, Precision("fp16"))(features))
    assert 0 < compute_error(model(features), lowered(features)) < plain
    # A block alone has nothing around it, and no island there.
    names = RTMPOSE_GAU.name_growing(BLOCK)
    assert {name.rpartition(".")[0] for name in names} == {"layers.0"}


def test_scores_are_fp32_in_half_precision() -> None:
    """Next to a peak two bins of fp16 would tie: the keypoint would be the first of them."""
    model = build_model(CONFIGS["head"])
    bins = torch.arange(model.config.head.num_bins[0])  # type: ignore[union-attr]
    model.cls_x.weight.data[:] = (1 - 1e-5 * (bins - 30) ** 2)[:, None]
    features = draw_features(model.config, 3)
    scores, _ = lower_model(model, Precision("fp16"))(features)
    expected, _ = model(features)
    assert torch.equal(scores.argmax(dim=-1), expected.argmax(dim=-1))
    assert not torch.equal(scores.half().argmax(dim=-1), expected.argmax(dim=-1))


def scale_maps(model: RtmposeGauModel) -> None:
    model.final_layer.weight.data *= 1e5


def scale_values(model: RtmposeGauModel) -> None:
    hidden_dim = model.config.hidden_dim
    model.gau.uv.weight.data[hidden_dim : 2 * hidden_dim] *= 1e6


def scale_queries(model: RtmposeGauModel) -> None:
    """Make queries and keys alike, so that scores are positive, and large."""
    model.gau.gamma.data[:] = 60 * model.gau.gamma.data[0]


def scale_embedding(model: RtmposeGauModel) -> None:
    linear: Any = model.mlp[1]
    linear.weight.data *= 1e5


@pytest.mark.parametrize(
    ("scale", "island"),
    [
        (scale_maps, "maps"),
        (scale_values, "layers.0.projection"),
        (scale_queries, "layers.0.weights"),
        (scale_embedding, "residual"),
    ],
    ids=["maps", "values", "queries", "embedding"],
)
def test_what_overflows_becomes_an_island(scale: Any, island: str) -> None:
    model = build_model(CONFIGS["head"])
    scale(model)
    features = draw_features(model.config, 2)
    expected = model(features)
    assert not all(values.isfinite().all() for values in lower_model(model, Precision("fp16"))(features))
    choice = choose_islands(
        model, Data(RandomSource(model.config.interface)), ExportOptions(precision="fp16", max_seq_len=4)
    )
    reasons = {found.name: found.reason for found in choice.facts.islands}
    assert "at 17 keypoints, more than a quarter of fp16's 65504" in reasons[island]
    assert compute_error(expected, lower_model(model, choice.precision)(features)) < 2 * HALF_ROUNDING
    with pytest.raises(
        ConfigError, match=r"17 keypoints are beyond the overflow horizon .*; use --islands auto, or bf16"
    ):
        choose_islands(
            model, Data(RandomSource(model.config.interface)), ExportOptions(precision="fp16", islands="minimal")
        )


def test_norm_is_taken_in_fp32_whatever_is_half() -> None:
    """Maps of up to fp16's largest number have squares far beyond it."""
    model = build_model(CONFIGS["head"])
    features = draw_features(model.config, 2)
    model.final_layer.weight.data *= 1e4 / float(model.final_layer(features).abs().max())
    torch.nn.init.zeros_(cast("Tensor", model.final_layer.bias))
    maps = model.final_layer(features)
    assert 65504 / 10 < float(maps.abs().max()) < 65504
    lowered = lower_model(model, Precision("fp16"))
    assert compute_error(model(features), lowered(features)) < HALF_ROUNDING


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("head", {}, marks=pytest.mark.slow),  # tests/cli/test_rtmpose.py builds a free and a fixed one
        pytest.param("head", {"batch": 3}, marks=pytest.mark.slow),
        ("block with all", {}),
        ("head", {"precision": "fp16"}),
    ],
    ids=["head", "head-fixed-batch", "block", "head-fp16"],
)
def test_engines_are_built(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    bundle = export(build_model(CONFIGS[name]), tmp_path, **options)
    engine = build_engine(bundle, options=BuildOptions(compute_capabilities=("8.9",))).engine
    graph = bundle.get_graph()
    assert [spec.shape for spec in (*engine.inputs, *engine.outputs)] == [
        spec.shape for spec in (*graph.inputs, *graph.outputs)
    ]
    smallest, largest = (3, 3) if "batch" in options else (1, 8)
    rest = [int(size) for size in graph.inputs[0].shape[1:]]
    assert engine.profiles[0]["features"] == ProfileShapes((smallest, *rest), (smallest, *rest), (largest, *rest))
    assert "float64" not in engine.layer_dtypes
    assert ("float16" in engine.layer_dtypes) == ("precision" in options)
