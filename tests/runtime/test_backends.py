from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest

from flash_export.config import DECODE, FORWARD
from flash_export.runtime.backends import BACKENDS
from flash_export.runtime.ort import OrtRunner
from flash_export.runtime.ort_binding import DeviceBuffers
from flash_export.runtime.ort_providers import PROVIDERS

if TYPE_CHECKING:
    from flash_export.bundle.bundle import Bundle


@pytest.mark.parametrize("graph", [FORWARD, DECODE])
def test_runtime_that_reads_graphs_has_one_target_of_each(causal_byte_bundle: Bundle, graph: str) -> None:
    for name in ("ort-cpu", "ort-cuda", "openvino"):
        (target,) = BACKENDS[name].find(causal_byte_bundle, graph)
        assert (target.name, target.path) == (name, causal_byte_bundle.get_graph_path(graph))
        assert target.inputs == causal_byte_bundle.get_graph(graph).inputs
    assert BACKENDS["trt"].find(causal_byte_bundle, graph) == ()


@pytest.mark.parametrize(
    ("name", "module", "owned"),
    [
        ("ort-cpu", "onnxruntime", "_session"),
        ("openvino", "openvino", "_request"),
        ("trt-network", "tensorrt_rtx", "_parsed"),
    ],
)
def test_a_runner_that_is_left_keeps_nothing(causal_bundle: Bundle, name: str, module: str, owned: str) -> None:
    """What holds the weights goes with the block, however long the runner itself is kept."""
    pytest.importorskip(module, reason=f"{module} is not installed")
    (target,) = BACKENDS[name].find(causal_bundle, FORWARD)
    with target.open(threads=1) as runner:
        runner.run({"input_ids": np.zeros((1, 3), np.int64)})
        assert getattr(runner, owned) is not None
    assert getattr(runner, owned, None) is None


def test_buffers_of_a_device_go_before_the_session(causal_bundle: Bundle) -> None:
    with OrtRunner(causal_bundle.get_graph(), causal_bundle.get_graph_path(), threads=1) as runner:
        runner._device_buffers = DeviceBuffers(onnxruntime, runner._session, ["logits"], device="cpu")
        runner._provider = PROVIDERS["cuda"]
        runner.run({"input_ids": np.zeros((1, 3), np.int64)})
    assert runner._device_buffers is None
    assert runner._session is None
