from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from flash_export.bundle.bundle import Bundle
from flash_export.bundle.manifest import AxisRange, GraphSpec, Manifest
from flash_export.errors import BundleError, StateError
from flash_export.generation.state import State, check_state, identify_model
from flash_export.interface import TensorSpec
from tests.conftest import INTERFACE, PROVENANCE

if TYPE_CHECKING:
    from pathlib import Path

GRAPH = GraphSpec(
    "decode.onnx",
    20,
    "fp32",
    (
        TensorSpec("input_ids", "int64", ("batch", 1)),
        TensorSpec("state.position", "int64", ("batch", 1)),
        TensorSpec("state.0.kv", "float32", ("batch", 2, 3)),
    ),
    (TensorSpec("logits", "float32", ("batch", 1, 5)),),
    {"batch": AxisRange(1, 4)},
)


def make_bundle(path: Path, weights: str = "a", config: str = "b") -> Bundle:
    files = {"model.safetensors": weights * 64, "config.json": config * 64}
    files["decode.onnx"] = "c" * 64
    return Bundle(path, Manifest({}, INTERFACE, {"decode": GRAPH}, PROVENANCE, files))


def make_state(batch: int = 3, model_sha256: str = "") -> State:
    kv = np.arange(batch * 6, dtype=np.float32).reshape(batch, 2, 3)
    return State({"position": np.arange(batch)[:, None] * 10, "0.kv": kv}, model_sha256)


def get_values(state: State) -> dict[str, object]:
    return {name: (str(value.dtype), value.tolist()) for name, value in state.tensors.items()}


def test_zeros_have_the_shapes_of_the_graph() -> None:
    state = State.zeros(GRAPH, 2)
    assert state.batch == 2
    assert get_values(state) == {"position": ("int64", [[0], [0]]), "0.kv": ("float32", np.zeros((2, 2, 3)).tolist())}
    check_state(state, GRAPH, batch=2, model_sha256="any")


def test_inputs_and_outputs_carry_their_prefixes() -> None:
    state = make_state()
    inputs = state.to_inputs()
    assert list(inputs) == ["state.position", "state.0.kv"]
    outputs = {"logits": np.zeros(1), **{f"new_{name}": value for name, value in inputs.items()}}
    assert get_values(State.from_outputs(GRAPH, outputs)) == get_values(state)


def test_select_replace_and_fork() -> None:
    state = make_state()
    assert state.select([2, 0]).position.tolist() == [20, 0]
    forked = state.fork(4, row=1)
    assert forked.position.tolist() == [10] * 4
    assert np.array_equal(forked.tensors["0.kv"], np.repeat(state.tensors["0.kv"][1:2], 4, axis=0))
    replaced = state.replace([0, 2], state.select([2, 1]))
    assert replaced.position.tolist() == [20, 10, 10]
    assert state.position.tolist() == [0, 10, 20]


def test_copies_share_no_memory() -> None:
    state = make_state()
    for other in (state.select([0, 1, 2]), state.fork(3), state.replace([0], state.select([0]))):
        assert not any(np.shares_memory(value, state.tensors[name]) for name, value in other.tensors.items())


@settings(deadline=None)
@given(st.permutations(range(4)), st.integers(1, 4))
def test_taking_rows_out_and_putting_them_back_changes_nothing(order: list[int], count: int) -> None:
    state, rows = make_state(4), order[:count]
    assert get_values(state.replace(rows, state.select(rows))) == get_values(state)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda state: state.select([3]), r"rows \[3\] cannot be selected; use one or more of 0 to 2"),
        (lambda state: state.select([]), r"rows \[\] cannot be selected"),
        (lambda state: state.fork(0), "batch=0 is not usable; fork to at least 1 row"),
        (lambda state: state.fork(2, row=-1), "cannot be selected"),
        (lambda state: state.replace([0, 1], state.select([0])), r"1 rows cannot replace rows \[0, 1\]"),
        (lambda state: state.replace([1, 1], state.select([0, 2])), r"2 rows cannot replace rows \[1, 1\]"),
        (lambda state: state.replace([3], state.select([0])), r"rows \[3\] cannot be replaced"),
        (lambda state: state.replace([0], State({"position": np.zeros((1, 1), np.int64)})), "of another model"),
    ],
)
def test_rows_that_are_not_there_are_refused(call: object, message: str) -> None:
    with pytest.raises(StateError, match=message):
        call(make_state())  # type: ignore[operator]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position": None}, r"needs position as int64 \(batch, 1\), got none"),
        ({"position": np.zeros(3)}, r"got float64 \(3,\)"),
        ({"position": np.zeros(3, np.int64)}, r"got int64 \(3,\)"),
        ({"position": np.zeros((0, 1), np.int64)}, r"got int64 \(0, 1\)"),
        ({"position": np.array([[0], [-7], [2]])}, "position of the state is -7, below 0"),
        ({"0.kv": np.zeros((2, 2, 3), np.float32)}, r"0.kv of the state has shape \(2, 2, 3\), position says 3 rows"),
        ({"0.kv": np.float32(1)}, r"0.kv of the state has shape \(\)"),
        ({"0.kv": np.full((3, 2, 3), np.nan, np.float32)}, "0.kv of the state holds NaN or infinite values"),
        ({"0.kv": np.full((3, 2, 3), -np.inf, np.float32)}, "0.kv of the state holds NaN or infinite values"),
    ],
)
def test_what_no_state_holds_is_refused(changes: dict[str, np.ndarray | None], message: str) -> None:
    tensors = {**make_state().tensors, **changes}
    with pytest.raises(StateError, match=message):
        State({name: value for name, value in tensors.items() if value is not None})


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (make_state(2, "other"), r"belongs to another model \(other\.\.\., this one is mine\.\.\.\)"),
        (make_state(3), "the state has a batch of 3, the run has 2; fork one row"),
        (State({"position": np.zeros((2, 1), np.int64)}), r"other tensors than the graph takes \(0\.kv\)"),
        (State({**make_state(2).tensors, "1.kv": np.zeros(2)}), r"other tensors than the graph takes \(1\.kv\)"),
        (State({**make_state(2).tensors, "0.kv": np.zeros((2, 2, 3))}), r"0\.kv of the state is float64 \(2, 2, 3\)"),
        (State({**make_state(2).tensors, "0.kv": np.zeros((2, 3, 2), np.float32)}), r"takes float32 \('batch', 2, 3\)"),
    ],
)
def test_states_that_do_not_fit_the_graph_are_refused(state: State, message: str) -> None:
    with pytest.raises(StateError, match=message):
        check_state(state, GRAPH, batch=2, model_sha256="mine")


# --- files


def test_saved_state_is_loaded_as_it_was(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    state = make_state(3, identify_model(bundle))
    state.save(tmp_path / "new" / "a.state")
    loaded = State.load(tmp_path / "new" / "a.state", bundle)
    assert get_values(loaded) == get_values(state)
    assert loaded.model_sha256 == state.model_sha256


def test_view_that_is_not_contiguous_is_saved_as_it_is_read(tmp_path: Path) -> None:
    bundle, kv = make_bundle(tmp_path), np.arange(12, dtype=np.float32).reshape(3, 2, 2).transpose(2, 1, 0)
    state = State({"position": np.zeros((2, 1), np.int64), "0.kv": kv}, identify_model(bundle))
    state.save(tmp_path / "a.state")
    assert get_values(State.load(tmp_path / "a.state", bundle)) == get_values(state)


@pytest.mark.parametrize("other", [{"weights": "c"}, {"config": "c"}])
def test_state_of_another_model_is_refused(tmp_path: Path, other: dict[str, str]) -> None:
    make_state(1, identify_model(make_bundle(tmp_path))).save(tmp_path / "a.state")
    with pytest.raises(StateError, match=r"belongs to another model .*use the bundle that it was made with"):
        State.load(tmp_path / "a.state", make_bundle(tmp_path, **other))


def test_state_of_no_known_model_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="state of no known model cannot be saved; feed a prompt first"):
        make_state().save(tmp_path / "a.state")
    assert list(tmp_path.iterdir()) == []


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        StateError,
        match=r"a\.state cannot be read \(No such file or directory\); give a file",
    ):
        State.load(tmp_path / "a.state", make_bundle(tmp_path))


def test_folder_in_place_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(StateError):
        State.load(tmp_path, make_bundle(tmp_path))
    with pytest.raises(BundleError, match="cannot write"):
        make_state(1, "model").save(tmp_path)


def test_file_of_weights_is_no_state(tmp_path: Path) -> None:
    (tmp_path / "a.state").write_bytes(save({"weight": np.zeros(2, np.float32)}))
    with pytest.raises(StateError, match="has format None None, this version reads flash-export-state 2"):
        State.load(tmp_path / "a.state", make_bundle(tmp_path))


@pytest.mark.parametrize("version", ["1", "3"])
def test_other_format_is_refused(tmp_path: Path, version: str) -> None:
    """In the first, ``position`` had no axis beside the batch."""
    metadata = {"format": "flash-export-state", "format_version": version, "model_sha256": "x"}
    (tmp_path / "a.state").write_bytes(save({"position": np.zeros(1, np.int64)}, metadata))
    with pytest.raises(StateError, match=f"has format flash-export-state {version}, .* 2; read the text again"):
        State.load(tmp_path / "a.state", make_bundle(tmp_path))


def test_dtype_that_numpy_lacks_is_one_clear_error(tmp_path: Path) -> None:
    header = json.dumps(
        {
            "__metadata__": {"format": "flash-export-state", "format_version": "2"},
            "position": {"dtype": "BF16", "shape": [1, 1], "data_offsets": [0, 2]},
        }
    ).encode()
    (tmp_path / "a.state").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(StateError):
        State.load(tmp_path / "a.state", make_bundle(tmp_path))


@settings(deadline=None)
@given(st.data())
def test_damaged_file_is_a_state_error_or_loads(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    bundle, path = make_bundle(folder), folder / "a.state"
    make_state(2, identify_model(bundle)).save(path)
    content = bytearray(path.read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(StateError):
        State.load(path, bundle)
