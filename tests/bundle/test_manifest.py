"""What no manifest may say; each is refused when it is made, and so when it is read."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest

from flash_export.bundle.manifest import AxisRange, EngineManifest, GraphSpec, Horizon, Manifest, ProfileShapes
from flash_export.interface import TensorSpec
from flash_export.typed_json import build
from tests.conftest import INTERFACE, PROVENANCE

IDS = TensorSpec("input_ids", "int64", ("batch", "seq"))
LOGITS = TensorSpec("logits", "float32", ("batch", "seq", 5))
STATE = TensorSpec("state.kv", "float32", ("batch", 2, 3))
GRAPH = GraphSpec("a.onnx", 20, "fp32", (IDS,), (LOGITS,), {"batch": AxisRange(1, 4), "seq": AxisRange(1, 64)})
MANIFEST = Manifest({}, INTERFACE, {"forward": GRAPH}, PROVENANCE, {"a.onnx": "0" * 64})
PROFILE = {"input_ids": ProfileShapes((1, 1), (1, 8), (4, 64))}
ENGINE = EngineManifest("a", "tensorrt", "10", ("current",), "forward", "", "", (PROFILE,), (IDS,), (LOGITS,), 9)


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        (IDS, {"shape": ()}, "input_ids has an empty shape"),
        (IDS, {"shape": ("batch", 0)}, "input_ids has an axis of size 0, wanted 1 to 2147483647"),
        (IDS, {"shape": (2**31,)}, "input_ids has an axis of size 2147483648"),
        (IDS, {"dtype": "int65"}, "input_ids has the unknown dtype 'int65'"),
        (AxisRange(1, 4), {"min": 0}, "0 to 4 is no range of sizes"),
        (AxisRange(1, 4), {"min": 5}, "5 to 4 is no range of sizes"),
        (AxisRange(1, 4), {"max": 2**31}, "1 to 2147483648 is no range of sizes"),
        (GRAPH, {"precision": "fp31"}, "precision is 'fp31', wanted fp32, fp16, bf16, int8"),
        (GRAPH, {"inputs": ()}, "inputs is empty"),
        (GRAPH, {"outputs": ()}, "outputs is empty"),
        (GRAPH, {"inputs": (IDS, IDS)}, "inputs has a name twice"),
        (GRAPH, {"axes": {"batch": AxisRange(1, 4)}}, "axis 'seq' has no range"),
        (
            GRAPH,
            {"inputs": (IDS, dataclasses.replace(STATE, shape=("batch", "seq")))},
            "state.kv has an axis of",
        ),
        (MANIFEST, {"files": {"../a": "", "a.onnx": ""}}, "'../a' is not a file of the bundle"),
        (MANIFEST, {"files": {"..": "", "a.onnx": ""}}, "'..' is not a file of the bundle"),
        (MANIFEST, {"files": {"": "", "a.onnx": ""}}, "'' is not a file of the bundle"),
        (MANIFEST, {"files": {"a\0b": "", "a.onnx": ""}}, r"'a\x00b' is not a file of the bundle"),
        (MANIFEST, {"files": {}}, "it has no sha256 of a.onnx"),
        (MANIFEST, {"checkpoint": {"source": "a"}}, "checkpoint.format is missing"),
        (
            MANIFEST,
            {"graphs": {"forward": dataclasses.replace(GRAPH, inputs=(TensorSpec("x", "int64", (1,)),))}},
            "graphs.forward does not take the inputs of the interface",
        ),
        (
            MANIFEST,
            {"graphs": {"forward": dataclasses.replace(GRAPH, inputs=(dataclasses.replace(IDS, shape=("batch",)),))}},
            "input_ids has 1 axes in graphs.forward, not as in the interface",
        ),
        (
            MANIFEST,
            {"graphs": {"forward": dataclasses.replace(GRAPH, outputs=(LOGITS, STATE))}},
            "graphs.forward does not return the outputs of the interface",
        ),
        (PROFILE["input_ids"], {"min": ()}, "min, opt and max have 0, 2 and 2 axes"),
        (PROFILE["input_ids"], {"opt": (1, 65)}, "(1, 65, 64) are no sizes from 1 to 2147483647 in rising order"),
        (PROFILE["input_ids"], {"min": (0, 1)}, "(0, 1, 4) are no sizes"),
        (ENGINE, {"profiles": ()}, "inputs, outputs or profiles is empty"),
        (ENGINE, {"profiles": ({},)}, "a profile has no shapes of input_ids with 2 axes"),
        (
            ENGINE,
            {"inputs": (dataclasses.replace(IDS, shape=("batch",)),)},
            "no shapes of input_ids with 1 axes",
        ),
        (Horizon("kv", 9, (1, None)), {"interval": (1,)}, "interval has 1 ends, wanted 2"),
    ],
)
def test_what_no_manifest_may_say(base: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        dataclasses.replace(base, **changes)


def test_what_is_written_is_read_back_and_faults_have_their_place() -> None:
    assert build(json.loads(MANIFEST.to_json()), Manifest) == MANIFEST
    assert build(json.loads(ENGINE.to_json()), EngineManifest) == ENGINE
    values = json.loads(MANIFEST.to_json())
    values["graphs"]["forward"]["inputs"][0]["shape"] = []
    with pytest.raises(ValueError, match=r"^graphs\.forward\.inputs\[0\]: input_ids has an empty shape"):
        build(values, Manifest)
