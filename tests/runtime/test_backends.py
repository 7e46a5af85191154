from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from flash_export.config import DECODE, FORWARD
from flash_export.runtime.backends import BACKENDS

if TYPE_CHECKING:
    from flash_export.bundle.bundle import Bundle


@pytest.mark.parametrize("graph", [FORWARD, DECODE])
def test_runtime_that_reads_graphs_has_one_target_of_each(causal_byte_bundle: Bundle, graph: str) -> None:
    for name in ("ort-cpu", "ort-cuda", "openvino"):
        (target,) = BACKENDS[name].find(causal_byte_bundle, graph)
        assert (target.name, target.path) == (name, causal_byte_bundle.get_graph_path(graph))
        assert target.inputs == causal_byte_bundle.get_graph(graph).inputs
    assert BACKENDS["trt"].find(causal_byte_bundle, graph) == ()
