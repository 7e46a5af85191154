"""The graphs with a carried state say at every position what one pass over the whole text says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flash_export.config import ExportOptions
from flash_export.errors import ConfigError
from flash_export.exporters.export import export_onnx
from flash_export.models.flash import FlashConfig, FlashModel
from flash_export.models.gau import GauConfig, GauModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flash_export.bundle.bundle import Bundle
    from flash_export.bundle.manifest import GraphSpec
    from flash_export.models.base import ReferenceModel

onnxruntime = pytest.importorskip("onnxruntime")

SIZES: dict[str, Any] = {"vocab_size": 29, "dim": 22, "depth": 2, "hidden_dim": 33, "qk_dim": 37, "causal": True}
CASES: dict[str, tuple[FlashConfig, ExportOptions]] = {
    "chunk 16": (FlashConfig(**SIZES, chunk_size=16), ExportOptions()),
    "laplace": (
        FlashConfig(**{**SIZES, "depth": 1}, chunk_size=8, attention_fn="laplace", norm_type="layernorm"),
        ExportOptions(opset=23),
    ),
    "no token shift": (FlashConfig(**{**SIZES, "depth": 1}, chunk_size=5, shift_tokens=False), ExportOptions(opset=18)),
    "chunk 256": (FlashConfig(**SIZES, chunk_size=256), ExportOptions(mask=True)),
}


def build_model(config: FlashConfig | GauConfig) -> ReferenceModel:
    torch.manual_seed(0)
    model = FlashModel(config) if isinstance(config, FlashConfig) else GauModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(requires_grad=False).eval()


class StatefulModel:
    """The reference, and the exported graphs in plain onnxruntime sessions."""

    def __init__(self, bundle: Bundle, model: ReferenceModel) -> None:
        self.bundle, self.model = bundle, model
        self.chunk_size = int(bundle.read_config()["chunk_size"])
        self.sessions = {
            name: onnxruntime.InferenceSession(bundle.get_graph_path(name), providers=["CPUExecutionProvider"])
            for name in ("prefill", "extend", "decode")
        }

    def make_state(self, batch: int) -> dict[str, np.ndarray]:
        specs = [spec for spec in self.bundle.get_graph("decode").inputs if spec.name.startswith("state.")]
        return {
            spec.name: np.zeros([batch if size == "batch" else int(size) for size in spec.shape], spec.dtype)
            for spec in specs
        }

    def run(
        self, name: str, state: Mapping[str, np.ndarray], **inputs: np.ndarray
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        session = self.sessions[name]
        outputs = dict(
            zip((out.name for out in session.get_outputs()), session.run(None, {**inputs, **state}), strict=True)
        )
        return outputs.pop("logits"), {key.removeprefix("new_"): value for key, value in outputs.items()}

    def compute_expected(self, input_ids: np.ndarray) -> np.ndarray:
        return self.model(torch.from_numpy(input_ids)).numpy()


SLOW = {"chunk 16", "chunk 256"}


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in CASES]
)
def stateful(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StatefulModel:
    config, options = CASES[request.param]
    folder = tmp_path_factory.mktemp("stateful")
    model = build_model(config)
    model.save_pretrained(folder / "checkpoint")
    return StatefulModel(export_onnx(folder / "checkpoint", folder / "bundle", options=options), model)


def compute_error(actual: np.ndarray, expected: np.ndarray, scale: float) -> float:
    return float(np.abs(actual - expected).max()) / scale


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_split_of_a_text_says_what_one_pass_says(stateful: StatefulModel, data: st.DataObject) -> None:
    """Segments of any number of chunks, then a ragged one, blocks, then single tokens across several chunks."""
    chunk_size = stateful.chunk_size
    batch = data.draw(st.sampled_from([1, 2, 5, 8]), "batch")
    segments = data.draw(st.lists(st.integers(1, 3), max_size=2), "whole chunks")
    last = data.draw(st.integers(1, 2 * chunk_size), "last segment")
    lengths = np.array(data.draw(st.lists(st.integers(1, last), min_size=batch, max_size=batch), "lengths"))
    lengths[0] = last
    num_steps = min(2 * chunk_size + 3, 40) if chunk_size > 16 else 2 * chunk_size + 3
    blocks = data.draw(st.lists(st.integers(1, chunk_size), max_size=3), "blocks")
    total = sum(segments) * chunk_size + last + sum(blocks) + num_steps
    input_ids = np.random.default_rng(7).integers(0, SIZES["vocab_size"], (batch, total))
    expected = stateful.compute_expected(input_ids)
    scale, rows, start = float(np.abs(expected).max()), np.arange(batch), 0
    state = stateful.make_state(batch)
    for length in (num * chunk_size for num in segments):
        segment = input_ids[:, start : start + length]
        logits, state = stateful.run("prefill", state, input_ids=segment, lengths=np.full(batch, length))
        assert compute_error(logits, expected[:, start : start + length], scale) < 1e-5
        start += length
    logits, state = stateful.run("prefill", state, input_ids=input_ids[:, start : start + last], lengths=lengths)
    for row, length in enumerate(lengths):
        assert compute_error(logits[row, :length], expected[row, start : start + length], scale) < 1e-5
    positions = start + lengths
    for block in blocks:
        lengths = np.array(data.draw(st.lists(st.integers(0, block), min_size=batch, max_size=batch), "kept"))
        where = positions[:, None] + np.arange(block)
        logits, state = stateful.run("extend", state, input_ids=input_ids[rows[:, None], where], lengths=lengths)
        assert compute_error(logits, expected[rows[:, None], where], scale) < 1e-5
        positions = positions + lengths
    for _ in range(num_steps):
        np.testing.assert_array_equal(state["state.position"][:, 0], positions)
        logits, state = stateful.run("decode", state, input_ids=input_ids[rows, positions][:, None])
        assert compute_error(logits[:, 0], expected[rows, positions], scale) < 1e-5
        positions += 1


def test_prefill_goes_on_after_decoding(stateful: StatefulModel) -> None:
    """The cache then holds a whole chunk that is not in the sum yet."""
    chunk_size = stateful.chunk_size
    input_ids = np.random.default_rng(3).integers(0, SIZES["vocab_size"], (2, 2 * chunk_size + 5))
    expected, state = stateful.compute_expected(input_ids), stateful.make_state(2)
    for position in range(chunk_size):
        logits, state = stateful.run("decode", state, input_ids=input_ids[:, position : position + 1])
    logits, state = stateful.run(
        "prefill", state, input_ids=input_ids[:, chunk_size:], lengths=np.full(2, chunk_size + 5)
    )
    assert compute_error(logits, expected[:, chunk_size:], float(np.abs(expected).max())) < 1e-5


def test_one_row_does_not_disturb_another(stateful: StatefulModel) -> None:
    """Not even one whose state and padding are garbage."""
    chunk_size = stateful.chunk_size
    input_ids = np.random.default_rng(5).integers(0, SIZES["vocab_size"], (2, 2 * chunk_size))
    for name, garbage in (("prefill", 1e30), ("extend", np.nan), ("decode", np.nan)):
        state = stateful.make_state(2)
        inputs = {"input_ids": input_ids[:, : {"prefill": None, "extend": chunk_size, "decode": 1}[name]]}
        if name != "decode":
            inputs["lengths"] = np.array([chunk_size - 1, 3])
        quiet = stateful.run(name, state, **inputs)
        for key, value in state.items():
            if value.dtype == np.float32:
                value[1] = garbage
            else:
                assert key == "state.position"
        disturbed = stateful.run(name, state, **inputs)
        np.testing.assert_array_equal(disturbed[0][0], quiet[0][0])
        for key, value in quiet[1].items():
            np.testing.assert_array_equal(disturbed[1][key][0], value[0])


def test_decode_reads_a_slot_before_it_writes_it(stateful: StatefulModel) -> None:
    """A runtime may give input and output of a cache the same memory, if each write depends on the reads."""
    graph = onnx.load(stateful.bundle.get_graph_path("decode"), load_external_data=False).graph
    makers = {output: node for node in graph.node for output in node.output}

    def find_ancestors(node: onnx.NodeProto) -> set[str]:
        names: set[str] = set()
        stack = [node]
        while stack:
            for maker in (makers[name] for name in stack.pop().input if name in makers):
                if maker.name not in names:
                    names.add(maker.name)
                    stack.append(maker)
        return names

    writes = [node for node in graph.node if node.op_type == "ScatterND"]
    assert len(writes) == 3 * stateful.model.config.num_blocks
    for write in writes:
        users = [node for node in graph.node if write.input[0] in node.input and node.op_type != "Shape"]
        reads = {node.name for node in users} - {write.name}
        assert len(reads) == (0 if "quad_k" in write.input[0] else 1)
        assert reads <= find_ancestors(write)
    for name in (spec.name for spec in stateful.bundle.get_graph("decode").inputs if spec.name.endswith(".kv")):
        (read,) = (node for node in graph.node if name in node.input)
        assert (read.op_type, read.output[0]) == ("Add", f"new_{name}")


def test_shapes_of_decode_are_fixed_but_for_the_batch(stateful: StatefulModel) -> None:
    graph: GraphSpec = stateful.bundle.get_graph("decode")
    assert {size for spec in (*graph.inputs, *graph.outputs) for size in spec.shape if isinstance(size, str)} == {
        "batch"
    }
    assert list(graph.axes) == ["batch"]


def test_manifest_tells_the_size_of_the_state(stateful: StatefulModel) -> None:
    facts = stateful.bundle.manifest.model
    assert facts is not None
    assert facts.state_bytes == sum(value.nbytes for value in stateful.make_state(1).values())


def test_weights_stand_in_the_bundle_once(stateful: StatefulModel) -> None:
    bundle = stateful.bundle
    assert (bundle.path / "model.onnx.data").is_file()
    for name in ("forward", "prefill", "extend", "decode"):
        model = onnx.load(bundle.get_graph_path(name), load_external_data=False)
        large = [tensor for tensor in model.graph.initializer if int(np.prod(tensor.dims)) > 1024]
        assert large
        assert all(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in large)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (FlashConfig(**{**SIZES, "causal": False}), "not causal"),
        (GauConfig(vocab_size=29, dim=22, depth=1, hidden_dim=33, causal=True), "divides its scores by the sequence"),
    ],
)
def test_models_without_a_constant_state_are_refused(
    tmp_path: Any, config: FlashConfig | GauConfig, reason: str
) -> None:
    build_model(config).save_pretrained(tmp_path / "checkpoint")
    with pytest.raises(ConfigError, match=reason):
        export_onnx(
            tmp_path / "checkpoint", tmp_path / "bundle", options=ExportOptions(graphs=("forward", "prefill", "decode"))
        )
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_fixed_batch_and_chosen_graphs(tmp_path: Any) -> None:
    build_model(FlashConfig(**{**SIZES, "depth": 1}, chunk_size=8)).save_pretrained(tmp_path / "checkpoint")
    options = ExportOptions(batch=3, graphs=("forward", "decode"))
    bundle = export_onnx(tmp_path / "checkpoint", tmp_path / "bundle", options=options)
    assert list(bundle.manifest.graphs) == ["forward", "decode"]
    decode = bundle.get_graph("decode")
    assert decode.inputs[0].shape == (3, 1)
    assert {spec.shape[0] for spec in (*decode.inputs, *decode.outputs)} == {3}
