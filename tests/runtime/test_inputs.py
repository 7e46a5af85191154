from __future__ import annotations

import numpy as np
import pytest

from flash_export.bundle.manifest import AxisRange, GraphSpec
from flash_export.errors import InputError
from flash_export.interface import Lengths, TensorSpec, TokenIds
from flash_export.runtime.inputs import check_inputs

GRAPH = GraphSpec(
    "model.onnx",
    20,
    "fp32",
    (
        TensorSpec("input_ids", "int64", ("batch", "seq"), TokenIds(11)),
        TensorSpec("attention_mask", "int64", ("batch", "seq")),
        TensorSpec("lengths", "int64", ("batch",), Lengths("seq")),
        TensorSpec("state", "float32", ("batch", 4)),
    ),
    (TensorSpec("logits", "float32", ("batch", "seq", 11)),),
    {"batch": AxisRange(1, 4), "seq": AxisRange(2, 16)},
)


def make_inputs(**changes: np.ndarray) -> dict[str, np.ndarray]:
    ids = np.zeros((2, 5), dtype=np.int64)
    state = np.zeros((2, 4), dtype=np.float32)
    return {"input_ids": ids, "attention_mask": ids, "lengths": np.array([5, 1]), "state": state, **changes}


def make_ids(*shape: int) -> np.ndarray:
    return np.zeros(shape, dtype=np.int64)


def test_fitting_inputs_are_accepted() -> None:
    check_inputs(GRAPH, make_inputs())
    check_inputs(GRAPH, make_inputs(input_ids=make_ids(2, 16) + 10, attention_mask=make_ids(2, 16)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"extra": make_ids(2, 5)},
            "input extra is unknown; the model takes input_ids, .*, lengths, state",
        ),
        ({"input_ids": make_ids(2, 5).astype(np.int32)}, r"input_ids has dtype int32, the graph takes int64; .*astype"),
        ({"input_ids": make_ids(5)}, r"input_ids has rank 1, shape \(5,\); the graph takes rank 2 \(batch, seq\)"),
        ({"attention_mask": make_ids(2, 6)}, "attention_mask has seq_len=6 but input_ids has 5; give them the same"),
        ({"state": np.zeros((3, 4), dtype=np.float32)}, "state has batch=3 but input_ids has 2"),
        ({"state": np.zeros((2, 5), dtype=np.float32)}, r"state has shape \(2, 5\), the graph takes \('batch', 4\)"),
        ({"input_ids": make_ids(2, 0)}, "seq_len=0 is below the graph's minimum 2; use 2 or more"),
        ({"input_ids": make_ids(2, 17)}, "seq_len=17 exceeds the graph's maximum 16; .*--max-seq-len 17"),
        ({"input_ids": make_ids(2, 5) - 1}, "input_ids has -1, token ids are 0 to 10 here; .*tokenizer"),
        ({"input_ids": make_ids(2, 5) + 11}, "input_ids has 11, token ids are 0 to 10 here"),
        ({"lengths": np.array([0, 5])}, "lengths has 0, lengths are 1 to 5 here; give the number of real tokens"),
        ({"lengths": np.array([1, 6])}, "lengths has 6, lengths are 1 to 5 here"),
        ({"input_ids": make_ids(5, 5)}, "batch=5 exceeds the graph's maximum 4; .*--max-batch 5"),
    ],
)
def test_misfit_says_got_wanted_and_cure(changes: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_inputs(GRAPH, make_inputs(**changes))


def test_missing_input_is_named() -> None:
    inputs = make_inputs()
    del inputs["attention_mask"]
    with pytest.raises(InputError, match=r"input attention_mask is missing; the model takes .* so add it"):
        check_inputs(GRAPH, inputs)
