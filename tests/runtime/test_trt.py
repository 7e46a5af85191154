from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from flash_export.bundle.manifest import EngineManifest, ProfileShapes
from flash_export.config import BuildOptions
from flash_export.errors import BackendUnavailableError, BundleError, InputError
from flash_export.install import get_install_command
from flash_export.interface import TensorSpec
from flash_export.runtime.profile_choice import choose_profile
from flash_export.runtime.trt import open_engine

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
        "version": "1.7",
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
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, module, None)
    bundle = write_graph_bundle(make_model())
    with pytest.raises(BackendUnavailableError, match=re.escape(get_install_command(extra))):
        open_engine(bundle, write_engine(bundle, flavour=flavour))


def test_unknown_flavour_is_refused(write_graph_bundle: BundleFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    bundle = write_graph_bundle(make_model())
    with pytest.raises(BundleError, match="flavour 'other', this version knows tensorrt, tensorrt-rtx"):
        open_engine(bundle, write_engine(bundle, flavour="other"))


def test_changed_engine_is_never_loaded(write_graph_bundle: BundleFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    bundle = write_graph_bundle(make_model())
    engine = write_engine(bundle)
    (bundle.path / "engines" / "tiny.engine").write_bytes(b"other plan")
    with pytest.raises(BundleError, match="was changed after the build; never run it"):
        open_engine(bundle, engine)


def test_engine_of_another_graph_is_never_loaded(write_graph_bundle: BundleFactory) -> None:
    bundle = write_graph_bundle(make_model())
    with pytest.raises(BundleError, match="was built from another graph"):
        open_engine(bundle, write_engine(bundle, graph_sha256="0" * 64))


class TestOnGpu:
    pytestmark = needs_gpu

    @pytest.fixture
    def built(self, write_graph_bundle: BundleFactory) -> tuple[Bundle, EngineManifest]:
        pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
        from flash_export.exporters.engine import build_engine

        bundle = write_graph_bundle(make_model())
        options = BuildOptions(flavour="tensorrt-rtx", profiles=("1x1:1x64:1x1024", "1x1:8x64:8x256"))
        return bundle, build_engine(bundle, options=options)

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
        with pytest.raises(BundleError, match="cannot be loaded: built by tensorrt-rtx"):
            open_engine(bundle, write_engine(bundle, b"no engine"))
