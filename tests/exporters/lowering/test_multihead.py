"""The multi-head models, exported: lowered, traced, in half precision and built, each against what came before."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

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
from flash_export.exporters.lowering.precision import Precision
from flash_export.exporters.lowering.registry import LOWERINGS, lower_model
from flash_export.exporters.promises import check_promises
from flash_export.models.performer import CAUSAL_CHUNK
from flash_export.runtime.ort import OrtRunner
from tests.models.multihead_models import (
    CONFIGS,
    VOCAB_SIZE,
    change_config,
    compute_error,
    make_batch,
    make_model,
    read_quantities,
)
from tests.rounding import measure_rounding

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from flash_export.models.multihead import MultiheadLayer, MultiheadModel

RELATIVE_TOLERANCE = 1e-5  # of the output's scale: fp32 rounding in another order
HALF_ROUNDING = 2e-2  # of the output's scale: some units in the last place, accumulated
LENGTHS = (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 40)  # around the chunks of 4 and of 8
# One of each family is exported in every run, the others where there is more time.
QUICK = ("transformer++", "mc_tfm", "performer", "linformer", "longformer", "bigbird")
MAY_BE_SLOW = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in CONFIGS]


class Exported(NamedTuple):
    """A model of one block, and its bundle."""

    name: str
    model: MultiheadModel
    bundle: Bundle


def export(model: MultiheadModel, folder: Path, **options: Any) -> Bundle:
    model.save_pretrained(folder / "checkpoint")
    return export_onnx(folder / "checkpoint", folder / "bundle", options=ExportOptions(**options))


def run_graph(bundle: Bundle, *inputs: Tensor) -> Tensor:
    """Run the graph; without the mask, if it has none."""
    graph = bundle.get_graph()
    arrays = {spec.name: values.numpy() for spec, values in zip(graph.inputs, inputs, strict=False)}
    with OrtRunner(graph, bundle.get_graph_path()) as runner:
        return torch.from_numpy(runner.run(arrays)["logits"])


@settings(max_examples=80)
@given(
    name=st.sampled_from(sorted(CONFIGS)),
    depth=st.integers(1, 2),
    norm_type=st.sampled_from(("layernorm", "scalenorm")),
    ff_type=st.sampled_from(("mlp", "swiglu", "geglu")),
    positions=st.sampled_from(("sinusoid", "learnt", "rotary")),
    num_heads=st.sampled_from((1, 2, 6)),
    size=st.sampled_from((1, 4, 5, 8)),
    lengths=st.lists(st.sampled_from(LENGTHS), min_size=1, max_size=3),
    seed=st.integers(0, 2**16),
)
def test_lowered_model_is_the_reference(name: str, size: int, lengths: list[int], seed: int, **parts: Any) -> None:
    model = make_model(change_config(name, size, **parts), seed)
    lowered = lower_model(model)
    input_ids, mask = make_batch(lengths, seed)
    model = model.double()
    # A large score magnifies what was rounded before it, in the reference as well.
    accepted = max(RELATIVE_TOLERANCE, 20 * measure_rounding(model, lambda one: one(input_ids), compute_error))
    assert compute_error(model(input_ids), lowered(input_ids)) <= accepted
    assert compute_error(model(input_ids, mask)[mask.bool()], lowered(input_ids, mask)[mask.bool()]) <= accepted


@pytest.mark.parametrize("seq_len", [CAUSAL_CHUNK - 1, CAUSAL_CHUNK, CAUSAL_CHUNK + 1, 3 * CAUSAL_CHUNK + 5])
def test_causal_performer_adds_up_over_its_chunks(seq_len: int) -> None:
    model = make_model(CONFIGS["causal performer"])
    lowered = lower_model(model)
    input_ids, mask = make_batch([seq_len, 5])
    expected = model.double()(input_ids, mask)
    assert compute_error(expected[mask.bool()], lowered(input_ids, mask)[mask.bool()]) <= RELATIVE_TOLERANCE


@pytest.mark.parametrize("name", CONFIGS)
def test_row_of_padding_alone_is_finite_and_disturbs_no_other(name: str) -> None:
    model = make_model(CONFIGS[name])
    input_ids, mask = make_batch([9, 9, 9])
    mask[1] = 0
    for lowered in (lower_model(model), lower_model(model, Precision("fp16"))):
        logits = lowered(input_ids, mask)
        assert logits.isfinite().all()
        alone = lowered(input_ids[[0, 2]], mask[[0, 2]])
        assert compute_error(alone, logits[[0, 2]]) <= RELATIVE_TOLERANCE


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_counts_for_nothing_however_large_scores_are(name: str) -> None:
    model = make_model(CONFIGS[name])
    for layer in cast("list[MultiheadLayer]", model.layers):
        layer.to_q.weight *= 100
    input_ids, mask = make_batch([12, 5])
    replaced = torch.where(mask.bool(), input_ids, (input_ids + 1) % VOCAB_SIZE)
    lowered = lower_model(model)
    assert torch.equal(lowered(input_ids, mask)[1, :5], lowered(replaced, mask)[1, :5])


@pytest.fixture(scope="module", params=MAY_BE_SLOW)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    model = make_model(replace(CONFIGS[request.param], depth=1))
    return Exported(request.param, model, export(model, tmp_path_factory.mktemp("multihead")))


def test_graph_is_the_reference_row_by_row(exported: Exported) -> None:
    for lengths in ([1], [4], [8], [9], [79], [33, 8, 1], [1, 1]):
        input_ids, mask = make_batch(lengths)
        logits = run_graph(exported.bundle, input_ids, mask)
        for row, length in enumerate(lengths):
            alone = exported.model(input_ids[row : row + 1, :length])[0]
            assert compute_error(alone, logits[row, :length]) <= RELATIVE_TOLERANCE, lengths


def test_row_of_padding_alone_disturbs_no_other_of_the_graph(exported: Exported) -> None:
    if not exported.bundle.get_graph().has_mask:
        assert exported.model.config.causal
        return
    input_ids, mask = make_batch([9, 9, 9])
    mask[1] = 0
    logits = run_graph(exported.bundle, input_ids, mask)
    assert logits.isfinite().all()
    assert compute_error(exported.model(input_ids, mask)[[0, 2]], logits[[0, 2]]) <= RELATIVE_TOLERANCE


# Nodes of the block, and of all that is around it. A gated unit and two ScaleNorms are 12 more than an MLP and two
# LayerNorms, turns are 8.
NODES = {
    "transformer": (33, 16),
    "transformer++": (53, 13),
    "mc_tfm": (78, 33),
    "causal mc_tfm": (66, 25),
    "performer": (54, 17),
    "causal performer": (70, 25),
    "linformer": (40, 16),
    "linformer, shared": (58, 15),
    "longformer": (58, 37),
    "causal longformer": (74, 27),
    "bigbird": (133, 39),
    "causal bigbird": (96, 27),
}


def count_nodes(bundle: Bundle) -> Counter[str]:
    """Return the number of nodes of the block, and of what is around it."""
    graph = onnx.load(bundle.get_graph_path()).graph
    return Counter("block" if node.name.startswith("layers.0") else "around" for node in graph.node)


def test_blocks_stay_within_the_node_budget(exported: Exported) -> None:
    counted = count_nodes(exported.bundle)
    assert (counted["block"], counted["around"]) == NODES[exported.name]


def test_blocks_compute_no_shapes(exported: Exported) -> None:
    graph = onnx.load(exported.bundle.get_graph_path()).graph
    operators = {node.op_type for node in graph.node if node.name.startswith("layers.")}
    assert not operators & {"Slice", "Pad", "Expand", "ConstantOfShape", "Shape", "Concat", "Range", "Where"} - {
        one
        for one in ("Concat", "Range", "Where")
        if "bigbird" in exported.name  # blocks side by side, rows, a choice
    }


def test_graph_keeps_its_promises(exported: Exported) -> None:
    spec = exported.bundle.get_graph()
    check_promises(onnx.load(exported.bundle.get_graph_path()), spec.inputs, spec.outputs)
    limit = exported.model.config.interface.max_len
    assert spec.axes["seq"].min == 1
    assert limit is None or spec.axes["seq"].max == limit


def test_every_reader_takes_the_graph(exported: Exported) -> None:
    """ONNX's reference evaluator runs it, and onnxruntime's symbolic shape inference has a shape for every value."""
    graph, inputs = onnx.load(exported.bundle.get_graph_path()), make_batch([9, 5, 1])
    names = [spec.name for spec in exported.bundle.get_graph().inputs]
    feeds = dict(zip(names, (one.numpy() for one in inputs), strict=False))
    logits = torch.from_numpy(cast("Any", ReferenceEvaluator(graph).run(None, feeds))[0])
    valid = inputs[1].bool()
    assert compute_error(exported.model(*inputs)[valid], logits[valid]) <= RELATIVE_TOLERANCE
    inferred = SymbolicShapeInference.infer_shapes(graph).graph
    shaped = {value.name for value in (*inferred.value_info, *inferred.output)}
    assert {output for node in inferred.node for output in node.output} <= shaped


def test_marks_are_the_quantities_of_the_reference(exported: Exported) -> None:
    input_ids, _ = make_batch([6, 6])
    readings = read_quantities(exported.model, input_ids)
    probes = {probe.name: probe for probe in exported.bundle.read_probes().probes}
    assert probes.keys() == readings.keys() | {"logits"}
    spec = exported.bundle.get_graph()
    feeds = {"input_ids": input_ids.numpy()}
    if spec.has_mask:
        feeds["attention_mask"] = torch.ones_like(input_ids).numpy()
    inner = [probes[name].tensor for name in readings]
    with OrtRunner(spec, exported.bundle.get_graph_path(), inner_values=inner) as runner:
        values = runner.run(feeds)
    for name, expected in readings.items():
        probe = probes[name]
        assert (probe.order, probe.length_power) == (None, 0)
        actual = torch.from_numpy(values[probe.tensor]).flatten(2)[:, :6] * probe.scale  # chunks may end later
        assert compute_error(expected, actual) <= RELATIVE_TOLERANCE, name


@pytest.mark.parametrize("name", CONFIGS)
def test_half_model_is_the_reference_up_to_rounding(name: str) -> None:
    model = make_model(CONFIGS[name])
    input_ids, mask = make_batch([40, 3, 1])
    expected = model(input_ids, mask)[mask.bool()]
    errors = {one: lower_model(model, Precision(one))(input_ids, mask)[mask.bool()] for one in ("fp16", "bf16")}
    assert 0 < compute_error(expected, errors["fp16"]) < HALF_ROUNDING
    assert 0 < compute_error(expected, errors["bf16"]) < 8 * HALF_ROUNDING


def scale_values(layer: MultiheadLayer) -> None:
    layer.to_v.weight *= 1e5


def scale_queries(layer: MultiheadLayer) -> None:
    layer.to_q.weight *= 1e5


def scale_hidden(layer: MultiheadLayer) -> None:
    layer.feed_forward.to_hidden.weight *= 1e5


@pytest.mark.parametrize(
    ("name", "scale", "island"),
    [
        ("transformer++", scale_values, "value"),
        ("transformer++", scale_hidden, "gated"),
        ("linformer", scale_values, "projected"),
        ("bigbird", scale_queries, "scores"),
        ("mc_tfm", scale_values, "products"),
        ("performer", scale_values, "mixed"),
        ("causal longformer", scale_values, "mixed"),
    ],
)
def test_what_overflows_becomes_an_island(name: str, scale: Callable[[MultiheadLayer], None], island: str) -> None:
    model = make_model(replace(CONFIGS[name], depth=1))
    for layer in cast("list[MultiheadLayer]", model.layers):
        scale(layer)
    inputs = make_batch([40])
    assert not lower_model(model, Precision("fp16"))(*inputs).isfinite().all()
    data = Data(RandomSource(model.config.interface))
    choice = choose_islands(model, data, ExportOptions(precision="fp16", max_seq_len=64))
    assert f"layers.0.{island}" in {found.name for found in choice.facts.islands}
    assert lower_model(model, choice.precision)(*inputs).isfinite().all()
    with pytest.raises(ConfigError, match=r"beyond the overflow horizon of fp16 .*; use --islands auto"):
        choose_islands(model, data, ExportOptions(precision="fp16", max_seq_len=64, islands="minimal"))


@pytest.mark.parametrize("name", CONFIGS)
def test_all_islands_leave_what_norms_give_in_half(name: str) -> None:
    """What may grow is fp32, and every name that is said to grow is one that the model asks for."""
    model = make_model(replace(CONFIGS[name], depth=1))
    lowering = LOWERINGS[model.config.model_type]
    seen: set[str] = set()
    lower_model(model, Precision("fp16", watch=lambda one, _: seen.add(one)))(*make_batch([9, 5]))
    assert lowering.name_growing(model.config) - {f"layers.0.{one}" for one in optional(name)} <= seen
    precision = Precision("fp16", islands=lowering.name_growing(model.config))
    lowered = lower_model(model, precision)
    half = {one for one, weight in lowered.state_dict().items() if weight.dtype == torch.half}
    assert "embedding.table" in half
    assert "layers.0.value.weight" in half
    assert not any("query" in one or "feed_forward" in one for one in half)


def optional(name: str) -> tuple[str, ...]:
    """Return values that a model of this config does not have though its family may."""
    missing = ["gated"] if CONFIGS[name].ff_type == "mlp" else []
    return (*missing, *(("scores", "weights") if "performer" in name else ()))


@pytest.fixture(
    scope="module", params=["transformer++", *(pytest.param(one, marks=pytest.mark.slow) for one in CONFIGS)]
)
def half(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    model = make_model(replace(CONFIGS[request.param], depth=1))
    folder = tmp_path_factory.mktemp("multihead-half")
    return Exported(request.param, model, export(model, folder, precision="fp16", max_seq_len=64))


def test_half_graph_is_the_reference_up_to_rounding(half: Exported) -> None:
    input_ids, mask = make_batch([40, 3, 1])
    valid = mask.bool()
    logits = run_graph(half.bundle, input_ids, mask)
    assert 0 < compute_error(half.model(input_ids, mask)[valid], logits[valid]) < HALF_ROUNDING
    facts = half.bundle.manifest.precision
    assert facts is not None
    assert facts.islands == ()


@pytest.mark.slow
def test_masked_causal_graph_is_the_reference(tmp_path: Path) -> None:
    for name in [name for name, config in CONFIGS.items() if config.causal]:
        model = make_model(replace(CONFIGS[name], depth=1))
        bundle = export(model, tmp_path / name, mask=True)
        input_ids, mask = make_batch([17, 8, 1, 3])
        mask[3] = 0
        logits = run_graph(bundle, input_ids, mask)
        assert logits.isfinite().all()
        assert compute_error(model(input_ids, mask)[mask.bool()], logits[mask.bool()]) <= RELATIVE_TOLERANCE, name


def test_an_engine_is_built(exported: Exported, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    check_engine(exported.bundle, tmp_path / "copy", is_half=False)


def test_a_half_engine_is_built(half: Exported, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    check_engine(half.bundle, tmp_path / "copy", is_half=True)


def check_engine(bundle: Bundle, folder: Path, *, is_half: bool) -> None:
    copy = Bundle.open(shutil.copytree(bundle.path, folder))
    engine = build_engine(copy, options=BuildOptions(compute_capabilities=("8.9",))).engine
    graph = copy.get_graph()
    assert [spec.shape for spec in (*engine.inputs, *engine.outputs)] == [
        spec.shape for spec in (*graph.inputs, *graph.outputs)
    ]
    assert "float64" not in engine.layer_dtypes
    assert ("float16" in engine.layer_dtypes) == is_half
