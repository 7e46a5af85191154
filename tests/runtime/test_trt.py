from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shlex
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from flash_export.bundle.manifest import EngineManifest, ProfileShapes
from flash_export.config import BuildOptions
from flash_export.errors import BackendUnavailableError, BundleError, InputError
from flash_export.install import get_install_command
from flash_export.interface import TensorSpec
from flash_export.runtime import trt as trt_module
from flash_export.runtime.engine_check import check_engine, format_rebuild
from flash_export.runtime.profile_choice import choose_profile, format_profile
from flash_export.runtime.trt import open_engine
from flash_export.runtime.trt_api import get_device_capability

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    import onnx

    from flash_export.bundle.bundle import Bundle

    BundleFactory = Callable[..., Bundle]

needs_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here, so no engine can run"),
]
VERSION = importlib.metadata.version("tensorrt-rtx-cu13") if importlib.util.find_spec("tensorrt_rtx") else "1.7"
WEIGHT = np.linspace(-1, 1, 16, dtype=np.float32).reshape(1, 4, 4)


def make_model() -> onnx.ModelProto:
    """Make x (batch, seq, 4) -> relu(x @ WEIGHT)."""
    source = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "seq", 4])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "seq", 4])
    nodes = [helper.make_node("MatMul", ["x", "weight"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    graph = helper.make_graph(nodes, "tiny", [source], [result], [numpy_helper.from_array(WEIGHT, "weight")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def make_engine(**changes: Any) -> EngineManifest:
    small = ProfileShapes((1, 1, 4), (1, 64, 4), (1, 1024, 4))
    large = ProfileShapes((1, 1, 4), (8, 64, 4), (8, 256, 4))
    spec = {name: TensorSpec(name, "float32", ("batch", "seq", 4)) for name in ("x", "y")}
    values: dict[str, Any] = {
        "name": "tiny",
        "flavour": "tensorrt-rtx",
        "version": VERSION,
        "targets": ("8.9",),
        "graph": "forward",
        "graph_sha256": "",
        "engine_sha256": "",
        "profiles": ({"x": small}, {"x": large}),
        "inputs": (spec["x"],),
        "outputs": (spec["y"],),
        "num_layers": 3,
    }
    return EngineManifest(**{**values, **changes})


def write_engine(bundle: Bundle, plan: bytes = b"plan", **changes: Any) -> EngineManifest:
    """Store an engine that nothing could load, but whose hashes are right."""
    import hashlib

    hashes = {
        "graph_sha256": bundle.manifest.files["model.onnx"],
        "engine_sha256": hashlib.sha256(plan).hexdigest(),
    }
    engine = make_engine(**{**hashes, **changes})
    bundle.write_engine(engine, plan)
    return engine


@pytest.mark.parametrize(
    ("shape", "index"),
    [((1, 1, 4), 0), ((1, 1024, 4), 0), ((2, 1, 4), 1), ((8, 256, 4), 1), ((1, 256, 4), 0)],
)
def test_first_profile_that_fits_is_chosen(shape: tuple[int, ...], index: int) -> None:
    assert choose_profile(make_engine(), {"x": shape}) == index


@pytest.mark.parametrize("shape", [(2, 257, 4), (9, 1, 4), (1, 1025, 4), (1, 4), (1, 1, 5)])
def test_shape_in_no_profile_names_them_all_and_the_cure(shape: tuple[int, ...]) -> None:
    text = "x".join(map(str, shape))
    message = (
        f"x {text} fits no profile of engine 'tiny' (profile 0: x 1x1x4 to 1x1024x4; profile 1: x 1x1x4 to 8x256x4); "
        "stay in range, or build another engine with 'flash-export trt --profile"
    )
    with pytest.raises(InputError, match=re.escape(message)):
        choose_profile(make_engine(), {"x": shape})


def test_every_input_has_to_fit() -> None:
    profiles = tuple({**profile, "mask": ProfileShapes((1, 1), (1, 1), (1, 64))} for profile in make_engine().profiles)
    engine = make_engine(profiles=profiles)
    assert choose_profile(engine, {"x": (1, 64, 4), "mask": (1, 64)}) == 0
    with pytest.raises(InputError, match=r"x 1x65x4, mask 1x65 fits no profile .* mask 1x1 to 1x64"):
        choose_profile(engine, {"x": (1, 65, 4), "mask": (1, 65)})


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, major: int = 8, minor: int = 9) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (major, minor))


def test_a_profile_is_written_as_on_the_command_line() -> None:
    mask = ProfileShapes((1, 1), (1, 2), (1, 64))
    specs = (TensorSpec("x", "float32", ("batch", "seq", 4)), TensorSpec("mask", "int64", ("batch", "past")))
    profiles = tuple({**profile, "mask": mask} for profile in make_engine().profiles)
    engine = make_engine(profiles=profiles, inputs=specs)
    assert format_profile(engine, engine.profiles[1]) == "1x1x1:8x64x2:8x256x64"
    fixed = ProfileShapes((1, 80), (1, 80), (1, 80))
    engine = make_engine(inputs=(TensorSpec("x", "float32", (1, 80)),), profiles=({"x": fixed},))
    assert format_profile(engine, engine.profiles[0]) is None


def test_without_a_gpu_the_reason_is_given_in_one_line(
    write_graph_bundle: BundleFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    bundle = write_graph_bundle(make_model())
    with pytest.raises(
        BackendUnavailableError, match=r"^no CUDA device here; engine 'tiny' needs an NVIDIA GPU .*PyTorch$"
    ):
        open_engine(bundle, write_engine(bundle))


@pytest.mark.parametrize(
    ("flavour", "module", "extra"), [("tensorrt-rtx", "tensorrt_rtx", "rtx"), ("tensorrt", "tensorrt", "gpu")]
)
def test_missing_package_names_the_extra(
    write_graph_bundle: BundleFactory, monkeypatch: pytest.MonkeyPatch, flavour: str, module: str, extra: str
) -> None:
    pretend_gpu(monkeypatch)
    monkeypatch.setitem(sys.modules, module, None)
    bundle = write_graph_bundle(make_model())
    engine = write_engine(bundle, flavour=flavour)
    with pytest.raises(BackendUnavailableError, match=re.escape(get_install_command(extra))):
        open_engine(bundle, engine)
    status = check_engine(bundle, engine)
    assert status
    assert not status.fits
    assert status.unknown[0].startswith("its version, because TensorRT")


class TestWhatMustNotBeLoaded:
    """Each is refused with what differs and the command that builds it again, before TensorRT sees the file."""

    @pytest.fixture(autouse=True)
    def _gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pretend_gpu(monkeypatch)
        monkeypatch.setattr(trt_module, "TrtRunner", None)

    def refuse(self, bundle: Bundle, engine: EngineManifest, reason: str, *, is_damaged: bool = True) -> None:
        status = check_engine(bundle, engine)
        assert not status
        assert status.is_damaged == is_damaged
        assert any(re.search(reason, one) for one in status.differences), status.differences
        message = rf"engine 'tiny' must not be loaded here: .*{reason}.*; build it again: flash-export trt .* --force"
        with pytest.raises(BundleError if is_damaged else BackendUnavailableError, match=message):
            open_engine(bundle, engine)

    def test_of_an_unknown_flavour(self, write_graph_bundle: BundleFactory) -> None:
        bundle = write_graph_bundle(make_model())
        engine = write_engine(bundle, flavour="other")
        self.refuse(bundle, engine, "its flavour is 'other', this version knows tensorrt, tensorrt-rtx")

    def test_that_was_changed(self, write_graph_bundle: BundleFactory) -> None:
        bundle = write_graph_bundle(make_model())
        engine = write_engine(bundle)
        (bundle.path / "engines" / "tiny.engine").write_bytes(b"other plan")
        self.refuse(bundle, engine, "was changed after the build")

    def test_whose_file_is_missing(self, write_graph_bundle: BundleFactory) -> None:
        bundle = write_graph_bundle(make_model())
        engine = write_engine(bundle)
        (bundle.path / "engines" / "tiny.engine").unlink()
        self.refuse(bundle, engine, "is missing, but tiny.json names it")

    def test_of_another_graph(self, write_graph_bundle: BundleFactory) -> None:
        bundle = write_graph_bundle(make_model())
        self.refuse(bundle, write_engine(bundle, graph_sha256="0" * 64), "was built from another graph")

    def test_of_another_version(self, write_graph_bundle: BundleFactory) -> None:
        pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
        bundle = write_graph_bundle(make_model())
        reason = f"it was built by TensorRT-RTX 0.9, here is {re.escape(VERSION)}"
        self.refuse(bundle, write_engine(bundle, version="0.9"), reason, is_damaged=False)

    def test_for_another_gpu(self, write_graph_bundle: BundleFactory, monkeypatch: pytest.MonkeyPatch) -> None:
        pretend_gpu(monkeypatch, 9, 0)
        bundle = write_graph_bundle(make_model())
        engine = write_engine(bundle, targets=("8.9", "12.0"))
        reason = "it was built for compute capability 8.9, 12.0, the GPU here has 9.0"
        self.refuse(bundle, engine, reason, is_damaged=False)


def test_what_fits_is_said_to_fit(write_graph_bundle: BundleFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    bundle = write_graph_bundle(make_model())
    engine = write_engine(bundle)
    assert check_engine(bundle, engine).unknown == ("the GPU, because there is no CUDA device here",)
    pretend_gpu(monkeypatch)
    status = check_engine(bundle, engine)
    assert status.fits
    assert status.differences == status.unknown == ()


def test_the_command_that_builds_it_again_makes_the_same_engine(write_graph_bundle: BundleFactory) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    from flash_export.cli.main import main
    from flash_export.exporters.engine import build_engine

    bundle = write_graph_bundle(make_model())
    options = BuildOptions(
        profiles=("1x1:1x64:1x1024", "1x1:8x64:8x256"),
        compute_capabilities=("8.6", "12.0"),
        workspace_bytes=64 << 20,
        tf32=True,
    )
    engine = build_engine(bundle, options=replace(options, name="tiny")).engine
    name, *arguments = shlex.split(format_rebuild(bundle, engine))
    assert name == "flash-export"
    result = CliRunner().invoke(main, [*arguments, "--no-cache"])
    assert result.exit_code == 0, result.output
    (again,) = bundle.list_engines()
    assert replace(again, build_seconds=0) == replace(engine, build_seconds=0)


class TestOnGpu:
    pytestmark = needs_gpu

    @pytest.fixture
    def built(self, write_graph_bundle: BundleFactory) -> tuple[Bundle, EngineManifest]:
        pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
        from flash_export.exporters.engine import build_engine

        bundle = write_graph_bundle(make_model())
        options = BuildOptions(flavour="tensorrt-rtx", profiles=("1x1:1x64:1x1024", "1x1:8x64:8x256"))
        return bundle, build_engine(bundle, options=options).engine

    def test_outputs_are_those_of_the_graph_in_every_profile(self, built: tuple[Bundle, EngineManifest]) -> None:
        generator = np.random.default_rng(0)
        with open_engine(*built) as runner:
            assert runner.name == "trt:forward"
            for batch, seq_len in ((1, 1), (1, 1024), (8, 256), (3, 37), (1, 5)):
                x = generator.standard_normal((batch, seq_len, 4), dtype=np.float32)
                actual = runner.run({"x": x})["y"]
                np.testing.assert_allclose(actual, np.maximum(x @ WEIGHT, 0), rtol=1e-5, atol=1e-6)

    def test_out_of_range_is_an_input_error(self, built: tuple[Bundle, EngineManifest]) -> None:
        with open_engine(*built) as runner, pytest.raises(InputError, match="fits no profile"):
            runner.run({"x": np.zeros((2, 257, 4), np.float32)})

    def test_file_that_is_no_engine_is_a_bundle_error(self, built: tuple[Bundle, EngineManifest]) -> None:
        bundle, _ = built
        engine = write_engine(bundle, b"no engine", targets=(get_device_capability(),))
        with pytest.raises(BundleError, match="cannot be loaded: built by tensorrt-rtx"):
            open_engine(bundle, engine)
