"""JunnYu's FLASH-Quad, exported: lowered, traced, in half precision and built, each against what came before."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

from flash_export.bundle.bundle import Bundle
from flash_export.config import BuildOptions, ExportOptions
from flash_export.data.sources import Data, RandomSource
from flash_export.errors import ConfigError, InputError
from flash_export.exporters.engine import build_engine
from flash_export.exporters.export import export_onnx
from flash_export.exporters.islands import choose_islands
from flash_export.exporters.lowering.flash_quad import FLASH_QUAD
from flash_export.exporters.lowering.precision import Precision
from flash_export.exporters.lowering.registry import lower_model
from flash_export.models.flash_quad import FlashQuadConfig, FlashQuadModel
from flash_export.runtime.ort import OrtRunner
from tests.models.junnyu_names import make_flash_quad
from tests.rounding import measure_rounding

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from flash_export.models.flash_quad import FlashQuadLayer

RELATIVE_TOLERANCE = 1e-5  # of the output's scale: fp32 rounding in another order
HALF_ROUNDING = 4e-3  # of the output's scale: some units in the last place, accumulated
VOCAB_SIZE = 29
NODES = 40  # of a block: 13, and 5 of the norm, 8 of the projection, 7 of queries, 7 of keys
TRT_LAYERS = 225  # of the whole network of CONFIG

CONFIG = FlashQuadConfig(VOCAB_SIZE, dim=24, depth=2, hidden_dim=48, qk_dim=8, max_positions=64)


def make_batch(lengths: list[int], seed: int = 1) -> tuple[Tensor, Tensor]:
    """Return token ids, those of padding random too, and the mask."""
    torch.manual_seed(seed)
    input_ids = torch.randint(0, VOCAB_SIZE, (len(lengths), max(lengths)))
    return input_ids, (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


def compute_error(expected: Tensor, actual: Tensor, mask: Tensor | None = None) -> float:
    """Return the largest error as a fraction of the scale, of what is not masked; NaN if there is one."""
    if mask is not None:
        expected, actual = expected[mask.bool()], actual[mask.bool()]
    return float((expected - actual).abs().max() / expected.abs().max().clamp(min=1e-30))


def run_graph(bundle: Bundle, *inputs: Tensor) -> Tensor:
    graph = bundle.get_graph()
    arrays = {spec.name: values.numpy() for spec, values in zip(graph.inputs, inputs, strict=True)}
    with OrtRunner(graph, bundle.get_graph_path()) as runner:
        return torch.from_numpy(runner.run(arrays)["logits"])


def export(model: FlashQuadModel, folder: Path, **options: Any) -> Bundle:
    model.save_pretrained(folder / "checkpoint")
    return export_onnx(folder / "checkpoint", folder / "bundle", options=ExportOptions(**options))


configs = st.builds(
    FlashQuadConfig,
    vocab_size=st.just(VOCAB_SIZE),
    dim=st.sampled_from((2, 16)),
    depth=st.integers(1, 3),
    hidden_dim=st.sampled_from((3, 16)),
    qk_dim=st.sampled_from((2, 6, 32)),
    max_positions=st.sampled_from((40, 41, 512)),
    num_token_types=st.integers(1, 3),
    norm_type=st.sampled_from(("scalenorm", "layernorm")),
    norm_eps=st.sampled_from((1e-5, 0.1)),
)


@settings(max_examples=40, deadline=None)
@given(configs, st.lists(st.sampled_from((1, 2, 3, 17, 40)), min_size=1, max_size=3), st.integers(0, 2**16))
def test_lowered_model_is_the_reference(config: FlashQuadConfig, lengths: list[int], seed: int) -> None:
    model = make_flash_quad(config, seed)
    lowered = lower_model(model)
    input_ids, mask = make_batch(lengths, seed)
    model = model.double()
    # A norm of two channels magnifies what was rounded before it, in the reference as well.
    accepted = max(RELATIVE_TOLERANCE, 20 * measure_rounding(model, lambda one: one(input_ids), compute_error))
    assert compute_error(model(input_ids), lowered(input_ids)) <= accepted
    assert compute_error(model(input_ids, mask), lowered(input_ids, mask), mask) <= accepted


@pytest.fixture(scope="module")
def model() -> FlashQuadModel:
    return make_flash_quad(CONFIG)


@pytest.fixture(scope="module")
def bundle(model: FlashQuadModel, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(model, tmp_path_factory.mktemp("flash-quad"))


@pytest.mark.parametrize("lengths", [[1], [2], [63], [64], [40, 3, 1], [1, 1]])
def test_graph_is_the_reference_row_by_row(model: FlashQuadModel, bundle: Bundle, lengths: list[int]) -> None:
    input_ids, mask = make_batch(lengths)
    logits = run_graph(bundle, input_ids, mask)
    for row, length in enumerate(lengths):
        alone = model(input_ids[row : row + 1, :length])
        assert compute_error(alone, logits[row : row + 1, :length]) <= RELATIVE_TOLERANCE


@pytest.mark.parametrize("max_positions", [2, 512])
def test_fewest_and_most_positions_are_exported(max_positions: int, tmp_path: Path) -> None:
    model = make_flash_quad(replace(CONFIG, depth=1, max_positions=max_positions, norm_type="layernorm"))
    bundle = export(model, tmp_path)
    inputs = make_batch([max_positions])
    assert compute_error(model(*inputs), run_graph(bundle, *inputs)) <= RELATIVE_TOLERANCE


def test_row_of_padding_alone_is_finite_and_leaves_others_alone(model: FlashQuadModel, bundle: Bundle) -> None:
    input_ids, mask = make_batch([4, 4, 4])
    mask[1] = 0
    logits = run_graph(bundle, input_ids, mask)
    assert logits.isfinite().all()
    assert compute_error(model(input_ids, mask), logits, mask) <= RELATIVE_TOLERANCE


def test_graph_goes_as_far_as_the_positions_do(model: FlashQuadModel, bundle: Bundle, tmp_path: Path) -> None:
    assert (bundle.get_graph().axes["seq"].min, bundle.get_graph().axes["seq"].max) == (1, 64)
    with pytest.raises(InputError, match="seq_len=65 exceeds the graph's maximum 64"):
        run_graph(bundle, *make_batch([65]))
    with pytest.raises(ConfigError, match="max_seq_len=65 is above the 64 tokens that the model takes at most"):
        export(model, tmp_path, max_seq_len=65, precision="fp16")


def test_tables_do_not_depend_on_the_longest_sequence(model: FlashQuadModel, bundle: Bundle, tmp_path: Path) -> None:
    short = export(model, tmp_path, max_seq_len=5)
    assert short.get_graph().axes["seq"].max == 5
    graphs = [onnx.load(one.get_graph_path()).graph for one in (bundle, short)]
    shapes = [{tensor.name: tuple(tensor.dims) for tensor in graph.initializer} for graph in graphs]
    assert shapes[0] == shapes[1]
    assert shapes[0]["embedding.positions"] == (64, 24)
    assert shapes[0]["cos"] == shapes[0]["sin"] == (64, 8)
    assert [shapes[0][f"layers.{index}.bias_by_distance"] for index in (0, 1)] == [(127,), (127,)]


def test_blocks_stay_within_the_node_budget(bundle: Bundle, tmp_path: Path) -> None:
    graph = onnx.load(bundle.get_graph_path()).graph
    scopes = Counter(".".join(node.name.partition("/")[0].split(".")[:2]) for node in graph.node)
    assert scopes["layers.0"] == scopes["layers.1"] == NODES
    assert (scopes["embedding"] + scopes["embedding.norm"], scopes["head"] + scopes["head.norm"]) == (9, 11)
    assert scopes["graph"] <= 14
    model = make_flash_quad(replace(CONFIG, depth=1))
    unmasked = export(model, tmp_path, mask=False)
    nodes = [node.name for node in onnx.load(unmasked.get_graph_path()).graph.node]
    assert sum(name.startswith("layers.0") for name in nodes) == NODES - 1
    input_ids, _ = make_batch([7, 7])
    assert compute_error(model(input_ids), run_graph(unmasked, input_ids)) <= RELATIVE_TOLERANCE


def test_blocks_hold_no_shape_arithmetic(bundle: Bundle) -> None:
    graph = onnx.load(bundle.get_graph_path()).graph
    operators = {node.op_type for node in graph.node if node.name.startswith("layers.")}
    assert operators == {
        *("MatMul", "Sigmoid", "Mul", "Split", "Add", "Transpose", "Relu", "Gather"),
        *("ReduceMean", "Sqrt", "Div"),
    }


def test_every_reader_takes_the_graph(model: FlashQuadModel, bundle: Bundle) -> None:
    """ONNX's reference evaluator runs it, and onnxruntime's symbolic shape inference has a shape for every value."""
    graph = onnx.load(bundle.get_graph_path())
    inputs = make_batch([9, 5, 1])
    feeds = dict(zip(("input_ids", "attention_mask"), (one.numpy() for one in inputs), strict=True))
    (logits,) = ReferenceEvaluator(graph).run(None, feeds)
    assert compute_error(model(*inputs), torch.from_numpy(logits), inputs[1]) <= RELATIVE_TOLERANCE
    inferred = SymbolicShapeInference.infer_shapes(graph).graph
    shaped = {value.name for value in (*inferred.value_info, *inferred.output)}
    assert {output for node in inferred.node for output in node.output} <= shaped


def test_marks_are_the_quantities_of_the_reference(model: FlashQuadModel, bundle: Bundle) -> None:
    input_ids, _ = make_batch([6, 6])
    readings: dict[str, Tensor] = {}
    with model.read_probes(readings.__setitem__):
        model(input_ids)
    probes = {probe.name: probe for probe in bundle.read_probes().probes}
    assert probes.keys() == readings.keys() | {"logits"}
    inner = [probes[name].tensor for name in readings]
    with OrtRunner(bundle.get_graph(), bundle.get_graph_path(), inner_values=inner) as runner:
        values = runner.run({"input_ids": input_ids.numpy(), "attention_mask": torch.ones_like(input_ids).numpy()})
    for name, expected in readings.items():
        probe = probes[name]
        assert (probe.order, probe.length_power) == (None, 0)
        actual = torch.from_numpy(values[probe.tensor]) * probe.scale
        assert compute_error(expected, actual) <= RELATIVE_TOLERANCE, name
    assert probes["layers.1.q"].scale == 64


@pytest.fixture(scope="module")
def half_bundle(model: FlashQuadModel, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(model, tmp_path_factory.mktemp("flash-quad-half"), precision="fp16")


def test_half_graph_is_the_reference_up_to_rounding(model: FlashQuadModel, half_bundle: Bundle) -> None:
    input_ids, mask = make_batch([64, 3, 1])
    expected = model(input_ids, mask)
    assert 0 < compute_error(expected, run_graph(half_bundle, input_ids, mask), mask) < HALF_ROUNDING
    lowered = lower_model(model, Precision("bf16"))
    assert 0 < compute_error(expected, lowered(input_ids, mask), mask) < 8 * HALF_ROUNDING
    facts = half_bundle.manifest.precision
    assert facts is not None
    assert (facts.islands, facts.seq_lens[-1]) == ((), 64)


@pytest.mark.parametrize("scale", [0.02, 0.1])
def test_small_weights_of_many_keys_are_not_lost_in_half_precision(scale: float) -> None:
    """Untrained queries and biases, whose weights of 1e-4 and less are near the end of what fp16 has."""
    model = make_flash_quad(replace(CONFIG, max_positions=512))
    for layer in cast("list[FlashQuadLayer]", model.layers):
        layer.w[:] = scale * layer.w
        layer.gamma[:] = scale * layer.gamma
    input_ids, _ = make_batch([512])
    assert compute_error(model(input_ids), lower_model(model, Precision("fp16"))(input_ids)) < HALF_ROUNDING


def scale_values(layer: FlashQuadLayer) -> None:
    layer.uv.weight[48:96] *= 1e5


def scale_biases(layer: FlashQuadLayer) -> None:
    layer.w[:] = 300 * layer.w


@pytest.mark.parametrize(("scale", "island"), [(scale_values, "mixed"), (scale_biases, "weights")])
def test_what_overflows_becomes_an_island(scale: Callable[[FlashQuadLayer], None], island: str) -> None:
    model = make_flash_quad(replace(CONFIG, depth=1))
    for layer in cast("list[FlashQuadLayer]", model.layers):
        scale(layer)
    inputs = make_batch([40])
    assert not lower_model(model, Precision("fp16"))(*inputs).isfinite().all()
    data = Data(RandomSource(CONFIG.interface))
    choice = choose_islands(model, data, ExportOptions(precision="fp16"))
    assert f"layers.0.{island}" in {found.name for found in choice.facts.islands}
    assert lower_model(model, choice.precision)(*inputs).isfinite().all()
    with pytest.raises(ConfigError, match=r"beyond the overflow horizon of fp16 .*; use --islands auto"):
        choose_islands(model, data, ExportOptions(precision="fp16", islands="minimal"))


def test_all_islands_leave_projection_and_heads_in_half(model: FlashQuadModel) -> None:
    precision = Precision("fp16", islands=FLASH_QUAD.name_growing(CONFIG))
    half = {name for name, weight in lower_model(model, precision).state_dict().items() if weight.dtype == torch.half}
    projection = [f"projection.{value}{kind}" for value in ("", "value_") for kind in ("weight", "bias")]
    factors = ("gamma", "beta", "crossed_gamma", "crossed_beta")
    heads = [f"{head}.{name}" for head in ("query", "key") for name in factors]
    in_blocks = [f"layers.{index}.{name}" for index in range(2) for name in (*projection, *heads, "bias_by_distance")]
    assert half == {"embedding.table", "cos", "sin", *in_blocks}


def test_engines_are_built(bundle: Bundle, half_bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    for exported in (bundle, half_bundle):
        copy = Bundle.open(shutil.copytree(exported.path, tmp_path / exported.get_graph().precision))
        engine = build_engine(copy, options=BuildOptions(compute_capabilities=("8.9",))).engine
        graph = copy.get_graph()
        assert [spec.shape for spec in (*engine.inputs, *engine.outputs)] == [
            spec.shape for spec in (*graph.inputs, *graph.outputs)
        ]
        assert "float64" not in engine.layer_dtypes
        assert ("float16" in engine.layer_dtypes) == (exported is half_bundle)
        if exported is bundle:
            assert engine.num_layers <= TRT_LAYERS
