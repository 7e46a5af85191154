"""Keys and values carried from run to run: however a text is cut, what one pass of the eager model says comes out."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

from flash_export.config import ATTENTION_OPSET, DECODE, FORWARD, PREFILL, BuildOptions, ExportOptions
from flash_export.errors import ConfigError
from flash_export.exporters.engine import build_engine
from flash_export.exporters.export import export_onnx
from flash_export.exporters.graphs import describe_graphs
from flash_export.exporters.inspection import inspect_bundle
from flash_export.interface import PAST
from flash_export.models.transformer import TransformerConfig, TransformerModel
from flash_export.runtime.trt_network import NetworkRunner

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle

SIZES: dict[str, Any] = {"vocab_size": 31, "dim": 32, "depth": 2, "num_heads": 2, "ff_dim": 40, "causal": True}
MAX_LEN = 96
CASES: dict[str, tuple[TransformerConfig, ExportOptions]] = {
    "rotary": (TransformerConfig(**SIZES, positions="rotary", ff_type="swiglu"), ExportOptions()),
    "rotary, one operator": (
        TransformerConfig(**SIZES, positions="rotary", norm_type="scalenorm"),
        ExportOptions(opset=ATTENTION_OPSET),
    ),
    "learnt": (TransformerConfig(**SIZES, positions="learnt", max_positions=MAX_LEN), ExportOptions()),
    "sinusoid": (TransformerConfig(**SIZES), ExportOptions()),
}
NODES_PER_BLOCK = 48  # with ScaleNorm, of decode
TOLERANCE = 1e-5  # of the output's scale
HALF_TOLERANCES = {"fp16": 2e-2, "bf16": 2e-1}


class StatefulModel:
    """A bundle, its sessions, and the model that it was made from."""

    def __init__(self, bundle: Bundle, model: TransformerModel) -> None:
        self.bundle, self.model = bundle, model

    @cached_property
    def sessions(self) -> dict[str, onnxruntime.InferenceSession]:
        return {
            name: onnxruntime.InferenceSession(self.bundle.get_graph_path(name), providers=["CPUExecutionProvider"])
            for name in (PREFILL, DECODE)
        }

    def make_state(self, batch: int, capacity: int, fill: float = 0.0) -> dict[str, np.ndarray]:
        """Return a state with room for so many tokens, whose places hold any number before they are written."""
        sizes = {"batch": batch, PAST: capacity}
        state = {
            spec.name: np.full(
                [sizes[size] if isinstance(size, str) else size for size in spec.shape], fill, spec.dtype
            )
            for spec in self.bundle.get_graph(DECODE).state_inputs
        }
        return {**state, "state.position": np.zeros((batch, 1), np.int64)}

    def run(
        self, name: str, state: Mapping[str, np.ndarray], **inputs: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        session = self.sessions[name]
        names = [output.name for output in session.get_outputs()]
        outputs = dict(zip(names, session.run(names, {**inputs, **state}), strict=True))
        return outputs.pop("logits"), {key.removeprefix("new_"): value for key, value in outputs.items()}

    def compute_expected(self, input_ids: np.ndarray) -> np.ndarray:
        logits: np.ndarray = self.model(torch.from_numpy(input_ids)).numpy()
        return logits


def build_model(config: TransformerConfig) -> TransformerModel:
    torch.manual_seed(0)
    model = TransformerModel(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(requires_grad=False).eval()


def export(config: TransformerConfig, folder: Path, options: ExportOptions) -> StatefulModel:
    model = build_model(config)
    model.save_pretrained(folder / "checkpoint")
    options = replace(options, max_seq_len=MAX_LEN, max_batch=8)
    return StatefulModel(export_onnx(folder / "checkpoint", folder / "bundle", options=options), model)


SLOW = {"sinusoid", "learnt"}


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in CASES]
)
def stateful(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StatefulModel:
    config, options = CASES[request.param]
    return export(config, tmp_path_factory.mktemp("stateful"), options)


@pytest.fixture(scope="module")
def rotary(tmp_path_factory: pytest.TempPathFactory) -> StatefulModel:
    config, options = CASES["rotary"]
    return export(config, tmp_path_factory.mktemp("rotary"), options)


def draw_tokens(batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, SIZES["vocab_size"], (batch, length))


def compute_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_split_of_a_text_says_what_one_pass_says(stateful: StatefulModel, data: st.DataObject) -> None:
    """Segments of any length at any position, each row with its own, then single tokens; places held noise before."""
    batch = data.draw(st.sampled_from([1, 2, 5]), "batch")
    segments = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=3), "longest of each segment")
    num_steps = data.draw(st.integers(1, 9), "single tokens")
    spare = data.draw(st.sampled_from([0, 1, 7]), "spare places")
    total = sum(segments) + num_steps
    input_ids, rows = draw_tokens(batch, total), np.arange(batch)
    expected = stateful.compute_expected(input_ids)
    state, positions = stateful.make_state(batch, total + spare, fill=9.0), np.zeros(batch, np.int64)
    for longest in segments:
        lengths = np.array(data.draw(st.lists(st.integers(1, longest), min_size=batch, max_size=batch), "lengths"))
        lengths[0] = longest
        segment = np.zeros((batch, longest), np.int64)
        for row, (start, length) in enumerate(zip(positions, lengths, strict=True)):
            segment[row, :length] = input_ids[row, start : start + length]
        logits, state = stateful.run(PREFILL, state, input_ids=segment, lengths=lengths)
        for row, (start, length) in enumerate(zip(positions, lengths, strict=True)):
            assert compute_error(logits[row, :length], expected[row, start : start + length]) < TOLERANCE
        positions += lengths
        np.testing.assert_array_equal(state["state.position"][:, 0], positions)
    for _ in range(num_steps):
        logits, state = stateful.run(DECODE, state, input_ids=input_ids[rows, positions][:, None])
        assert compute_error(logits[:, 0], expected[rows, positions]) < TOLERANCE
        positions += 1
    np.testing.assert_array_equal(state["state.position"][:, 0], positions)


def test_token_by_token_from_nothing(stateful: StatefulModel) -> None:
    input_ids = draw_tokens(2, MAX_LEN)
    expected, state = stateful.compute_expected(input_ids), stateful.make_state(2, MAX_LEN)
    for position in range(MAX_LEN):
        logits, state = stateful.run(DECODE, state, input_ids=input_ids[:, position : position + 1])
        assert compute_error(logits[:, 0], expected[:, position]) < TOLERANCE


def test_what_stands_behind_the_lengths_does_not_matter(rotary: StatefulModel) -> None:
    input_ids, lengths = draw_tokens(2, 12), np.array([12, 3])
    other = input_ids.copy()
    other[1, 3:] = (other[1, 3:] + 1) % SIZES["vocab_size"]
    states = [
        rotary.run(PREFILL, rotary.make_state(2, 12), input_ids=ids, lengths=lengths)[1] for ids in (input_ids, other)
    ]
    for name, value in states[0].items():
        np.testing.assert_array_equal(value, states[1][name])
    assert not states[0]["state.0.k"][1, :, 3:].any()  # and of a row nothing behind its last token is written
    assert states[0]["state.0.k"][1, :, :3].any()


@pytest.mark.slow
@pytest.mark.parametrize("opset", [20, ATTENTION_OPSET])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_is_right_up_to_rounding(precision: str, opset: int, tmp_path: Path) -> None:
    from flash_export.generation.generate import Generator

    config, _ = CASES["rotary"]
    stateful = export(config, tmp_path, ExportOptions(opset=opset, precision=precision))
    dtypes = {spec.dtype for spec in stateful.bundle.get_graph(DECODE).state_inputs} - {"int64"}
    assert dtypes == {"float16" if precision == "fp16" else "float32"}
    input_ids = draw_tokens(1, 30)
    with Generator.open(stateful.bundle) as generator:
        _, state = generator.prefill([input_ids[0, :20]])
        for token in input_ids[0, 20:-1]:
            _, state = generator.prefill([np.array([token])], state)
        logits, _ = generator.prefill([input_ids[0, -1:]], state)
    assert 0 < compute_error(logits[0], stateful.compute_expected(input_ids)[0, -1]) < HALF_TOLERANCES[precision]


def test_the_contract_marks_what_grows(stateful: StatefulModel) -> None:
    manifest, config = stateful.bundle.manifest, stateful.model.config
    decode = manifest.graphs[DECODE]
    heads, width = config.num_heads, config.head_dim
    shapes = {spec.name: spec.shape for spec in decode.state_inputs}
    assert shapes == {
        "state.position": ("batch", 1),
        **{f"state.{n}.{name}": ("batch", heads, PAST, width) for n in range(config.depth) for name in "kv"},
    }
    assert (decode.axes[PAST].min, decode.axes[PAST].max) == (1, MAX_LEN)
    assert PAST not in manifest.graphs[FORWARD].axes
    assert manifest.model is not None
    assert manifest.model.state_bytes == 8
    assert manifest.model.state_bytes_per_token == 2 * config.depth * config.dim * 4
    assert manifest.model.count_state_bytes(10) == 8 + 20 * config.depth * config.dim * 4


def test_blocks_are_alike_and_write_into_their_state(stateful: StatefulModel) -> None:
    graphs = inspect_bundle(stateful.bundle).graphs
    for name in (PREFILL, DECODE):
        operators = graphs[name].operators
        assert operators["ScatterND"] == 2 * SIZES["depth"]
        assert not operators.keys() & {"If", "Loop", "Scan"}
        graph = stateful.bundle.get_graph(name)
        assert graph.fused_attention == (graph.opset >= ATTENTION_OPSET and name == PREFILL)
        assert operators.get("Attention", 0) == (SIZES["depth"] if graph.fused_attention else 0)
        assert max(graphs[name].nodes_by_block.values()) <= NODES_PER_BLOCK


def test_other_readers_of_onnx_take_both_graphs(stateful: StatefulModel) -> None:
    """ONNX's reference evaluator, and onnxruntime's symbolic shapes where no operator is called as one of its own."""
    input_ids, lengths = draw_tokens(2, 9), np.array([8, 5])
    expected, state = stateful.compute_expected(input_ids), stateful.make_state(2, 13)
    inputs = {PREFILL: {"input_ids": input_ids[:, :8], "lengths": lengths}}
    inputs[DECODE] = {"input_ids": input_ids[[0, 1], lengths][:, None]}
    found = {}
    for name in (PREFILL, DECODE):
        graph = onnx.load(stateful.bundle.get_graph_path(name))
        if not stateful.bundle.get_graph(name).fused_attention:
            SymbolicShapeInference.infer_shapes(graph, auto_merge=False, guess_output_rank=False)
        evaluator: Any = ReferenceEvaluator(graph)
        names = [output.name for output in graph.graph.output]
        outputs = dict(zip(names, evaluator.run(None, {**inputs[name], **state}), strict=True))
        found[name] = outputs.pop("logits")
        state = {key.removeprefix("new_"): value for key, value in outputs.items()}
    assert compute_error(found[PREFILL][1, :5], expected[1, :5]) < TOLERANCE
    assert compute_error(found[DECODE][:, 0], expected[[0, 1], lengths]) < TOLERANCE


def test_tensorrt_reads_both_graphs_as_they_are_meant(stateful: StatefulModel) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    input_ids, lengths = draw_tokens(2, 9), np.array([8, 5])
    expected, bundle = stateful.compute_expected(input_ids), stateful.bundle
    prefill, decode = (NetworkRunner(bundle.get_graph(name), bundle.get_graph_path(name)) for name in (PREFILL, DECODE))
    with prefill, decode:
        feeds = {"input_ids": input_ids[:, :8], "lengths": lengths, **stateful.make_state(2, 13)}
        outputs = prefill.run(feeds)
        assert compute_error(outputs.pop("logits")[1, :5], expected[1, :5]) < TOLERANCE
        state = {name.removeprefix("new_"): value for name, value in outputs.items()}
        outputs = decode.run({"input_ids": input_ids[[0, 1], lengths][:, None], **state})
    assert compute_error(outputs["logits"][:, 0], expected[[0, 1], lengths]) < TOLERANCE


@pytest.mark.parametrize(
    ("opset", "precision"), [(20, "fp32"), pytest.param(ATTENTION_OPSET, "fp16", marks=pytest.mark.slow)]
)
def test_engines_are_built(opset: int, precision: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    config = replace(CASES["rotary"][0], depth=1)
    bundle = export(config, tmp_path, ExportOptions(opset=opset, precision=precision)).bundle
    for graph in (PREFILL, DECODE):
        options = BuildOptions(graph=graph, compute_capabilities=("8.9",), flavour="tensorrt-rtx", cache=False)
        (profile,) = build_engine(bundle, options=options).engine.profiles
        keys = profile["state.0.k"]
        assert (keys.min[2], keys.max[2]) == (1, MAX_LEN)


def test_models_without_such_a_state_are_refused_in_one_line() -> None:
    options = ExportOptions(graphs=(FORWARD, DECODE))
    masked = TransformerConfig(**{**SIZES, "causal": False})
    with pytest.raises(
        ConfigError, match=r"no graph decode for this model: it is not causal.*export the graph forward"
    ):
        describe_graphs(masked, options)
    assert list(describe_graphs(masked, ExportOptions())) == [FORWARD]


def test_the_longest_text_is_that_of_the_positions(tmp_path: Path) -> None:
    config = TransformerConfig(**SIZES, positions="learnt", max_positions=50)
    assert describe_graphs(config, ExportOptions())[DECODE].axes[PAST].max == 50
    assert describe_graphs(TransformerConfig(**SIZES), ExportOptions(max_seq_len=70))[DECODE].axes[PAST].max == 70
