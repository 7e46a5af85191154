"""Held-out data: what is predicted in it, and one clear error for what cannot be used."""

from __future__ import annotations

import io
import json
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from flash_export.data.heldout import MAX_SAMPLES, MIN_LEN, WINDOW, load_heldout, read_data
from flash_export.errors import BundleError, InputError
from flash_export.files import hash_file
from flash_export.interface import Features, Interface, TensorSpec, Waveform
from flash_export.models.token_model import describe_token_model
from flash_export.tasks.registry import get_task

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SETTINGS = {"objective": "causal", "tokenizer": "bytes", "seq_len": 50, "seed": 1}
MASKED = {**SETTINGS, "objective": "masked", "mask_token_id": 256, "mask_fraction": 0.3}
TEXT = bytes(range(32, 122)) * 3
SOUND = Interface(
    inputs=(TensorSpec("mixture", "float32", ("batch", "seq"), Waveform(8000)),),
    outputs=(TensorSpec("voice", "float32", ("batch", "seq"), Waveform(8000)),),
    task="signal",
    unit="samples",
    padding="refused",
    min_len=3,
)
POSE = Interface(
    inputs=(TensorSpec("features", "float32", ("batch", 4, 3), Features()),),
    outputs=(TensorSpec("simcc_x", "float32", ("batch", 17, 8), Features()),),
    task="keypoints",
    unit="keypoints",
    padding="refused",
    fixed_len=17,
)


def describe_bytes(vocab_size: int = 256, *, is_causal: bool = True) -> Interface:
    return describe_token_model(vocab_size, needs_mask=not is_causal, is_causal=is_causal)


def write(folder: Path, settings: dict[str, Any], text: bytes = TEXT) -> None:
    (folder / "heldout.txt").write_bytes(text)
    (folder / "heldout.json").write_text(json.dumps(settings))


def test_a_folder_without_data_has_none(tmp_path: Path) -> None:
    assert load_heldout(tmp_path, describe_bytes(), BundleError) is None


def test_a_causal_model_predicts_the_next_byte(tmp_path: Path) -> None:
    write(tmp_path, SETTINGS)
    found = load_heldout(tmp_path, describe_bytes(), BundleError)
    assert found is not None
    assert (found.label, found.seq_len, found.sha256) == ("held-out text", 50, hash_file(tmp_path / "heldout.txt"))
    assert [sample.batch.arrays["input_ids"].shape for sample in found.samples] == [(1, 50)] * 5
    assert bytes(found.source.rows.arrays["input_ids"][0].tolist()) == TEXT[:250]
    for index, sample in enumerate(found.samples):
        assert sample.target is not None
        assert np.flatnonzero(sample.counted).tolist() == list(range(49))
        assert bytes(sample.target.tolist()) == TEXT[50 * index + 1 : 50 * index + 50]


def test_a_masked_model_predicts_what_is_hidden(tmp_path: Path) -> None:
    write(tmp_path, MASKED)
    found = load_heldout(tmp_path, describe_bytes(257, is_causal=False), BundleError)
    assert found is not None
    drawn = np.random.default_rng(1).random((5, 50)) < 0.3
    assert np.array_equal(np.concatenate([sample.counted for sample in found.samples]), drawn)
    for index, sample in enumerate(found.samples):
        ids, hidden = sample.batch.arrays["input_ids"][0], sample.counted[0]
        original = np.frombuffer(TEXT[50 * index : 50 * index + 50], np.uint8)
        assert sample.target is not None
        assert sample.target.tolist() == original[hidden].tolist()
        assert (ids[hidden] == 256).all()
        assert np.array_equal(ids[~hidden], original[~hidden])


@pytest.mark.parametrize(
    "change",
    [
        {"objective": "prefix"},
        {"tokenizer": "bpe"},
        {"seq_len": 1024},
        {"seq_len": 0},
        {"seq_len": "many"},
        {"mask_fraction": 0.0},
        {"mask_token_id": None},
        {"seed": -1},
        {"tokenizer": "arrays"},
    ],
)
def test_damaged_settings_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    write(tmp_path, {**MASKED, **change})
    with pytest.raises(BundleError, match=r"heldout\.(json|txt) (is damaged|cannot be used).*; mend it, or remove it"):
        load_heldout(tmp_path, describe_bytes(257, is_causal=False), BundleError)


def test_settings_without_data_are_refused(tmp_path: Path) -> None:
    (tmp_path / "heldout.json").write_text(json.dumps(SETTINGS))
    with pytest.raises(BundleError, match=r"has heldout.json but none of heldout.txt, heldout.npy, heldout.npz"):
        load_heldout(tmp_path, describe_bytes(), BundleError)


def test_a_file_has_targets_for_a_causal_model_alone(tmp_path: Path) -> None:
    path = tmp_path / "some.txt"
    path.write_bytes(TEXT)
    causal = read_data(path, describe_bytes(), 70)
    assert (causal.label, causal.sha256) == ("some.txt", hash_file(path))
    assert [sample.batch.seq_len for sample in causal.samples] == [70] * 3
    second = causal.samples[1]
    assert second.target is not None
    assert second.batch.arrays["input_ids"].tolist() == [list(TEXT[70:140])]
    assert second.target.tolist() == list(TEXT[71:140])

    (sample, *_) = read_data(path, describe_bytes(is_causal=False), 70).samples
    assert sample.target is None
    assert sample.counted.all()


def test_no_more_is_judged_than_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "ids.npy"
    np.save(path, np.arange((MAX_SAMPLES + 3) * WINDOW, dtype=np.uint32).reshape(-1, 4) % 5000)
    found = read_data(path, describe_bytes(5000), 65536)
    assert len(found.samples) == MAX_SAMPLES
    assert {sample.batch.seq_len for sample in found.samples} == {WINDOW}
    ids = found.source.rows.arrays["input_ids"][0]
    assert ids.dtype == np.int64
    assert ids[4990:5010].tolist() == [*range(4990, 5000), *range(10)]


@pytest.mark.parametrize("order", ["C", "F"])
def test_ids_are_read_in_the_order_of_their_indices(tmp_path: Path, order: Any) -> None:
    ids = np.arange(128).reshape(2, 64)
    np.save(tmp_path / "ids.npy", np.asarray(ids.astype(">i4"), order=order))
    found = read_data(tmp_path / "ids.npy", describe_bytes(), 128)
    assert found.source.rows.arrays["input_ids"][0].tolist() == [*range(128)]


def test_named_arrays_are_rows_with_or_without_targets(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mixture = rng.standard_normal((2, 300)).astype(np.float64)
    np.savez(tmp_path / "sound.npz", mixture=mixture)
    found = read_data(tmp_path / "sound.npz", SOUND, 128)
    assert [sample.batch.arrays["mixture"].shape for sample in found.samples] == [(1, 128)] * 4
    assert found.samples[2].batch.arrays["mixture"].dtype == np.float32
    np.testing.assert_allclose(found.samples[2].batch.arrays["mixture"], mixture[1:, :128], rtol=1e-6)
    assert found.samples[0].target is None

    np.savez(tmp_path / "both.npz", mixture=mixture, target=mixture)
    whole = read_data(tmp_path / "both.npz", SOUND, 512)
    assert [sample.batch.seq_len for sample in whole.samples] == [300, 300]
    outputs = {"voice": whole.samples[1].batch.arrays["mixture"]}
    score = get_task("signal").score(SOUND, outputs, whole.samples[1])
    assert score is not None
    assert score.mean > 100  # dB: nothing but rounding

    features = rng.standard_normal((3, 4, 3)).astype(np.float32)
    np.savez(tmp_path / "pose.npz", features=features)
    assert [sample.batch.seq_len for sample in read_data(tmp_path / "pose.npz", POSE, 17).samples] == [17] * 3


def give_file(name: str, content: bytes) -> Callable[[Path], Path]:
    def give(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return give


def give_ids(ids: np.ndarray) -> Callable[[Path], Path]:
    def give(folder: Path) -> Path:
        np.save(folder / "ids.npy", ids, allow_pickle=True)
        return folder / "ids.npy"

    return give


def give_arrays(**arrays: np.ndarray) -> Callable[[Path], Path]:
    def give(folder: Path) -> Path:
        np.savez(folder / "arrays.npz", **arrays)  # type: ignore[arg-type]
        return folder / "arrays.npz"

    return give


def make_bomb() -> bytes:
    """Return 100 numbers whose header says that there are 2**40."""
    content = io.BytesIO()
    np.save(content, np.zeros(100, np.int64))
    header = content.getvalue()[:128].replace(b"(100,), }" + b" " * 10, b"(1099511627776,), }")
    return header + content.getvalue()[128:]


def make_archive(content: bytes, *, damage: bool = False) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ids.npy", content)
    packed = bytearray(stream.getvalue())
    if damage:
        packed[50:60] = b"\xff" * 10
    return bytes(packed)


IDS = describe_bytes(99)
WORDS, BYTES = describe_bytes(255), describe_bytes()
BAD: dict[str, tuple[Callable[[Path], Path], Interface, str]] = {
    "not there": (lambda folder: folder / "none.txt", BYTES, r"none.txt cannot be read \(.*No such file.*; give text"),
    "ids not there": (lambda folder: folder / "none.npy", BYTES, r"none.npy cannot be read \(.*No such file"),
    "a folder": (lambda folder: folder, BYTES, "is no plain file; give text"),
    "no array": (give_file("a.npy", b"hello"), BYTES, "it is no .npy or .npz file"),
    "nothing in it": (give_file("a.npy", b""), BYTES, "it is no .npy or .npz file"),
    "half a header": (give_file("a.npy", b"\x93NUMPY\x01\x00"), BYTES, "the header of an array is damaged"),
    "a pickle": (give_ids(np.array([{"code": 1}], dtype=object)), BYTES, "it holds Python objects, which are never"),
    "terabytes by its header": (give_file("a.npy", make_bomb()), BYTES, r"int64 needs 8,796,093,022,208 bytes, the fi"),
    "the same in an archive": (give_file("a.npz", make_archive(make_bomb())), BYTES, "needs 8,796,093,022,208 bytes"),
    "a damaged archive": (
        give_file("a.npz", make_archive(bytes(4000), damage=True)),
        BYTES,
        "the archive is damaged",
    ),
    "two arrays of ids": (give_arrays(a=np.arange(99), b=np.arange(99)), BYTES, "it has 2 arrays, wanted one"),
    "an array called text": (give_file("a.txt", b"\x93NUMPY" * 20), BYTES, "it is an archive, not text"),
    "numbers with a point": (give_ids(np.zeros(100)), BYTES, "it holds float64, wanted whole numbers"),
    "booleans": (give_ids(np.zeros(100, bool)), BYTES, "it holds bool, wanted whole numbers"),
    "too short": (give_file("a.txt", b"x" * 63), BYTES, f"it has 63 tokens, wanted at least {MIN_LEN}"),
    "no text": (give_file("a.txt", b""), BYTES, "it has no tokens"),
    "negative ids": (give_ids(np.arange(100) - 1), BYTES, "token ids from -1 to 98, wanted 0 to 255"),
    "ids too large": (give_ids(np.arange(100)), IDS, "token ids from 0 to 99, wanted 0 to 98"),
    "text for words": (give_file("a.txt", b"x" * 100), WORDS, "is text, but the model has 255 tokens, not bytes; give"),
    "no such input": (give_arrays(sound=np.zeros((1, 90))), SOUND, "it lacks mixture, wanted mixture and, if it is kn"),
    "one too many": (give_arrays(mixture=np.zeros((1, 90)), b=np.zeros(1)), SOUND, "it has b, wanted mixture"),
    "another rank": (give_arrays(mixture=np.zeros(90)), SOUND, r"shape \(90,\), wanted \(batch, seq\)"),
    "another size": (give_arrays(features=np.zeros((2, 5, 3))), POSE, r"shape \(2, 5, 3\), wanted \(batch, 4, 3\)"),
    "not finite": (give_arrays(mixture=np.full((1, 90), np.nan)), SOUND, "that are no finite numbers"),
    "text of sound": (give_arrays(mixture=np.full((1, 90), "a")), SOUND, "that are no finite numbers"),
    "targets of fewer rows": (
        give_arrays(mixture=np.zeros((2, 90)), target=np.zeros((1, 90))),
        SOUND,
        "target has 1 rows, the inputs 2",
    ),
}


@pytest.mark.parametrize(("give", "interface", "message"), BAD.values(), ids=BAD)
def test_bad_data_is_one_clear_error(
    tmp_path: Path, give: Callable[[Path], Path], interface: Interface, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_data(give(tmp_path), interface, 64)
    assert "\n" not in str(caught.value)
