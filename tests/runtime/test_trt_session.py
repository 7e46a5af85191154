"""Running engines on a machine without a GPU: our code drives a stand-in for TensorRT, which checks what it is told."""

from __future__ import annotations

import hashlib
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from flash_export.bundle.manifest import AxisRange, EngineManifest, GraphSpec, ProfileShapes
from flash_export.errors import BackendUnavailableError, BundleError, ConfigError, InputError
from flash_export.interface import TensorSpec
from flash_export.runtime.kernel_cache import KernelCache
from flash_export.runtime.trt import TrtRunner
from flash_export.runtime.trt_session import MAX_BOUND, EngineOptions, LoadedEngine
from tests.runtime.trt_stub import (
    CudaGraphStrategy,
    DynamicShapesKernelSpecializationStrategy,
    EngineValidity,
    HostDevice,
    Plan,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Opener = Callable[..., tuple[TrtRunner, Plan, HostDevice]]

INPUTS = (TensorSpec("x", "float32", ("batch", "seq", 4)), TensorSpec("shift", "int64", ("batch",)))
OUTPUTS = (TensorSpec("y", "float32", ("batch", "seq", 4)), TensorSpec("sum", "int64", ("batch",)))
GRAPH = GraphSpec("model.onnx", 20, "fp32", INPUTS, OUTPUTS, {"batch": AxisRange(1, 64), "seq": AxisRange(1, 100)})


def compute(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    x, shift = inputs["x"], inputs["shift"]
    return {"y": np.maximum(x, 0) + shift[:, None, None].astype(np.float32), "sum": shift * 2}


def make_profile(*sizes: tuple[int, int]) -> dict[str, ProfileShapes]:
    (low, tuned, high) = sizes
    return {
        "x": ProfileShapes((*low, 4), (*tuned, 4), (*high, 4)),
        "shift": ProfileShapes(low[:1], tuned[:1], high[:1]),
    }


def make_manifest(**changes: Any) -> EngineManifest:
    profiles = (make_profile((1, 1), (1, 8), (1, 64)), make_profile((1, 1), (8, 8), (8, 32)))
    values: dict[str, Any] = {
        "name": "tiny",
        "flavour": "tensorrt",
        "version": "0.0",
        "targets": ("8.9",),
        "graph": "forward",
        "graph_sha256": "",
        "engine_sha256": hashlib.sha256(b"plan").hexdigest(),
        "profiles": profiles,
        "inputs": INPUTS,
        "outputs": OUTPUTS,
        "num_layers": 3,
    }
    return EngineManifest(**{**values, **changes})


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def opener(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Opener:
    """Open a runner of either flavour; in each, the API is only what that flavour has."""

    def open_runner(
        options: EngineOptions | None = None, *, on_host: tuple[str, ...] = (), content: bytes = b"plan", **changes: Any
    ) -> tuple[TrtRunner, Plan, HostDevice]:
        manifest = make_manifest(flavour=request.param, **changes)
        plan = Plan(manifest, compute, on_host=on_host, kernels=request.param == "tensorrt-rtx")
        monkeypatch.setitem(sys.modules, request.param.replace("-", "_"), plan.make_module())
        (tmp_path / "plan").write_bytes(content)
        device = HostDevice()
        engine = LoadedEngine(manifest, tmp_path / "plan", device, options)  # type: ignore[arg-type]
        return TrtRunner(GRAPH, engine), plan, device

    return open_runner


def draw(batch: int, seq_len: int, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((batch, seq_len, 4), dtype=np.float32)
    return {"x": x, "shift": generator.integers(0, 9, batch)}


def check(runner: TrtRunner, inputs: dict[str, np.ndarray]) -> None:
    outputs = runner.run(inputs)
    for name, expected in compute(inputs).items():
        np.testing.assert_array_equal(outputs[name], expected)


SHAPES = ((1, 1), (1, 64), (8, 32), (3, 7), (1, 5), (1, 64))


@pytest.mark.parametrize("cuda_graphs", [False, True])
@pytest.mark.parametrize("on_host", [(), ("shift", "sum")])
def test_arrays_go_through_an_engine_in_every_profile(
    opener: Opener, cuda_graphs: bool, on_host: tuple[str, ...]
) -> None:
    runner, _, device = opener(EngineOptions(cuda_graphs=cuda_graphs), on_host=on_host)
    with runner:
        for seed, (batch, seq_len) in enumerate(SHAPES * 3):
            check(runner, draw(batch, seq_len, seed))
    assert all(stream.num_waits for stream in device.streams)


def test_outputs_are_not_written_to_by_the_next_run(opener: Opener) -> None:
    runner, _, _ = opener()
    with runner:
        inputs = draw(2, 5)
        first = runner.run(inputs)
        runner.run(draw(2, 5, seed=1))
        np.testing.assert_array_equal(first["y"], compute(inputs)["y"])


def test_buffers_of_a_shape_are_used_again(opener: Opener) -> None:
    runner, _, device = opener()
    with runner:
        check(runner, draw(2, 5))
        count = device.num_created
        check(runner, draw(2, 5, seed=1))
        assert device.num_created == count


def test_buffers_of_the_latest_shapes_alone_are_kept(opener: Opener) -> None:
    runner, _, _ = opener()
    with runner:
        for seq_len in range(1, MAX_BOUND + 5):
            check(runner, draw(1, seq_len))
        assert len(runner._session._bound) == MAX_BOUND


def test_cuda_graphs_are_recorded_around_tensorrt_and_inside_tensorrt_rtx(opener: Opener) -> None:
    runner, plan, device = opener(EngineOptions(cuda_graphs=True))
    with runner:
        check(runner, draw(2, 5))
        (context,) = plan.engines[0].contexts
        told = context.num_told
        check(runner, draw(2, 5, seed=1))
        if plan.kernels:
            assert context.config.cuda_graph_strategy is CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            assert device.num_captured == 0
        else:
            assert device.num_captured == 1
            assert context.num_told == told  # a recorded run says nothing to TensorRT
        # What another shape does to the context leaves a recorded run as it is.
        check(runner, draw(8, 32))
        check(runner, draw(2, 5, seed=2))


def test_tensors_on_the_device_stay_there(opener: Opener) -> None:
    runner, _, device = opener()
    with runner:
        inputs = draw(3, 7)
        tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
        waits = [stream.num_waits for stream in device.streams]
        outputs = runner.run_on_device(tensors)
        assert [stream.num_waits for stream in device.streams] == waits
        assert all(isinstance(value, torch.Tensor) for value in outputs.values())
        np.testing.assert_array_equal(outputs["y"].numpy(), compute(inputs)["y"])
        again = runner.run_on_device({"x": tensors["x"] * -1, "shift": tensors["shift"]})
        assert again["y"].data_ptr() != outputs["y"].data_ptr()
        np.testing.assert_array_equal(outputs["y"].numpy(), compute(inputs)["y"])  # they are the caller's


def test_other_libraries_tensors_are_taken_by_dlpack(opener: Opener) -> None:
    runner, _, _ = opener()
    with runner:
        inputs = draw(3, 7)
        outputs = runner.run_on_device(inputs)  # numpy arrays speak DLPack, and nothing else is asked of them
        np.testing.assert_array_equal(np.from_dlpack(outputs["y"]), compute(inputs)["y"])


def test_tensors_that_are_not_contiguous_are_copied(opener: Opener) -> None:
    runner, _, _ = opener()
    with runner:
        inputs = draw(3, 7)
        x = torch.from_numpy(np.ascontiguousarray(inputs["x"].transpose(1, 0, 2))).transpose(0, 1)
        outputs = runner.run_on_device({"x": x, "shift": torch.from_numpy(inputs["shift"])})
        np.testing.assert_array_equal(outputs["y"].numpy(), compute(inputs)["y"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": np.zeros((1, 65, 4), np.float32)}, "fits no profile of engine 'tiny'"),
        ({"x": np.zeros((1, 101, 4), np.float32)}, "seq_len=101 exceeds the graph's maximum 100"),
        ({"x": np.zeros((1, 5, 4), np.float64)}, "x has dtype float64, the graph takes float32; convert it"),
        ({"x": np.zeros((1, 5, 3), np.float32)}, r"x has shape \(1, 5, 3\), the graph takes"),
        ({"x": np.zeros((2, 5, 4), np.float32)}, "shift has batch=1 but x has 2"),
        ({"z": np.zeros(1)}, "input z is unknown"),
    ],
)
def test_wrong_inputs_are_refused_before_tensorrt_sees_them(
    opener: Opener, changes: dict[str, np.ndarray], message: str
) -> None:
    runner, plan, _ = opener()
    with runner:
        inputs = {**draw(1, 5), **changes}
        with pytest.raises(InputError, match=message):
            runner.run(inputs)
        with pytest.raises(InputError, match=message):
            runner.run_on_device({name: torch.from_numpy(value) for name, value in inputs.items()})
        assert plan.engines[0].contexts[0].num_told == 0


def test_an_unknown_strategy_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"kernels='egaer' is unknown; use one of .*did you mean eager"):
        EngineOptions(kernels="egaer")  # type: ignore[arg-type]


def test_a_failed_run_says_why(opener: Opener) -> None:
    runner, plan, _ = opener()
    with runner:
        plan.fails = True
        with pytest.raises(BackendUnavailableError, match="engine 'tiny' failed to run: out of memory; see whether"):
            runner.run(draw(1, 5))


def test_a_file_that_cannot_be_loaded_says_why(opener: Opener) -> None:
    with pytest.raises(BundleError, match=r"cannot be loaded: built by .* for 8.9, here is 0.0 \(magic tag does not"):
        opener(content=b"none")


@pytest.mark.parametrize("opener", ["tensorrt-rtx"], indirect=True)
def test_an_engine_that_is_not_valid_here_is_not_loaded(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT-RTX tells before it loads one."""
    made = Plan.__init__

    def make(self: Plan, *arguments: Any, **options: Any) -> None:
        made(self, *arguments, **options)
        self.validity = (EngineValidity.INVALID, 2)

    monkeypatch.setattr(Plan, "__init__", make)
    with pytest.raises(BundleError, match=r"it is not valid here \(unsupported_cc\)"):
        opener()


@pytest.mark.parametrize("opener", ["tensorrt-rtx"], indirect=True)
def test_kernels_that_were_made_are_kept_for_the_next_process(opener: Opener) -> None:
    options = EngineOptions(kernels="eager")
    runner, plan, _ = opener(options)
    with runner:
        (context,) = plan.engines[0].contexts
        strategy = context.config.dynamic_shapes_kernel_specialization_strategy
        assert strategy is DynamicShapesKernelSpecializationStrategy.EAGER
        assert context.config.cuda_graph_strategy is CudaGraphStrategy.DISABLED
        assert context.config.cache.content == b""
        context.config.cache.content = b"kernels"  # as runs would
    runner, plan, _ = opener(options)
    with runner:
        assert plan.engines[0].contexts[0].config.cache.content == b"kernels"
    runner, plan, _ = opener(EngineOptions(keep_kernels=False))
    with runner:
        assert plan.engines[0].contexts[0].config.cache.content == b""


def test_kernels_lie_in_the_users_cache_and_not_in_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASH_EXPORT_CACHE", str(tmp_path / "cache"))
    cache = KernelCache(make_manifest())
    assert cache.read() is None
    cache.write(b"kernels")
    (path,) = (tmp_path / "cache" / "kernels").iterdir()
    assert path.name == f"{make_manifest().engine_sha256}.bin"
    assert cache.read() == b"kernels"
    path.chmod(0o400)
    before = path.stat()
    cache.write(b"kernels")
    assert path.stat() == before


def test_sessions_of_one_engine_run_in_threads(opener: Opener) -> None:
    runner, plan, _ = opener(EngineOptions(cuda_graphs=True))
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            session = engine.open_session()
            for seq_len in (3, 5, 3, 5):
                inputs = draw(2, seq_len, seed)
                binding = session.get_binding({name: value.shape for name, value in inputs.items()})
                for name, value in inputs.items():
                    binding.inputs[name].copy_(torch.from_numpy(value))
                binding.run()
                for name, expected in compute(inputs).items():
                    np.testing.assert_array_equal(binding.outputs[name].numpy(), expected)
        except BaseException as error:
            failures.append(error)

    with runner:
        engine = runner._engine
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert len(plan.engines[0].contexts) == 5


def test_everything_is_freed_at_the_end(opener: Opener) -> None:
    runner, _, _ = opener()
    with runner:
        check(runner, draw(1, 5))
        session, engine = runner._session, runner._engine
    assert session._context is None
    assert engine.engine is None
    assert not session._bound
    assert not runner._staging
