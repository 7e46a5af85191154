"""Text to calibrate with: what is predicted in it, and one clear error for what cannot be used."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
from flash_export.quantization.text import MAX_WINDOWS, WINDOW, CalibrationText

from flash_export.errors import BundleError, InputError
from flash_export.files import hash_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from flash_export.bundle import Bundle


def make_bundle(folder: Path, *, vocab_size: int = 256, causal: bool = True) -> Bundle:
    """Stand in for a bundle: its folder and its config are all that is asked for."""
    config = {"vocab_size": vocab_size, "causal": causal}
    return cast("Bundle", SimpleNamespace(path=folder, read_config=lambda: config))


def write_heldout(folder: Path, objective: str) -> bytes:
    text = bytes(range(32, 122)) * 3
    settings = {"objective": objective, "tokenizer": "bytes", "seq_len": 50, "seed": 1}
    settings |= {"mask_token_id": 256, "mask_fraction": 0.3}
    (folder / "heldout.txt").write_bytes(text)
    (folder / "heldout.json").write_text(json.dumps(settings))
    return text


def test_a_causal_model_predicts_the_next_byte_of_its_heldout_text(tmp_path: Path) -> None:
    text = write_heldout(tmp_path, "causal")
    found = CalibrationText.load(make_bundle(tmp_path), "heldout", 50)
    assert (found.source, found.sha256) == ("held-out text", hash_file(tmp_path / "heldout.txt"))
    assert [window.input_ids.shape for window in found.windows] == [(1, 50)] * 5
    assert bytes(found.tokens.tolist()) == text[:250]
    for index, window in enumerate(found.windows):
        assert window.targets is not None
        assert window.predictors.tolist() == list(range(49))
        assert bytes(window.targets.tolist()) == text[50 * index + 1 : 50 * index + 50]


def test_a_masked_model_predicts_what_is_hidden(tmp_path: Path) -> None:
    text = write_heldout(tmp_path, "masked")
    found = CalibrationText.load(make_bundle(tmp_path, vocab_size=257, causal=False), "heldout", 64)
    assert sum(len(window.predictors) for window in found.windows) > 40
    for index, window in enumerate(found.windows):
        assert window.targets is not None
        assert (window.input_ids[0, window.predictors] == 256).all()
        assert np.count_nonzero(window.input_ids == 256) == len(window.predictors)
        assert window.targets.tolist() == [text[50 * index + position] for position in window.predictors]


def test_text_is_bytes_and_has_targets_for_a_causal_model_alone(tmp_path: Path) -> None:
    path = tmp_path / "some.txt"
    text = bytes(range(100)) * 3
    path.write_bytes(text)
    causal = CalibrationText.load(make_bundle(tmp_path), str(path), 70)
    assert (causal.source, causal.sha256) == ("some.txt", hash_file(path))
    assert [window.input_ids.shape for window in causal.windows] == [(1, 70)] * 4
    second = causal.windows[1]
    assert second.targets is not None
    assert second.input_ids.tolist() == [list(text[70:140])]
    assert second.targets.tolist() == list(text[71:140])
    assert second.predictors.tolist() == list(range(69))

    (window, *_) = CalibrationText.load(make_bundle(tmp_path, causal=False), str(path), 70).windows
    assert window.targets is None
    assert window.predictors.tolist() == list(range(70))


def test_no_more_is_read_than_is_needed(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange((MAX_WINDOWS + 3) * WINDOW, dtype=np.uint32).reshape(-1, 4) % 5000)
    found = CalibrationText.load(make_bundle(tmp_path, vocab_size=5000), str(tmp_path / "ids.npy"), 65536)
    assert len(found.windows) == MAX_WINDOWS
    assert {window.input_ids.shape for window in found.windows} == {(1, WINDOW)}
    assert found.tokens.dtype == np.int64
    assert found.tokens[4990:5010].tolist() == [*range(4990, 5000), *range(10)]


def test_ids_are_read_in_the_order_of_their_indices(tmp_path: Path) -> None:
    ids = np.arange(128).reshape(2, 64)
    np.save(tmp_path / "ids.npy", np.asfortranarray(ids.astype(">i4")))
    assert CalibrationText.load(make_bundle(tmp_path), str(tmp_path / "ids.npy"), 128).tokens.tolist() == [*range(128)]


def give_text(text: bytes) -> Callable[[Path], str]:
    def give(folder: Path) -> str:
        (folder / "text.txt").write_bytes(text)
        return str(folder / "text.txt")

    return give


def give_ids(ids: np.ndarray) -> Callable[[Path], str]:
    def give(folder: Path) -> str:
        np.save(folder / "ids.npy", ids)
        return str(folder / "ids.npy")

    return give


def give_file(name: str, content: bytes) -> Callable[[Path], str]:
    def give(folder: Path) -> str:
        (folder / name).write_bytes(content)
        return str(folder / name)

    return give


def give_objects(folder: Path) -> str:
    np.save(folder / "ids.npy", np.array([{"code": 1}], dtype=object), allow_pickle=True)
    return str(folder / "ids.npy")


def give_bomb(folder: Path) -> str:
    """Save 100 numbers whose header says that there are 2**40."""
    content = io.BytesIO()
    np.save(content, np.zeros(100, np.int64))
    header = content.getvalue()[:128].replace(b"(100,), }" + b" " * 10, b"(1099511627776,), }")
    (folder / "ids.npy").write_bytes(header + content.getvalue()[128:])
    return str(folder / "ids.npy")


def give_archive(folder: Path) -> str:
    np.savez(folder / "ids.npz", np.arange(100))
    return str(folder / "ids.npz")


BAD_TEXTS: dict[str, tuple[Callable[[Path], str], int, str]] = {
    "no held-out text": (lambda _: "heldout", 256, "has no held-out text to calibrate with; give text or token ids"),
    "not there": (lambda folder: str(folder / "none.txt"), 256, r"none.txt cannot be read \(.*No such file.*; give te"),
    "ids not there": (lambda folder: str(folder / "none.npy"), 256, r"none.npy cannot be read \(.*No such file"),
    "a folder": (str, 256, "is no plain file; give text"),
    "no array": (give_file("a.npy", b"hello"), 256, r"a.npy cannot be read as .npy \("),
    "nothing in it": (give_file("a.npy", b""), 256, r"a.npy cannot be read as .npy \("),
    "a pickle": (give_objects, 256, r"ids.npy should hold object \(1,\), but has"),
    "terabytes by its header": (give_bomb, 256, r"should hold int64 \(1099511627776,\), but has 800 bytes of them"),
    "an archive": (
        give_archive,
        256,
        r"ids.npz is an archive or an array, not text; give text, token ids as .npy, or h",
    ),
    "an array called text": (give_file("a.txt", b"\x93NUMPY" * 20), 256, "is an archive or an array, not text"),
    "numbers with a point": (give_ids(np.zeros(100)), 256, "holds float64; give whole numbers, the token ids"),
    "booleans": (give_ids(np.zeros(100, bool)), 256, "holds bool; give whole numbers"),
    "too short": (give_text(b"x" * 63), 256, "text.txt has 63 tokens; give at least 64"),
    "no text": (give_text(b""), 256, "text.txt has 0 tokens; give at least 64"),
    "negative ids": (
        give_ids(np.arange(100) - 1),
        256,
        "token ids from -1 to 98, the model has 256 tokens; give ids of",
    ),
    "ids too large": (give_ids(np.arange(100)), 99, "token ids from 0 to 99, the model has 99 tokens"),
    "text for words": (give_text(b"x" * 100), 255, "is text, but the model has 255 tokens, not bytes; give token ids"),
}


@pytest.mark.parametrize(("give", "vocab_size", "message"), BAD_TEXTS.values(), ids=BAD_TEXTS)
def test_bad_text_is_one_clear_error(
    tmp_path: Path, give: Callable[[Path], str], vocab_size: int, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        CalibrationText.load(make_bundle(tmp_path, vocab_size=vocab_size), give(tmp_path), 64)
    assert "\n" not in str(caught.value)


def test_heldout_windows_that_the_graph_does_not_take_are_refused(tmp_path: Path) -> None:
    write_heldout(tmp_path, "causal")
    with pytest.raises(InputError, match=r"held-out text have 50 tokens, the graph 49; export .* larger --max-seq-len"):
        CalibrationText.load(make_bundle(tmp_path), "heldout", 49)


def test_damaged_heldout_text_is_an_error_of_the_bundle(tmp_path: Path) -> None:
    (tmp_path / "heldout.json").write_text("{}")
    with pytest.raises(BundleError, match=r"heldout\.json is damaged: objective is missing; mend it"):
        CalibrationText.load(make_bundle(tmp_path), "heldout", 64)
