"""Real builds with TensorRT-RTX, which needs no GPU for it."""

from __future__ import annotations

import importlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from flash_export.bundle.bundle import Bundle
from flash_export.bundle.manifest import ProfileShapes
from flash_export.config import TENSORRT, TENSORRT_RTX, BuildOptions, ExportOptions
from flash_export.errors import BackendUnavailableError, BundleError, ConfigError, EngineBuildError, ProfileError
from flash_export.exporters import flavour as flavour_module
from flash_export.exporters.engine import build_engine
from flash_export.exporters.export import export_onnx
from flash_export.exporters.quantization.schemes.registry import SCHEMES_BY_NAME
from flash_export.files import hash_file, write_file
from flash_export.interface import TensorSpec
from flash_export.models.flash import FlashConfig, FlashModel
from flash_export.models.gau import GauConfig, GauModel
from flash_export.runtime.trt_api import import_flavour, name_dtype, parse_network
from flash_export.termination import Terminated, raise_terminations

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    BundleFactory = Callable[..., Bundle]
    SchemeExporter = Callable[[str], Bundle]

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")

SIZES: dict[str, Any] = {"vocab_size": 16, "dim": 32, "depth": 2, "hidden_dim": 64, "qk_dim": 32}
ADA = BuildOptions(compute_capabilities=("8.9",))


def make_model(
    nodes: Sequence[onnx.NodeProto],
    *,
    elem_type: int = TensorProto.FLOAT,
    initializers: Sequence[onnx.TensorProto] = (),
    domains: Sequence[str] = (),
    out_shape: Sequence[int | str] = ("batch", "seq", 4),
) -> onnx.ModelProto:
    """Make a graph x -> y; x is (batch, seq, 4)."""
    source = helper.make_tensor_value_info("x", elem_type, ["batch", "seq", 4])
    result = helper.make_tensor_value_info("y", elem_type, list(out_shape))
    graph = helper.make_graph(list(nodes), "tiny", [source], [result], list(initializers))
    opsets = [helper.make_opsetid("", 20), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def make_matmul(dtype: type[np.generic] = np.float32) -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.arange(16).reshape(1, 4, 4).astype(dtype), "weight")
    elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return make_model([helper.make_node("MatMul", ["x", "weight"], ["y"])], elem_type=elem_type, initializers=[weight])


RELU = make_model([helper.make_node("Relu", ["x"], ["y"], name="only")])


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(FlashConfig(**SIZES, chunk_size=32), marks=pytest.mark.slow),
        pytest.param(
            FlashConfig(**SIZES, chunk_size=32, causal=True, norm_type="layernorm", attention_fn="laplace"),
            marks=pytest.mark.slow,
        ),
        GauConfig(**SIZES),
        pytest.param(GauConfig(**SIZES, causal=True), marks=pytest.mark.slow),
    ],
    ids=["flash-masked", "flash-causal", "gau-masked", "gau-causal"],
)
def test_exported_models_build(tmp_path: Path, config: FlashConfig | GauConfig) -> None:
    model = FlashModel(config) if isinstance(config, FlashConfig) else GauModel(config)
    model.save_pretrained(tmp_path / "checkpoint")
    bundle = export_onnx(tmp_path / "checkpoint", tmp_path / "bundle", options=ExportOptions(graphs=("forward",)))

    engine = build_engine(bundle, options=ADA).engine

    graph = bundle.get_graph()
    assert (engine.inputs, engine.outputs) == (graph.inputs, graph.outputs)
    assert {"float64", "float16"}.isdisjoint(engine.layer_dtypes)
    assert engine.profiles[0]["input_ids"] == ProfileShapes((1, 1), (1, 512), (8, 65536))
    assert engine.num_layers < 130 * (config.depth + 1)  # at most 130 a block, and as many around them


@pytest.mark.parametrize(
    ("scheme", "dtype"),
    [
        ("int8", "int8"),
        pytest.param("int4", "int4", marks=pytest.mark.slow),
        pytest.param("fp8", "float8_e4m3fn", marks=pytest.mark.slow),
    ],
)
def test_quantized_models_build_with_layers_of_few_bits(
    export_scheme: SchemeExporter, tmp_path: Path, scheme: str, dtype: str
) -> None:
    bundle = Bundle.open(shutil.copytree(export_scheme(scheme).path, tmp_path / scheme))
    engine = build_engine(bundle, options=ADA).engine
    graph = bundle.get_graph()
    assert (engine.inputs, engine.outputs) == (graph.inputs, graph.outputs)
    assert engine.layer_dtypes[dtype] >= 3  # a product in the model's one block and one before and after it
    assert bundle.list_engines() == [engine]


@pytest.mark.parametrize("target", ["8.0", "8.6"])
def test_fp8_is_refused_for_gpus_without_it(export_scheme: SchemeExporter, target: str) -> None:
    bundle = export_scheme("fp8")
    with pytest.raises(ConfigError, match=rf"compute capability {target} has no fp8; use 8\.9 or later"):
        build_engine(bundle, options=BuildOptions(compute_capabilities=("8.9", target)))
    assert bundle.list_engines() == []


def test_default_targets_of_fp8_are_those_that_have_it() -> None:
    trt = import_flavour(TENSORRT_RTX)
    fp8, fp32 = (
        flavour_module.choose_targets(trt, TENSORRT_RTX, (), SCHEMES_BY_NAME.get(name)) for name in ("fp8", "fp32")
    )
    assert {"8.0", "8.6"} <= fp32.keys() - fp8.keys()
    assert {"8.9", "12.0"} <= fp8.keys() <= fp32.keys()


def test_what_is_for_onnxruntime_is_refused_with_what_to_use(export_scheme: SchemeExporter) -> None:
    bundle = export_scheme("int8-token")
    with pytest.raises(EngineBuildError, match=r"QuantizeLinear.*; TensorRT takes signed .* quantize --for tensorrt'$"):
        build_engine(bundle, options=ADA)
    assert bundle.list_engines() == []


def test_manifest_says_what_was_built(write_graph_bundle: BundleFactory) -> None:
    import tensorrt_rtx

    bundle = write_graph_bundle(RELU)
    engine = build_engine(bundle).engine

    path = bundle.get_engine_path(engine)
    assert path == bundle.path / "engines" / "forward.engine"
    assert bundle.list_engines() == [engine]
    assert (engine.flavour, engine.version) == ("tensorrt-rtx", tensorrt_rtx.__version__)
    assert "7.5" not in engine.targets
    assert {"8.0", "8.6", "8.9", "12.0"} <= set(engine.targets)
    assert engine.inputs == engine_specs("x")
    assert engine.outputs == engine_specs("y")
    assert (engine.num_layers, engine.layer_dtypes) == (1, {"float32": 1})
    assert engine.profiles == ({"x": ProfileShapes((1, 1, 4), (1, 512, 4), (8, 65536, 4))},)
    assert (engine.size_bytes, engine.engine_sha256) == (path.stat().st_size, hash_file(path))
    assert engine.graph_sha256 == hash_file(bundle.path / "model.onnx")
    assert engine.build_seconds > 0


def engine_specs(name: str) -> tuple[TensorSpec, ...]:
    return (TensorSpec(name, "float32", ("batch", "seq", 4)),)


def test_half_precision_stays_half_precision(write_graph_bundle: BundleFactory) -> None:
    engine = build_engine(write_graph_bundle(make_matmul(np.float16)), options=ADA).engine
    assert engine.inputs[0].dtype == engine.outputs[0].dtype == "float16"
    assert engine.layer_dtypes == {"float16": 2}


def test_weights_in_external_data_are_found(write_graph_bundle: BundleFactory) -> None:
    bundle = write_graph_bundle(make_matmul(), external_data=True)
    assert (bundle.path / "model.onnx.data").stat().st_size >= 64
    assert build_engine(bundle, options=ADA).engine.num_layers == 2


def test_several_profiles_are_kept_in_order(write_graph_bundle: BundleFactory) -> None:
    options = BuildOptions(profiles=("1x1:1x64:1x4096", "8x1:8x64:8x1024"), compute_capabilities=("8.9",))
    engine = build_engine(write_graph_bundle(RELU), options=options).engine
    assert [profile["x"].max for profile in engine.profiles] == [(1, 4096, 4), (8, 1024, 4)]


def test_profile_outside_the_graphs_range_is_refused_before_anything_is_built(
    write_graph_bundle: BundleFactory,
) -> None:
    bundle = write_graph_bundle(RELU, max_seq_len=256)
    with pytest.raises(ProfileError, match="seq 257 exceeds the graph's maximum 256"):
        build_engine(bundle, options=BuildOptions(profiles=("1x1:1x1:1x257",)))
    assert bundle.list_engines() == []


def test_tf32_is_off_unless_asked_for(write_graph_bundle: BundleFactory) -> None:
    bundle = write_graph_bundle(make_matmul())
    plans = [
        build_engine(
            bundle, options=BuildOptions(name=name, tf32=tf32, compute_capabilities=("8.9",))
        ).engine.engine_sha256
        for name, tf32 in (("exact", False), ("again", False), ("rounded", True))
    ]
    assert plans[0] == plans[1] != plans[2]


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            helper.make_node("Det", ["r"], ["y"], name="layers.1/Det_0"),
            "node 'layers.1/Det_0' (Det): UNSUPPORTED_NODE; replace the operators",
        ),
        (
            helper.make_node("Rotate", ["r"], ["y"], name="layers.0/Rotate", domain="acme"),
            "node 'layers.0/Rotate' (acme::Rotate): INVALID_NODE: creator && \"Plugin not found",
        ),
        (helper.make_node("Unique", ["r"], ["y"]), "node number 1, which makes 'y' (Unique)"),
        (
            helper.make_node(
                "Scan",
                ["r"],
                ["y"],
                name="steps",
                num_scan_inputs=1,
                body=helper.make_graph(
                    [helper.make_node("Identity", ["a"], ["b"])],
                    "body",
                    [helper.make_tensor_value_info("a", TensorProto.FLOAT, ["seq", 4])],
                    [helper.make_tensor_value_info("b", TensorProto.FLOAT, ["seq", 4])],
                ),
            ),
            "node 'steps' (Scan): INVALID_NODE: Invalid Node - steps; export a graph without control flow",
        ),
    ],
)
def test_refused_node_is_named(write_graph_bundle: BundleFactory, node: onnx.NodeProto, message: str) -> None:
    bundle = write_graph_bundle(make_model([helper.make_node("Relu", ["x"], ["r"]), node], domains=["acme"]))
    with pytest.raises(EngineBuildError) as caught:
        build_engine(bundle, options=ADA)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert bundle.list_engines() == []


def test_every_refused_node_is_named(write_graph_bundle: BundleFactory) -> None:
    names = ["x", "a", "b", "c", "d", "y"]
    nodes = [
        helper.make_node("Foo", [source], [result], name=f"foo_{result}", domain="acme")
        for source, result in itertools.pairwise(names)
    ]
    with pytest.raises(
        EngineBuildError, match=r"'foo_a'.*'foo_b'.*'foo_c'.*and 2 more; TensorRT has no custom operators"
    ):
        build_engine(write_graph_bundle(make_model(nodes, domains=["acme"])), options=ADA)


def test_damaged_graph_is_an_error_without_a_node(write_graph_bundle: BundleFactory) -> None:
    bundle = write_graph_bundle(RELU)
    (bundle.path / "model.onnx").write_bytes(b"not a graph")
    files = {**bundle.manifest.files, "model.onnx": hash_file(bundle.path / "model.onnx")}
    write_file(bundle.path / "manifest.json", replace(bundle.manifest, files=files).to_json().encode())
    bundle = Bundle.open(bundle.path)
    with pytest.raises(EngineBuildError, match=r"MODEL_DESERIALIZE_FAILED: .*; export the bundle again"):
        build_engine(bundle, options=ADA)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ((TensorSpec("y", "float16", ("batch", "seq", 4)),), "y as float32 (-1, -1, 4), the manifest says float16"),
        ((TensorSpec("y", "float32", ("batch", "seq", 5)),), "the manifest says float32 (-1, -1, 5)"),
        ((TensorSpec("z", "float32", ("batch", "seq", 4)),), "the network's outputs are y, the manifest says z"),
    ],
)
def test_network_that_is_not_what_the_manifest_says_is_refused(
    write_graph_bundle: BundleFactory, outputs: tuple[TensorSpec, ...], message: str
) -> None:
    bundle = write_graph_bundle(RELU, outputs=outputs)
    with pytest.raises(EngineBuildError) as caught:
        build_engine(bundle, options=ADA)
    assert message in str(caught.value)
    assert bundle.list_engines() == []


def test_existing_engine_is_replaced_only_on_request(write_graph_bundle: BundleFactory) -> None:
    bundle = write_graph_bundle(RELU)
    first = build_engine(bundle, options=ADA).engine
    with pytest.raises(BundleError, match="already has an engine 'forward'; replace it with --force"):
        build_engine(bundle, options=ADA)
    assert bundle.list_engines() == [first]
    replaced = build_engine(bundle, options=BuildOptions(overwrite=True, compute_capabilities=("12.0",))).engine
    assert bundle.list_engines() == [replaced]
    assert replaced.targets == ("12.0",)


def test_unknown_target_is_refused(write_graph_bundle: BundleFactory) -> None:
    with pytest.raises(ConfigError, match=r"compute capability '9\.9' is not one .* use one of 7\.5, 8\.0"):
        build_engine(write_graph_bundle(RELU), options=BuildOptions(compute_capabilities=("9.9",)))


def test_failed_build_gives_tensorrts_reason_and_a_cure(write_graph_bundle: BundleFactory) -> None:
    bundle = write_graph_bundle(make_matmul())
    with pytest.raises(EngineBuildError, match=r"FP32 GEMM is not supported.*leave compute capability 7\.5 out"):
        build_engine(bundle, options=BuildOptions(compute_capabilities=("7.5",)))
    assert bundle.list_engines() == []


def test_build_prints_nothing(write_graph_bundle: BundleFactory, capfd: pytest.CaptureFixture[str]) -> None:
    build_engine(write_graph_bundle(RELU), options=ADA)
    assert capfd.readouterr() == ("", "")


def test_progress_reports_nested_phases_from_start_to_end(write_graph_bundle: BundleFactory) -> None:
    reports: list[tuple[int, int, str]] = []
    build_engine(write_graph_bundle(RELU), options=ADA, progress=lambda *report: reports.append(report))
    assert reports[0][0] == 0
    assert reports[-1][0] == reports[-1][1] == reports[0][1]
    done = [report[0] for report in reports]
    assert done == sorted(done)
    phases = {label.partition(",")[0] for _, _, label in reports}
    assert len(phases) > 1, "the phases within the outermost one are not named"


def raise_sigint(*_progress: object) -> None:
    signal.raise_signal(signal.SIGINT)


def raise_sigterm(*_progress: object) -> None:
    signal.raise_signal(signal.SIGTERM)


def raise_stop(*_progress: object) -> None:
    raise StopIteration


@pytest.mark.parametrize(
    ("stop", "expected"),
    [(raise_sigint, KeyboardInterrupt), (raise_sigterm, Terminated), (raise_stop, StopIteration)],
    ids=["ctrl-c", "terminated", "callback"],
)
def test_stopped_build_stores_nothing(
    write_graph_bundle: BundleFactory, stop: Callable[[int, int, str], None], expected: type[BaseException]
) -> None:
    bundle = write_graph_bundle(RELU)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(expected), raise_terminations():
        build_engine(bundle, options=ADA, progress=stop)
    assert bundle.list_engines() == []
    assert signal.getsignal(signal.SIGINT) is handler


def test_killed_while_writing_leaves_the_old_engine(write_graph_bundle: BundleFactory) -> None:
    bundle = write_graph_bundle(RELU)
    old = build_engine(bundle, options=ADA).engine
    script = textwrap.dedent(f"""
        import os, signal
        from flash_export import files
        from flash_export.bundle.bundle import Bundle
        from flash_export.config import BuildOptions
        from flash_export.exporters.engine import build_engine

        files.os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
        build_engine(Bundle.open({str(bundle.path)!r}), options=BuildOptions(overwrite=True, cache=False))
    """)
    killed = subprocess.run(
        [sys.executable, "-c", script], check=False, env={**os.environ, "PYTHONWARNINGS": "default"}
    )
    assert killed.returncode == -signal.SIGKILL
    assert bundle.list_engines() == [old]
    assert hash_file(bundle.get_engine_path(old)) == old.engine_sha256


def test_missing_package_names_the_extra(write_graph_bundle: BundleFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BackendUnavailableError, match=r"TensorRT-RTX is not installed.*pip install .*\[rtx\]"):
        build_engine(write_graph_bundle(RELU), options=ADA)


def test_broken_package_says_so(write_graph_bundle: BundleFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Any:
        raise OSError(f"lib{name}.so: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(BackendUnavailableError, match=r"installed but cannot be loaded \(libtensorrt_rtx\.so"):
        build_engine(write_graph_bundle(RELU), options=ADA)


@pytest.mark.parametrize(
    ("options", "installed", "gpu", "chosen"),
    [
        (BuildOptions(), True, True, TENSORRT),
        (BuildOptions(), True, False, TENSORRT_RTX),
        (BuildOptions(), False, True, TENSORRT_RTX),
        (BuildOptions(compute_capabilities=("8.9",)), True, True, TENSORRT_RTX),
        (BuildOptions(flavour="tensorrt-rtx"), True, True, TENSORRT_RTX),
        (BuildOptions(flavour="tensorrt"), True, True, TENSORRT),
    ],
)
def test_flavour_choice(
    monkeypatch: pytest.MonkeyPatch, options: BuildOptions, installed: bool, gpu: bool, chosen: object
) -> None:
    monkeypatch.setattr(flavour_module, "is_installed", lambda _flavour: installed)
    monkeypatch.setattr(flavour_module, "has_cuda_device", lambda: gpu)
    assert flavour_module.choose_flavour(options) is chosen


def test_tensorrt_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flavour_module, "has_cuda_device", lambda: False)
    with pytest.raises(
        BackendUnavailableError, match="no CUDA device here; build there, or use --flavour tensorrt-rtx"
    ):
        flavour_module.choose_flavour(BuildOptions(flavour="tensorrt"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flavour": "onnx"}, "flavour='onnx' is unknown; use one of auto, tensorrt, tensorrt-rtx"),
        ({"name": "../up"}, r"name='\.\./up' is not usable as a file name"),
        ({"flavour": "tensorrt", "compute_capabilities": ("8.9",)}, "compute_capabilities need flavour tensorrt-rtx"),
        ({"workspace_bytes": 0}, "workspace_bytes=0 is not usable"),
    ],
)
def test_unusable_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BuildOptions(**options)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "dtype"), [("fp16", "float16"), ("bf16", "bfloat16")])
def test_exported_half_precision_is_compiled_as_such(
    precision: str, dtype: str, causal_byte_bundle: Bundle, tmp_path: Path
) -> None:
    """Of the same model in fp32, no layer has that dtype."""
    plain = Bundle.open(shutil.copytree(causal_byte_bundle.path, tmp_path / "fp32"))
    half = export_onnx(plain.path, tmp_path / "half", options=ExportOptions(precision=precision, max_seq_len=64))
    counts = {}
    for name, bundle in (("fp32", plain), (precision, half)):
        for graph in bundle.manifest.graphs:
            engine = build_engine(bundle, options=replace(ADA, graph=graph)).engine
            counts[name, graph] = engine.layer_dtypes
            assert {spec.name: spec.dtype for spec in engine.inputs} == {
                spec.name: spec.dtype for spec in bundle.get_graph(graph).inputs
            }
    for graph in ("forward", "prefill", "extend", "decode"):
        assert dtype not in counts["fp32", graph]
        assert counts[precision, graph]["float32"] < counts["fp32", graph]["float32"]
        network = parse_network(TENSORRT_RTX, half.get_graph_path(graph)).network
        layers = (network.get_layer(index) for index in range(network.num_layers))
        products = Counter(name_dtype(one.get_output(0).dtype) for one in layers if one.type.name == "MATRIX_MULTIPLY")
        # Decode and extend add up what they carry in fp32.
        assert products == {dtype: products[dtype], **({"float32": 1} if graph in ("extend", "decode") else {})}
        assert products[dtype] >= 6


def test_too_little_workspace_is_refused_with_the_option(tmp_path: Path) -> None:
    config = FlashConfig(**SIZES, chunk_size=32, causal=True)
    FlashModel(config).save_pretrained(tmp_path / "checkpoint")
    bundle = export_onnx(tmp_path / "checkpoint", tmp_path / "bundle", options=ExportOptions(graphs=("forward",)))
    with pytest.raises(EngineBuildError, match=r"within workspace limit.*; raise --workspace-mib, or leave it out"):
        build_engine(bundle, options=replace(ADA, workspace_bytes=1 << 20))
    if not torch.cuda.is_available():
        with pytest.raises(EngineBuildError, match=r"OutOfMemory.*; leave --workspace-mib out, or build where the GPU"):
            build_engine(bundle, options=replace(ADA, workspace_bytes=1 << 30))
    assert bundle.list_engines() == []
