"""GAU-alpha, exported: lowered, traced, in half precision and built, each against what came before."""

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
from flash_export.errors import ConfigError
from flash_export.exporters.engine import build_engine
from flash_export.exporters.export import export_onnx
from flash_export.exporters.islands import choose_islands
from flash_export.exporters.lowering.gau_alpha import GAU_ALPHA
from flash_export.exporters.lowering.precision import Precision
from flash_export.exporters.lowering.registry import lower_model
from flash_export.models.gau_alpha import MASK_DIALECTS, GauAlphaConfig, GauAlphaModel
from flash_export.runtime.ort import OrtRunner
from tests.models.gau_alpha_release import import_gau_alpha
from tests.rounding import measure_rounding

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from flash_export.models.gau_alpha import GauAlphaLayer

RELATIVE_TOLERANCE = 1e-5  # of the output's scale: fp32 rounding in another order
HALF_ROUNDING = 8e-3  # of the output's scale: some units in the last place, accumulated
VOCAB_SIZE = 29
NODES = 30  # of a block: 14, and 6 of the projection, 5 of queries, 5 of keys
TRT_LAYERS = 175  # of the whole network of CONFIG

CONFIG = GauAlphaConfig(VOCAB_SIZE, dim=24, depth=2, hidden_dim=48, qk_dim=8)


def build_model(config: GauAlphaConfig, seed: int = 0) -> GauAlphaModel:
    """Make a model whose tokens attend to some others and not to all alike."""
    torch.manual_seed(seed)
    model = GauAlphaModel(config).requires_grad_(requires_grad=False).eval()
    for name, parameter in model.named_parameters():
        is_matrix = name.endswith("dense.weight")
        parameter.copy_(1.5 * torch.randn_like(parameter) / (parameter.shape[-1] ** 0.5 if is_matrix else 1))
    return model


def make_batch(lengths: list[int], seed: int = 1) -> tuple[Tensor, Tensor]:
    """Return token ids, those of padding random too, and the mask."""
    torch.manual_seed(seed)
    input_ids = torch.randint(0, VOCAB_SIZE, (len(lengths), max(lengths)))
    return input_ids, (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()


def compute_error(expected: Tensor, actual: Tensor) -> float:
    """Return the largest error as a fraction of the scale; NaN if there is one."""
    return float((expected - actual).abs().max() / expected.abs().max().clamp(min=1e-30))


def run_graph(bundle: Bundle, *inputs: Tensor) -> Tensor:
    graph = bundle.get_graph()
    arrays = {spec.name: values.numpy() for spec, values in zip(graph.inputs, inputs, strict=True)}
    with OrtRunner(graph, bundle.get_graph_path()) as runner:
        return torch.from_numpy(runner.run(arrays)["logits"])


def export(model: GauAlphaModel, folder: Path, **options: Any) -> Bundle:
    model.save_pretrained(folder / "checkpoint")
    return export_onnx(folder / "checkpoint", folder / "bundle", options=ExportOptions(**options))


configs = st.builds(
    GauAlphaConfig,
    vocab_size=st.just(VOCAB_SIZE),
    dim=st.sampled_from((1, 7, 16)),
    depth=st.integers(1, 3),
    hidden_dim=st.sampled_from((3, 16)),
    qk_dim=st.sampled_from((2, 6, 32)),
    num_token_types=st.integers(1, 3),
    mask_dialect=st.sampled_from(tuple(MASK_DIALECTS)),
)


@settings(max_examples=40, deadline=None)
@given(configs, st.lists(st.sampled_from((1, 2, 3, 17, 40)), min_size=1, max_size=3), st.integers(0, 2**16))
def test_lowered_model_is_the_reference(config: GauAlphaConfig, lengths: list[int], seed: int) -> None:
    model = build_model(config, seed)
    lowered = lower_model(model)
    input_ids, mask = make_batch(lengths, seed)
    model = model.double()
    # A norm of a few channels magnifies what was rounded before it, in the reference as well.
    accepted = max(RELATIVE_TOLERANCE, 20 * measure_rounding(model, lambda one: one(input_ids), compute_error))
    for inputs in ((input_ids,), (input_ids, mask)):
        assert compute_error(model(*inputs), lowered(*inputs)) <= accepted


@pytest.fixture(scope="module")
def model() -> GauAlphaModel:
    return build_model(CONFIG)


@pytest.fixture(scope="module")
def bundle(model: GauAlphaModel, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(model, tmp_path_factory.mktemp("gau-alpha"))


@pytest.mark.parametrize("lengths", [[1], [2], [513], [40, 3, 1], [1, 1]])
def test_graph_is_the_reference_row_by_row(model: GauAlphaModel, bundle: Bundle, lengths: list[int]) -> None:
    input_ids, mask = make_batch(lengths)
    logits = run_graph(bundle, input_ids, mask)
    for row, length in enumerate(lengths):
        alone = model(input_ids[row : row + 1, :length])
        assert compute_error(alone, logits[row : row + 1, :length]) <= RELATIVE_TOLERANCE


def test_row_of_padding_alone_is_finite_and_leaves_others_alone(model: GauAlphaModel, bundle: Bundle) -> None:
    input_ids, mask = make_batch([4, 4, 4])
    mask[1] = 0
    logits = run_graph(bundle, input_ids, mask)
    assert logits.isfinite().all()
    assert compute_error(model(input_ids, mask), logits) <= RELATIVE_TOLERANCE


def test_padding_counts_for_nothing_however_large_scores_are() -> None:
    """Below -10,000, which gau-alpha hides keys with, its padding would outweigh a row's own tokens."""
    model = build_model(CONFIG)
    for layer in cast("list[GauAlphaLayer]", model.layers):
        layer.gamma[0], layer.gamma[1] = 3e3, -3e3
    input_ids, mask = make_batch([12, 5])
    replaced = torch.where(mask.bool(), input_ids, (input_ids + 1) % VOCAB_SIZE)
    lowered = lower_model(model)
    assert torch.equal(lowered(input_ids, mask)[1, :5], lowered(replaced, mask)[1, :5])


@pytest.mark.slow
def test_dialect_s_graph_is_the_reference_batch_by_batch(tmp_path: Path) -> None:
    model = build_model(replace(CONFIG, mask_dialect="gau_alpha", depth=1))
    inputs = make_batch([9, 1, 2])
    assert compute_error(model(*inputs), run_graph(export(model, tmp_path), *inputs)) <= RELATIVE_TOLERANCE


def test_blocks_stay_within_the_node_budget(bundle: Bundle, tmp_path: Path) -> None:
    graph = onnx.load(bundle.get_graph_path()).graph
    scopes = Counter(".".join(node.name.partition("/")[0].split(".")[:2]) for node in graph.node)
    assert scopes["layers.0"] == scopes["layers.1"] == NODES
    assert (scopes["embedding"], scopes["head"]) == (1, 1)
    assert scopes["graph"] <= 21
    model = build_model(replace(CONFIG, depth=1))
    unmasked = export(model, tmp_path, mask=False)
    nodes = [node.name for node in onnx.load(unmasked.get_graph_path()).graph.node]
    assert sum(name.startswith("layers.0") for name in nodes) == NODES - 1
    input_ids, _ = make_batch([7, 7])
    assert compute_error(model(input_ids), run_graph(unmasked, input_ids)) <= RELATIVE_TOLERANCE


def test_blocks_hold_no_shape_arithmetic(bundle: Bundle) -> None:
    graph = onnx.load(bundle.get_graph_path()).graph
    operators = {node.op_type for node in graph.node if node.name.startswith("layers.")}
    assert operators == {
        *("MatMul", "Sigmoid", "Mul", "Split", "Add", "Transpose", "Softmax"),
        *("ReduceMean", "Sqrt", "Div"),
    }


def test_every_reader_takes_the_graph(model: GauAlphaModel, bundle: Bundle) -> None:
    """ONNX's reference evaluator runs it, and onnxruntime's symbolic shape inference has a shape for every value."""
    graph = onnx.load(bundle.get_graph_path())
    inputs = make_batch([9, 5, 1])
    feeds = dict(zip(("input_ids", "attention_mask"), (one.numpy() for one in inputs), strict=True))
    (logits,) = ReferenceEvaluator(graph).run(None, feeds)
    assert compute_error(model(*inputs), torch.from_numpy(logits)) <= RELATIVE_TOLERANCE
    inferred = SymbolicShapeInference.infer_shapes(graph).graph
    shaped = {value.name for value in (*inferred.value_info, *inferred.output)}
    assert {output for node in inferred.node for output in node.output} <= shaped


def test_marks_are_the_quantities_of_the_reference(model: GauAlphaModel, bundle: Bundle) -> None:
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
        assert (probes[name].scale, probes[name].order, probes[name].length_power) == (1.0, None, 0)
        assert compute_error(expected, torch.from_numpy(values[probes[name].tensor])) <= RELATIVE_TOLERANCE, name


def test_graph_is_gau_alpha_itself(tmp_path: Path) -> None:
    """A state dict of the library's own model becomes a graph that gives what that model gives."""
    library = import_gau_alpha()
    arguments = {"vocab_size": VOCAB_SIZE, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    torch.manual_seed(0)
    config = library.GAUAlphaConfig(**arguments, attention_key_size=8)
    theirs = library.GAUAlphaForMaskedLM(config).eval().requires_grad_(requires_grad=False)
    torch.save(theirs.state_dict(), tmp_path / "model.bin")
    given = {**arguments, "hidden_act": "swish", "normalization": "softmax_plus", "attention_scale": True}
    bundle = export_onnx(tmp_path / "model.bin", tmp_path / "bundle", family="gau_alpha", config=given)
    input_ids, mask = make_batch([9, 2])
    expected = theirs(input_ids, mask).logits
    assert compute_error(expected, run_graph(bundle, input_ids, mask)) <= RELATIVE_TOLERANCE


@pytest.fixture(scope="module")
def half_bundle(model: GauAlphaModel, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(model, tmp_path_factory.mktemp("gau-alpha-half"), precision="fp16", max_seq_len=64)


def test_half_graph_is_the_reference_up_to_rounding(model: GauAlphaModel, half_bundle: Bundle) -> None:
    inputs = make_batch([40, 3, 1])
    expected = model(*inputs)
    assert 0 < compute_error(expected, run_graph(half_bundle, *inputs)) < HALF_ROUNDING
    assert 0 < compute_error(expected, lower_model(model, Precision("bf16"))(*inputs)) < 8 * HALF_ROUNDING
    facts = half_bundle.manifest.precision
    assert facts is not None
    assert (facts.islands, facts.horizon) == ((), None)


def scale_values(layer: GauAlphaLayer) -> None:
    layer.i_dense.weight[48:96] *= 1e5


def scale_queries(layer: GauAlphaLayer) -> None:
    layer.gamma[:] = 1e3 * layer.gamma


@pytest.mark.parametrize(("scale", "island"), [(scale_values, "mixed"), (scale_queries, "scores")])
def test_what_overflows_becomes_an_island(scale: Callable[[GauAlphaLayer], None], island: str) -> None:
    model = build_model(CONFIG)
    for layer in cast("list[GauAlphaLayer]", model.layers):
        scale(layer)
    inputs = make_batch([40])
    assert not lower_model(model, Precision("fp16"))(*inputs).isfinite().all()
    data = Data(RandomSource(CONFIG.interface))
    choice = choose_islands(model, data, ExportOptions(precision="fp16", max_seq_len=64))
    assert f"layers.0.{island}" in {found.name for found in choice.facts.islands}
    assert lower_model(model, choice.precision)(*inputs).isfinite().all()
    with pytest.raises(ConfigError, match=r"beyond the overflow horizon of fp16 .*; use --islands auto"):
        choose_islands(model, data, ExportOptions(precision="fp16", max_seq_len=64, islands="minimal"))


def test_all_islands_leave_the_projection_in_half(model: GauAlphaModel) -> None:
    precision = Precision("fp16", islands=GAU_ALPHA.name_growing(CONFIG))
    half = {name for name, weight in lower_model(model, precision).state_dict().items() if weight.dtype == torch.half}
    in_blocks = {f"layers.{index}.projection.{name}weight" for index in range(2) for name in ("", "value_")}
    assert half == {"embedding.table", *in_blocks}


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
