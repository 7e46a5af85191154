from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from flash_export.heldout import Heldout
from flash_export.validators.bits_per_byte import measure_bits_per_byte

from flash_export.errors import BundleError
from flash_export.validators.validate import ValidationOptions, validate_bundle

if TYPE_CHECKING:
    from flash_export.bundle import Bundle
    from flash_export.validators.plan import CellInputs

TEXT = bytes(range(97, 123)) * 10
CAUSAL = {"objective": "causal", "tokenizer": "bytes", "seq_len": 32, "mask_token_id": None, "mask_fraction": None}
MASKED = {**CAUSAL, "objective": "masked", "mask_token_id": 256, "mask_fraction": 0.25, "seed": 3}


def write_heldout(bundle: Bundle, settings: dict[str, Any], text: bytes = TEXT) -> Heldout:
    (bundle.path / "heldout.txt").write_bytes(text)
    (bundle.path / "heldout.json").write_text(json.dumps(settings))
    found = Heldout.load(bundle.path)
    assert found is not None
    return found


def predict_uniformly(inputs: CellInputs) -> np.ndarray:
    return np.zeros((*inputs.input_ids.shape, 256), dtype=np.float32)


def predict_alphabet(inputs: CellInputs) -> np.ndarray:
    """Know that the alphabet goes on, with probability one half."""
    following = (inputs.input_ids - 97 + 1) % 26 + 97
    logits = np.full((*inputs.input_ids.shape, 256), -1e9)
    np.put_along_axis(logits, following[..., None], 0.0, axis=-1)
    logits[..., 0] = 0.0
    return logits


def test_bundle_without_text_has_none(bundle: Bundle) -> None:
    assert Heldout.load(bundle.path) is None


def test_windows_drop_the_rest(bundle: Bundle) -> None:
    heldout = write_heldout(bundle, CAUSAL)
    assert heldout.tokens.shape == (8, 32)
    assert bytes(heldout.tokens.ravel().astype(np.uint8)) == TEXT[:256]


def test_guessing_costs_eight_bits(bundle: Bundle) -> None:
    for settings in (CAUSAL, MASKED):
        heldout = write_heldout(bundle, settings)
        assert measure_bits_per_byte(heldout, predict_uniformly) == pytest.approx(8.0)


def test_causal_predicts_the_next_byte(bundle: Bundle) -> None:
    assert measure_bits_per_byte(write_heldout(bundle, CAUSAL), predict_alphabet) == pytest.approx(1.0)


def test_masked_hides_the_drawn_bytes_and_asks_for_them(bundle: Bundle) -> None:
    heldout = write_heldout(bundle, MASKED)
    drawn = np.random.default_rng(3).random((8, 32)) < 0.25

    assert np.array_equal(heldout.targets, drawn)
    assert (heldout.inputs[drawn] == 256).all()
    assert np.array_equal(heldout.inputs[~drawn], heldout.tokens[~drawn])

    windows = iter(heldout.tokens)

    def know_position(_: CellInputs) -> np.ndarray:
        logits = np.full((1, 32, 257), -1e9)
        np.put_along_axis(logits[0], next(windows)[:, None], 0.0, axis=-1)
        return logits

    assert measure_bits_per_byte(heldout, know_position) == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"objective": "prefix"}, TEXT),
        ({"tokenizer": "bpe"}, TEXT),
        ({"seq_len": 1024}, TEXT),
        ({"mask_fraction": 0.0}, TEXT),
        ({"seq_len": "many"}, TEXT),
    ],
)
def test_damaged_description_is_refused(bundle: Bundle, change: dict[str, Any], text: bytes) -> None:
    with pytest.raises(BundleError, match=r"heldout\.json (is damaged|cannot be used).*; mend it, or remove it"):
        write_heldout(bundle, {**MASKED, **change}, text)


def test_validation_reports_bits_of_eager_and_graph(bundle: Bundle) -> None:
    write_heldout(bundle, MASKED)
    options = ValidationOptions(seq_lens=(8,), batches=(1,), backends=("ort-cpu",), threads=1, latency_budget_s=0)
    report = validate_bundle(bundle, options)

    assert report.bits_per_byte is not None
    assert report.bits_per_byte["eager"] > 5
    assert report.bits_per_byte["ort-cpu"] == pytest.approx(report.bits_per_byte["eager"], abs=1e-4)


def test_windows_longer_than_the_graph_are_a_skipped_row(bundle: Bundle) -> None:
    write_heldout(bundle, {**MASKED, "seq_len": 128})
    options = ValidationOptions(seq_lens=(8,), batches=(1,), backends=("ort-cpu",), threads=1, latency_budget_s=0)
    report = validate_bundle(bundle, options)

    assert "ort-cpu" not in (report.bits_per_byte or {})
    (row,) = (row for row in report.rows if row.seq_len == 128)
    assert row.status == "skipped"
    assert "held-out text" in str(row.reason)
