"""MossFormer2, exported: lowered, traced, in half precision and built, each against what came before."""

from __future__ import annotations

import copy
import shutil
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import onnx
import onnxruntime
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
from flash_export.exporters.lowering.mossformer2 import MOSSFORMER2
from flash_export.exporters.lowering.mossformer2_around import LoweredGlobalNorm
from flash_export.exporters.lowering.precision import Precision
from flash_export.exporters.lowering.registry import lower_model
from flash_export.exporters.tracing import quiet_exporter
from flash_export.layers.norm import GlobalNorm
from flash_export.models.mossformer2 import (
    Mossformer2Config,
    Mossformer2Model,
    SpectrumFrames,
    WaveformFrames,
    build_mossformer2,
)
from flash_export.runtime.ort import OrtRunner
from flash_export.validators.bisect.readings import restore_reading
from tests.models.clearvoice_release import import_clearvoice, randomise
from tests.rounding import measure_rounding

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from flash_export.models.mossformer2_layer import Mossformer2Layer

RELATIVE_TOLERANCE = 1e-5  # of the output's scale: fp32 rounding in another order
HALF_ROUNDING = 1e-2  # of the output's scale: some units in the last place, accumulated
NODES = 112  # of a block with a plain memory: 76 of the attention and what follows it, 36 of the memory
DILATED_NODES = 22  # more, of a dilated one
SHARED_NODES = 1  # of the first block: its frames are cut into halves before it
TRT_LAYERS = 650  # of the whole network of ENHANCEMENT

ENHANCEMENT = Mossformer2Config(
    in_channels=5, dim=24, depth=2, hidden_dim=44, out_channels=19, qk_dim=38, chunk_size=16, fsmn_dim=20
)
SEPARATION = replace(
    ENHANCEMENT,
    depth=1,
    out_channels=5,
    fsmn="dilated",
    num_speakers=3,
    frames=WaveformFrames(kernel_size=6, sample_rate=8000),
)


SPEECH = replace(
    ENHANCEMENT,
    depth=1,
    in_channels=12,
    out_channels=31,
    spectrum=SpectrumFrames(sample_rate=8000, length=60, hop=17, num_bands=4),
)


def build_model(config: Mossformer2Config, seed: int = 0) -> Mossformer2Model:
    """Make a model whose frames attend to some others, and whose values keep their scale."""
    torch.manual_seed(seed)
    model = build_mossformer2(config).requires_grad_(requires_grad=False).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("gamma", "beta")):
            parameter.copy_(torch.randn_like(parameter))
        elif parameter.ndim > 1:
            parameter.copy_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
        else:
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def draw(config: Mossformer2Config, batch: int, seq_len: int) -> Tensor:
    (values,) = RandomSource(config.interface).draw(batch, seq_len).arrays.values()
    return torch.from_numpy(values)


def compute_exactly(model: Mossformer2Model, inputs: Tensor) -> Tensor:
    """Return what the reference gives in float64, as a float32 model of many norms is less exact than the tolerance."""
    return copy.deepcopy(model).double()(inputs.double())


def compute_error(expected: Tensor, actual: Tensor) -> float:
    """Return the largest error as a fraction of the scale; NaN if there is one."""
    return float((expected - actual).abs().max() / expected.abs().max().clamp(min=1e-30))


def run_graph(bundle: Bundle, inputs: Tensor) -> Tensor:
    graph = bundle.get_graph()
    with OrtRunner(graph, bundle.get_graph_path()) as runner:
        return torch.from_numpy(runner.run({graph.inputs[0].name: inputs.numpy()})[graph.outputs[0].name])


def export(model: Mossformer2Model, folder: Path, **options: Any) -> Bundle:
    model.save_pretrained(folder / "checkpoint")
    return export_onnx(folder / "checkpoint", folder / "bundle", options=ExportOptions(**options))


configs = st.builds(
    Mossformer2Config,
    in_channels=st.integers(1, 6),
    dim=st.sampled_from((2, 10, 24)),
    depth=st.integers(1, 2),
    hidden_dim=st.sampled_from((3, 16)),
    out_channels=st.integers(5, 9),
    qk_dim=st.sampled_from((2, 7, 37)),
    chunk_size=st.sampled_from((1, 5, 16)),
    conv_size=st.sampled_from((1, 5)),
    fsmn=st.sampled_from(("plain", "dilated")),
    fsmn_dim=st.sampled_from((3, 12)),
    memory_size=st.sampled_from((1, 7)),
    num_speakers=st.integers(1, 3),
)
coders = st.builds(WaveformFrames, kernel_size=st.sampled_from((2, 5, 8)), sample_rate=st.just(8000))
spectra = st.builds(
    SpectrumFrames,
    sample_rate=st.just(8000),
    length=st.sampled_from((20, 33)),
    hop=st.sampled_from((5, 7, 20)),
    num_bands=st.integers(1, 3),
)


@settings(max_examples=40, deadline=None)
@given(
    configs,
    st.none() | coders | spectra,
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(0, 7),
    st.integers(0, 2**16),
)
def test_lowered_model_is_the_reference(
    config: Mossformer2Config,
    frames: WaveformFrames | SpectrumFrames | None,
    batch: int,
    num_frames: int,
    remainder: int,
    seed: int,
) -> None:
    if isinstance(frames, SpectrumFrames):
        features, frequencies = frames.sizes
        config = replace(config, spectrum=frames, in_channels=features, out_channels=frequencies)
    elif frames is not None:
        config = replace(config, frames=frames, out_channels=config.in_channels)
    interface = config.interface
    seq_len = max(interface.min_len, interface.find_length(num_frames) + remainder % interface.frame_hop)
    inputs, model = draw(config, batch, seq_len), build_model(config, seed)
    expected = compute_exactly(model, inputs)
    # Norms over a few values magnify what was rounded before them, in the reference as well.
    rounding = measure_rounding(model, lambda one: one(inputs.double()), compute_error)
    own_error = max(compute_error(expected, model(inputs)), rounding)
    assert compute_error(expected, lower_model(model)(inputs)) <= max(RELATIVE_TOLERANCE, 20 * own_error)


@pytest.fixture(scope="module")
def enhancement() -> Mossformer2Model:
    return build_model(ENHANCEMENT)


@pytest.fixture(scope="module")
def separation() -> Mossformer2Model:
    return build_model(SEPARATION)


@pytest.fixture(scope="module")
def speech() -> Mossformer2Model:
    return build_model(SPEECH)


@pytest.fixture(scope="module")
def speech_bundle(speech: Mossformer2Model, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(speech, tmp_path_factory.mktemp("speech"))


@pytest.fixture(scope="module")
def enhancement_bundle(enhancement: Mossformer2Model, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(enhancement, tmp_path_factory.mktemp("enhancement"))


@pytest.fixture(scope="module")
def separation_bundle(separation: Mossformer2Model, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(separation, tmp_path_factory.mktemp("separation"))


@pytest.mark.parametrize(("batch", "seq_len"), [(1, 1), (2, 1), (1, 15), (3, 16), (1, 17), (2, 32), (1, 67), (1, 400)])
def test_enhancement_s_graph_is_the_reference(
    enhancement: Mossformer2Model, enhancement_bundle: Bundle, batch: int, seq_len: int
) -> None:
    features = draw(ENHANCEMENT, batch, seq_len)
    expected = compute_exactly(enhancement, features)
    assert compute_error(expected, run_graph(enhancement_bundle, features)) <= RELATIVE_TOLERANCE


@pytest.mark.parametrize(
    ("batch", "seq_len"),
    [(1, 9), (2, 10), (1, 11), (3, 12), (1, 50), (1, 51), (1, 53), (2, 54), (1, 207), (1, 1200)],  # 51: a whole chunk
)
def test_separation_s_graph_is_the_reference(
    separation: Mossformer2Model, separation_bundle: Bundle, batch: int, seq_len: int
) -> None:
    waveform = draw(SEPARATION, batch, seq_len)
    sources = run_graph(separation_bundle, waveform)
    assert sources.shape == (batch, 3, seq_len)
    assert compute_error(compute_exactly(separation, waveform), sources) <= RELATIVE_TOLERANCE


@pytest.mark.parametrize(("batch", "seq_len"), [(1, 60), (2, 76), (1, 77), (3, 315), (1, 332), (2, 349), (1, 5000)])
def test_speech_s_graph_is_the_reference(
    speech: Mossformer2Model, speech_bundle: Bundle, batch: int, seq_len: int
) -> None:
    waveform = draw(SPEECH, batch, seq_len)
    found = run_graph(speech_bundle, waveform)
    assert found.shape == waveform.shape
    assert compute_error(compute_exactly(speech, waveform), found) <= RELATIVE_TOLERANCE


def test_silence_has_no_speech_in_it(speech_bundle: Bundle) -> None:
    """The logarithm of no energy is that of the least that counts, not of zero."""
    assert torch.equal(run_graph(speech_bundle, torch.zeros(1, 400)), torch.zeros(1, 400))


def count_nodes(bundle: Bundle) -> Counter[str]:
    nodes = onnx.load(bundle.get_graph_path()).graph.node
    return Counter(".".join(node.name.partition("/")[0].split(".")[:2]) for node in nodes)


def test_blocks_stay_within_the_node_budget(enhancement_bundle: Bundle, separation_bundle: Bundle) -> None:
    enhancement, separation = count_nodes(enhancement_bundle), count_nodes(separation_bundle)
    assert enhancement["layers.0"] + SHARED_NODES == enhancement["layers.1"] == NODES
    assert separation["layers.0"] + SHARED_NODES == NODES + DILATED_NODES
    around = sum(count for name, count in enhancement.items() if not name.startswith("layers."))
    assert around <= 80
    assert separation["encoder"] + separation["decoder"] <= 14


def test_blocks_hold_no_shape_arithmetic(separation_bundle: Bundle) -> None:
    graph = onnx.load(separation_bundle.get_graph_path()).graph
    operators = {node.op_type for node in graph.node if node.name.startswith("layers.")}
    assert operators == {
        *("MatMul", "Add", "Sub", "Mul", "Div", "Sqrt", "ReduceSum", "ReduceMean", "Clip", "LayerNormalization"),
        *("Sigmoid", "Relu", "LeakyRelu", "PRelu", "Conv", "Reshape", "Transpose", "Split", "Concat", "Gather"),
    }


@pytest.mark.filterwarnings("ignore:.* encountered in (exp|divide)")  # of the evaluator's sigmoid, and not used there
@pytest.mark.parametrize("name", ["enhancement", "separation", "speech"])
def test_every_reader_takes_the_graph(name: str, request: pytest.FixtureRequest) -> None:
    """ONNX's reference evaluator runs it, and onnxruntime's symbolic shape inference has a shape for every value.

    The number of frames of a waveform is two expressions to that, which it is to take for one.
    """
    model, bundle = request.getfixturevalue(name), request.getfixturevalue(f"{name}_bundle")
    graph, inputs = onnx.load(bundle.get_graph_path()), draw(model.config, 2, 157)
    (outputs,) = ReferenceEvaluator(graph).run(None, {graph.graph.input[0].name: inputs.numpy()})
    assert compute_error(compute_exactly(model, inputs), torch.from_numpy(outputs)) <= RELATIVE_TOLERANCE
    inferred = SymbolicShapeInference.infer_shapes(graph, auto_merge=name != "enhancement").graph
    shaped = {value.name for value in (*inferred.value_info, *inferred.output)}
    assert {output for node in inferred.node for output in node.output} <= shaped


def test_norms_of_whole_rows_are_exact_over_many_frames(tmp_path: Path) -> None:
    """Sums of a million squares, most of them small, one after the other would be wrong in the fourth digit."""
    norm = GlobalNorm(64).requires_grad_(requires_grad=False)
    lowered = LoweredGlobalNorm(norm, torch.arange(64))
    axes = {"x": {2: torch.export.Dim("seq", min=1, max=65536)}}
    x = torch.randn(1, 1, 16384, 64).relu() * torch.randn(1, 1, 16384, 1).exp()
    path = tmp_path / "norm.onnx"
    with quiet_exporter():
        torch.onnx.export(lowered, (x[:, :, :50],), path, dynamo=True, dynamic_shapes=axes, verbose=False)
    (actual,) = onnxruntime.InferenceSession(path).run(None, {"x": x.numpy()})
    expected = copy.deepcopy(norm).double()(x[:, 0].double())
    assert compute_error(expected, torch.from_numpy(actual)[:, 0]) <= RELATIVE_TOLERANCE


def test_graph_is_clearvoice_itself(tmp_path: Path) -> None:
    """A checkpoint of the library's own model becomes a graph that gives what that model gives."""
    theirs = randomise(import_clearvoice().build_enhancement(12, 16, 21, depth=1, fsmn_dim=8), 0)
    torch.save({"model": theirs.state_dict()}, tmp_path / "checkpoint.pt")
    options = ExportOptions(max_seq_len=600)
    bundle = export_onnx(
        tmp_path / "checkpoint.pt", tmp_path / "bundle", options=options, family="mossformer2", assume_defaults=True
    )
    for num_frames in (255, 257):
        features = torch.randn(1, num_frames, 12)
        expected = theirs(features.double())[-1]
        assert compute_error(expected, run_graph(bundle, features)) <= 10 * RELATIVE_TOLERANCE


@pytest.fixture(scope="module")
def half_bundle(separation: Mossformer2Model, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(separation, tmp_path_factory.mktemp("mossformer2-half"), precision="fp16", max_seq_len=512)


def test_half_graph_is_the_reference_up_to_rounding(separation: Mossformer2Model, half_bundle: Bundle) -> None:
    waveform = draw(SEPARATION, 2, 130)
    expected = separation(waveform)
    assert 0 < compute_error(expected, run_graph(half_bundle, waveform)) < HALF_ROUNDING
    facts = half_bundle.manifest.precision
    assert facts is not None
    assert facts.islands == ()


@pytest.mark.parametrize("config", [ENHANCEMENT, SEPARATION, SPEECH], ids=["enhancement", "separation", "speech"])
def test_lowered_model_is_the_reference_up_to_rounding_in_both_halves(config: Mossformer2Config) -> None:
    model, inputs = build_model(config), draw(config, 2, 130)
    expected = model(inputs)
    for name, limit in (("fp16", HALF_ROUNDING), ("bf16", 8 * HALF_ROUNDING)):
        assert 0 < compute_error(expected, lower_model(model, Precision(name))(inputs)) < limit


def scale_values(layer: Mossformer2Layer) -> None:
    """Attention multiplies values with gates: what passes is beyond fp16 before the norm that follows."""
    layer.to_hidden.conv.weight *= 3e3


def scale_queries(layer: Mossformer2Layer) -> None:
    """Make queries and keys alike, so that scores are positive, and large."""
    layer.qk_offset_scale.gamma[:] = 60 * layer.qk_offset_scale.gamma[0]


@pytest.mark.parametrize(("scale", "island"), [(scale_values, "gated"), (scale_queries, "weights")])
def test_what_overflows_becomes_an_island(scale: Callable[[Mossformer2Layer], None], island: str) -> None:
    model = build_model(replace(ENHANCEMENT, depth=1))
    for layer in cast("list[Mossformer2Layer]", model.layers):
        scale(layer)
    features = draw(ENHANCEMENT, 1, 40)
    expected = compute_exactly(model, features)
    assert not compute_error(expected, lower_model(model, Precision("fp16"))(features)) < 8 * HALF_ROUNDING
    data = Data(RandomSource(model.config.interface))
    choice = choose_islands(model, data, ExportOptions(precision="fp16", max_seq_len=64))
    assert f"layers.0.{island}" in {found.name for found in choice.facts.islands}
    assert compute_error(expected, lower_model(model, choice.precision)(features)) < 8 * HALF_ROUNDING
    with pytest.raises(ConfigError, match=r"beyond the overflow horizon of fp16 .*; use --islands auto"):
        choose_islands(model, data, ExportOptions(precision="fp16", max_seq_len=64, islands="minimal"))


def test_all_islands_leave_projections_and_the_memory_in_half(separation: Mossformer2Model) -> None:
    precision = Precision("fp16", islands=MOSSFORMER2.name_growing(SEPARATION))
    state = lower_model(separation, precision).state_dict()
    half = {name for name, weight in state.items() if weight.dtype == torch.half}
    assert {"layers.0.attention.to_value.weight", "layers.0.out.weight", "embedding.weight"} <= half
    assert {"layers.0.attention.heads.gamma", "encoder.kernel", "decoder.kernel"}.isdisjoint(half)


def test_engines_are_built(
    enhancement_bundle: Bundle, speech_bundle: Bundle, half_bundle: Bundle, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    for index, exported in enumerate((enhancement_bundle, speech_bundle, half_bundle)):
        copied = Bundle.open(shutil.copytree(exported.path, tmp_path / str(index)))
        engine = build_engine(copied, options=BuildOptions(compute_capabilities=("8.9",))).engine
        graph = copied.get_graph()
        assert [spec.shape for spec in (*engine.inputs, *engine.outputs)] == [
            spec.shape for spec in (*graph.inputs, *graph.outputs)
        ]
        assert "float64" not in engine.layer_dtypes
        assert ("float16" in engine.layer_dtypes) == (exported is half_bundle)
        if exported is enhancement_bundle:
            assert engine.num_layers <= TRT_LAYERS


@pytest.mark.parametrize("name", ["enhancement", "separation", "speech"])
def test_marks_are_the_quantities_of_the_reference(name: str, request: pytest.FixtureRequest) -> None:
    """In value, brought into the reference's terms as bisect does it; at 2.5 chunks."""
    model, bundle = request.getfixturevalue(name), request.getfixturevalue(f"{name}_bundle")
    config, interface = model.config, model.config.interface
    batch = RandomSource(interface).draw(2, interface.find_length(41))
    (inputs,) = batch.arrays.values()
    readings: dict[str, Tensor] = {}
    with model.read_probes(readings.__setitem__):
        model(torch.from_numpy(inputs))
    probes = bundle.read_probes()
    by_name = {probe.name: probe for probe in probes.probes}
    assert by_name.keys() == readings.keys() | {interface.outputs[0].name}
    inner = [by_name[one].tensor for one in readings]
    with OrtRunner(bundle.get_graph(), bundle.get_graph_path(), inner_values=inner) as runner:
        values = runner.run({interface.inputs[0].name: inputs})
    reading = restore_reading({one: values[by_name[one].tensor] for one in readings}, probes, config, batch)
    for one, expected in readings.items():
        actual = torch.from_numpy(reading.take(one))
        if one.endswith(".weights"):  # padded queries are anyone's
            actual, expected = actual[:, :2], expected[:, :2]
        wanted = expected[:, None] if actual.ndim > expected.ndim else expected
        assert compute_error(wanted, actual) <= RELATIVE_TOLERANCE, one
