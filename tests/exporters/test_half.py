"""Half precision: every value that would leave its range is kept in fp32, and nothing else is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch

from flash_export.config import ExportOptions
from flash_export.data.sources import Data, RandomSource
from flash_export.errors import ConfigError
from flash_export.exporters.export import export_onnx
from flash_export.exporters.half_ranges import plan_lengths
from flash_export.exporters.islands import LIMIT, choose_islands
from flash_export.exporters.lowering.precision import Precision
from flash_export.exporters.lowering.registry import lower_model
from flash_export.generation.backends import open_runners
from flash_export.generation.streaming import StreamingRunner
from flash_export.models.flash import FlashConfig, FlashModel
from flash_export.models.gau import GauConfig, GauModel
from flash_export.runtime.ort import OrtRunner

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle
    from flash_export.models.base import ModelConfig, ReferenceModel

SIZES: dict[str, Any] = {"vocab_size": 29, "dim": 22, "depth": 2, "hidden_dim": 34, "qk_dim": 18}
CONFIGS: dict[str, ModelConfig] = {
    "causal": FlashConfig(**SIZES, chunk_size=8, causal=True),
    "non-causal": FlashConfig(**SIZES, chunk_size=8),
    "own chunk": FlashConfig(**SIZES, chunk_size=8, sum_over_chunks=False),
    "laplace": FlashConfig(**SIZES, chunk_size=8, attention_fn="laplace", norm_type="layernorm", shift_tokens=False),
    "gau": GauConfig(**SIZES, norm_type="scalenorm"),
    "gau laplace": GauConfig(**SIZES, attention_fn="laplace", causal=True),
}
ROUNDING = {"fp16": 4e-3, "bf16": 4e-2}  # of the largest logit: some units in the last place, accumulated
SEQ_LEN = 61


def build_model(config: ModelConfig, std: float = 0.3) -> ReferenceModel:
    torch.manual_seed(0)
    model = FlashModel(config) if isinstance(config, FlashConfig) else GauModel(config)  # type: ignore[arg-type]
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model.requires_grad_(requires_grad=False).eval()


def draw_data(model: ReferenceModel) -> Data:
    return Data(RandomSource(model.config.interface))


def draw_tokens(seq_len: int, batch: int = 2) -> torch.Tensor:
    return torch.randint(0, SIZES["vocab_size"], (batch, seq_len), generator=torch.Generator().manual_seed(1))


def compute_error(expected: torch.Tensor, actual: torch.Tensor) -> float:
    """Return the largest error as a fraction of the scale; NaN if there is one."""
    return float((expected - actual).abs().max() / expected.abs().max())


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_half_model_is_the_reference_up_to_rounding(name: str, precision: str) -> None:
    model, tokens = build_model(CONFIGS[name]), draw_tokens(SEQ_LEN)
    mask = (torch.arange(SEQ_LEN) < torch.tensor([[SEQ_LEN], [20]])).long()
    for attention_mask in (None, mask):
        valid = mask.bool() if attention_mask is not None else torch.ones_like(mask, dtype=torch.bool)
        expected = model(tokens, attention_mask)[valid]
        actual = lower_model(model, Precision(precision))(tokens, attention_mask)
        assert actual.dtype == torch.float32
        assert 0 < compute_error(expected, actual[valid]) < ROUNDING[precision]


@pytest.mark.parametrize("name", CONFIGS)
def test_all_islands_round_less(name: str) -> None:
    model, tokens = build_model(CONFIGS[name]), draw_tokens(SEQ_LEN)
    options = ExportOptions(precision="bf16", islands="all")
    lowered = lower_model(model, choose_islands(model, draw_data(model), options).precision)
    assert {weight.dtype for weight in lowered.state_dict().values()} == {torch.float32, torch.bfloat16}
    plain = lower_model(model, Precision("bf16"))(tokens)
    expected = model(tokens)
    assert compute_error(expected, lowered(tokens)) < compute_error(expected, plain)


def scale_embedding(model: Any) -> None:
    model.token_emb.weight.data *= 2e5


def scale_values(model: Any) -> None:
    model.layers[1].to_hidden[0].weight.data *= 1e6


def scale_queries(model: Any) -> None:
    """Make queries and keys alike, so that scores are positive, and large."""
    layer = model.layers[0]
    gamma = (layer.qk_offset_scale if isinstance(model, FlashModel) else layer.offsetscale).gamma
    gamma.data[:] = 1500 * gamma.data[0]


def scale_output(model: Any) -> None:
    to_out = model.layers[1].to_out
    linear: Any = to_out[0] if isinstance(to_out, torch.nn.Sequential) else to_out
    linear.weight.data *= 1e6


def scale_head(model: Any) -> None:
    model.to_logits[1].weight.data *= 1e6


SCALINGS: dict[Callable[[Any], None], str] = {
    scale_embedding: "residual",
    scale_values: "layers.1.value",
    scale_queries: "layers.0.weights",
    scale_output: "layers.1.update",
    scale_head: "logits",
}


@pytest.mark.parametrize("scale", SCALINGS, ids=lambda scale: scale.__name__)
@pytest.mark.parametrize("name", ["causal", "non-causal", "gau"])
def test_what_overflows_becomes_an_island(scale: Callable[[Any], None], name: str) -> None:
    model, tokens = build_model(CONFIGS[name]), draw_tokens(SEQ_LEN)
    scale(model)
    expected = model(tokens)
    assert expected.isfinite().all()
    assert not lower_model(model, Precision("fp16"))(tokens).isfinite().all()
    choice = choose_islands(model, draw_data(model), ExportOptions(precision="fp16", max_seq_len=SEQ_LEN))
    island = next(island for island in choice.facts.islands if island.name == SCALINGS[scale])
    assert "more than a quarter of fp16's 65504" in island.reason
    assert compute_error(expected, lower_model(model, choice.precision)(tokens)) < 8 * ROUNDING["fp16"]
    with pytest.raises(ConfigError, match=r"beyond the overflow horizon .*; use --islands auto, or bf16"):
        choose_islands(model, draw_data(model), ExportOptions(precision="fp16", islands="minimal", max_seq_len=SEQ_LEN))


@pytest.mark.slow
def test_growth_with_the_length_decides() -> None:
    """The same model is in range to some length and not to another."""
    model: Any = build_model(CONFIGS["causal"])
    for layer in model.layers:
        layer.qk_offset_scale.gamma.data[[1, 3]] *= 2.5
    short = choose_islands(model, draw_data(model), ExportOptions(precision="fp16", islands="minimal", max_seq_len=64))
    assert short.facts.horizon is not None
    assert not short.facts.islands
    horizon = short.facts.horizon.seq_len
    assert 64 < horizon < 10**7
    assert short.facts.horizon.quantity.startswith("layers.")
    far = ExportOptions(precision="fp16", max_seq_len=10 * horizon)
    choice = choose_islands(model, draw_data(model), far)
    assert choice.facts.islands
    assert choice.facts.horizon is None or choice.facts.horizon.seq_len > 10 * horizon
    assert all("a quarter of fp16's 65504" in island.reason for island in choice.facts.islands)
    with pytest.raises(
        ConfigError, match=r"max_seq_len=\d+ is beyond .*tokens.*; use --islands auto, or --max-seq-len"
    ):
        choose_islands(
            model, draw_data(model), ExportOptions(precision="fp16", islands="minimal", max_seq_len=10 * horizon)
        )


def test_model_that_leaves_fp32_is_refused() -> None:
    model = build_model(CONFIGS["causal"])
    model.to_logits[1].weight.data.fill_(3e38)  # type: ignore[index, union-attr]
    with pytest.raises(
        ConfigError, match=r"logits is (inf|nan) at seq_len=.* in fp32 already, so that no island holds it"
    ):
        choose_islands(model, draw_data(model), ExportOptions(precision="fp16", max_seq_len=64))


def test_bf16_needs_no_measurement() -> None:
    model = build_model(CONFIGS["causal"])
    for mode in ("auto", "minimal"):
        facts = choose_islands(model, draw_data(model), ExportOptions(precision="bf16", islands=mode)).facts
        assert (facts.islands, facts.horizon, facts.seq_lens) == ((), None, ())


def test_choice_does_not_depend_on_time_or_run() -> None:
    model, options = build_model(CONFIGS["non-causal"]), ExportOptions(precision="fp16", max_seq_len=256)
    assert choose_islands(model, draw_data(model), options) == choose_islands(model, draw_data(model), options)


@pytest.mark.parametrize(("max_seq_len", "expected"), [(3, [1, 3]), (64, [16, 32, 64]), (100, [25, 50, 100])])
def test_lengths_end_with_the_longest(max_seq_len: int, expected: list[int]) -> None:
    assert plan_lengths(CONFIGS["causal"], max_seq_len) == expected


def test_lengths_of_a_large_model_are_short() -> None:
    sizes = {**SIZES, "dim": 4096, "hidden_dim": 8192, "depth": 24, "qk_dim": 128}
    assert plan_lengths(FlashConfig(**sizes, chunk_size=256), 65536) == [128, 256, 512]


@pytest.fixture(scope="module", params=["fp16", pytest.param("bf16", marks=pytest.mark.slow)])
def half_bundle(request: pytest.FixtureRequest, export_half: Callable[[str], Bundle]) -> Bundle:
    return export_half(request.param)


def export(model: ReferenceModel, folder: Path, **options: Any) -> Bundle:
    model.save_pretrained(folder / "checkpoint")
    return export_onnx(folder / "checkpoint", folder / "bundle", options=ExportOptions(**options))


@pytest.mark.parametrize("seq_len", [1, 7, 8, 9, 61, 4096, 65536])
def test_graph_is_finite_and_right_at_every_length(half_bundle: Bundle, seq_len: int) -> None:
    graph = half_bundle.get_graph()
    tokens = draw_tokens(seq_len, batch=1)
    with OrtRunner(graph, half_bundle.get_graph_path()) as runner:
        logits = runner.run({"input_ids": tokens.numpy()})["logits"]
    expected = half_bundle.load_model()(tokens)
    assert compute_error(expected, torch.from_numpy(logits)) < 2 * ROUNDING[graph.precision]


@pytest.fixture(scope="module")
def scaled_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Export a graph that is full of infinite values if nothing is kept in fp32."""
    model = build_model(CONFIGS["causal"])
    for scale in (scale_embedding, scale_queries, scale_output):
        scale(model)
    return export(model, tmp_path_factory.mktemp("scaled"), precision="fp16", graphs=("forward",))


def test_scaled_weights_stay_finite_at_the_longest_length(scaled_bundle: Bundle) -> None:
    with OrtRunner(scaled_bundle.get_graph(), scaled_bundle.get_graph_path()) as runner:
        logits = runner.run({"input_ids": draw_tokens(65536, batch=1).numpy()})["logits"]
    assert np.isfinite(logits).all()


def test_prefill_and_decode_say_what_the_forward_graph_says(half_bundle: Bundle) -> None:
    tokens = draw_tokens(SEQ_LEN).numpy()
    graph = half_bundle.get_graph()
    with OrtRunner(graph, half_bundle.get_graph_path()) as runner:
        whole = runner.run({"input_ids": tokens})["logits"]
    with StreamingRunner(open_runners(half_bundle, "ort-cpu")) as streaming:
        pieces = streaming.run({"input_ids": tokens})["logits"]
    assert 0 < compute_error(torch.from_numpy(whole), torch.from_numpy(pieces)) < ROUNDING[graph.precision]
    dtypes = {spec.name.rpartition(".")[2]: spec.dtype for spec in half_bundle.get_graph("decode").state_inputs}
    cache = "float16" if graph.precision == "fp16" else "float32"  # numpy has no bfloat16
    assert dtypes == {
        "position": "int64",
        "kv": "float32",
        "quad_k": cache,
        "lin_k": cache,
        "v": cache,
        "shift": cache,
    }


def test_weights_and_products_are_half(half_bundle: Bundle) -> None:
    half = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[half_bundle.get_graph().precision]
    for name in half_bundle.manifest.graphs:
        model = onnx.load(half_bundle.get_graph_path(name), load_external_data=False)
        types = {
            value.name: value.type.tensor_type.elem_type
            for value in onnx.shape_inference.infer_shapes(model).graph.value_info
        }
        matrices = [tensor for tensor in model.graph.initializer if len(tensor.dims) > 1]
        assert {tensor.data_type for tensor in matrices} == {half}
        products = [node for node in model.graph.node if node.op_type == "MatMul"]
        wide = [node.name for node in products if types.get(node.output[0]) != half]
        # Decode multiplies one row with the fp32 sum, extend adds to it the products of what leaves the cache.
        assert len(wide) == (SIZES["depth"] if name in ("extend", "decode") else 0)
        assert {types[node.output[0]] for node in model.graph.node if node.op_type in ("CumSum", "ReduceSum")} == {
            onnx.TensorProto.FLOAT
        }


@pytest.mark.parametrize(
    ("precision", "opset"),
    [
        ("fp16", 18),
        pytest.param("bf16", 23, marks=pytest.mark.slow),
        pytest.param("fp16", 23, marks=pytest.mark.slow),
        pytest.param("bf16", 18, marks=pytest.mark.slow),
    ],
)
def test_every_opset(precision: str, opset: int, tmp_path: Path) -> None:
    kind: dict[str, Any] = {"attention_fn": "laplace", "norm_type": "layernorm", "shift_tokens": False}
    model = build_model(FlashConfig(**{**SIZES, "depth": 1}, chunk_size=8, **kind))
    bundle = export(model, tmp_path, precision=precision, opset=opset, max_seq_len=64, graphs=("forward",))
    assert onnx.load(bundle.get_graph_path()).opset_import[0].version == opset


def test_facts_are_in_the_manifest(scaled_bundle: Bundle) -> None:
    facts = scaled_bundle.manifest.precision
    assert facts is not None
    assert (facts.precision, facts.mode, facts.data) == ("fp16", "auto", "random tokens")
    assert facts.seq_lens == tuple(plan_lengths(CONFIGS["causal"], 65536))
    assert "layers.1.update" in {island.name for island in facts.islands}


def test_limit_is_a_quarter_of_fp16() -> None:
    assert float(np.finfo(np.float16).max) / 4 == LIMIT
