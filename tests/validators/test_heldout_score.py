from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from flash_export.data.heldout import load_heldout
from flash_export.errors import BundleError
from flash_export.validators.heldout_score import measure_score
from flash_export.validators.validate import validate_bundle
from flash_export.validators.validation_options import ValidationOptions
from tests.validators.conftest import sign_files

if TYPE_CHECKING:
    from flash_export.bundle.bundle import Bundle
    from flash_export.data.batch import Batch, Outputs
    from flash_export.data.heldout import Heldout

TEXT = bytes(range(97, 123)) * 10
CAUSAL = {"objective": "causal", "tokenizer": "bytes", "seq_len": 32, "mask_token_id": None, "mask_fraction": None}
MASKED = {**CAUSAL, "objective": "masked", "mask_token_id": 256, "mask_fraction": 0.25, "seed": 3}
OPTIONS = ValidationOptions(seq_lens=(8,), batches=(1,), backends=("ort-cpu",), threads=1, latency_budget_s=0)


def write_heldout(bundle: Bundle, settings: dict[str, Any], text: bytes = TEXT) -> Heldout:
    (bundle.path / "heldout.txt").write_bytes(text)
    (bundle.path / "heldout.json").write_text(json.dumps(settings))
    found = load_heldout(bundle.path, bundle.manifest.interface, BundleError)
    assert found is not None
    return found


def measure_bits(bundle: Bundle, settings: dict[str, Any], predict: Any) -> float:
    return measure_score(write_heldout(bundle, settings), bundle.manifest.interface, predict)


def predict_uniformly(batch: Batch) -> Outputs:
    return {"logits": np.zeros((*batch.arrays["input_ids"].shape, 256), dtype=np.float32)}


def predict_alphabet(batch: Batch) -> Outputs:
    """Know that the alphabet goes on, with probability one half."""
    ids = batch.arrays["input_ids"]
    logits = np.full((*ids.shape, 256), -1e9)
    np.put_along_axis(logits, ((ids - 97 + 1) % 26 + 97)[..., None], 0.0, axis=-1)
    logits[..., 0] = 0.0
    return {"logits": logits}


def test_guessing_costs_eight_bits(bundle: Bundle) -> None:
    for settings in (CAUSAL, MASKED):
        assert measure_bits(bundle, settings, predict_uniformly) == pytest.approx(8.0)


def test_causal_predicts_the_next_byte(bundle: Bundle) -> None:
    assert measure_bits(bundle, CAUSAL, predict_alphabet) == pytest.approx(1.0)


def test_masked_asks_for_what_was_hidden(bundle: Bundle) -> None:
    windows = iter(np.frombuffer(TEXT, np.uint8)[:256].reshape(8, 32).astype(np.int64))

    def know_position(batch: Batch) -> Outputs:
        logits = np.full((1, 32, 257), -1e9)
        np.put_along_axis(logits[0], next(windows)[:, None], 0.0, axis=-1)
        return {"logits": logits}

    assert measure_bits(bundle, MASKED, know_position) == pytest.approx(0.0)


def test_validation_reports_the_scores_of_eager_and_graph(bundle: Bundle) -> None:
    write_heldout(bundle, MASKED)
    report = validate_bundle(sign_files(bundle), OPTIONS)

    assert report.scores is not None
    assert report.scores.measure.label == "bits per byte"
    assert report.scores.values["eager"] > 5
    assert report.scores.values["ort-cpu"] == pytest.approx(report.scores.values["eager"], abs=1e-4)


def test_samples_longer_than_the_graph_are_a_skipped_row(bundle: Bundle) -> None:
    write_heldout(bundle, {**MASKED, "seq_len": 128})
    report = validate_bundle(sign_files(bundle), OPTIONS)

    assert report.scores is not None
    assert "ort-cpu" not in report.scores.values
    (row,) = (row for row in report.rows if row.seq_len == 128)
    assert row.status == "skipped"
    assert "held-out data" in str(row.reason)


def test_data_without_targets_has_no_score(bundle: Bundle) -> None:
    write_heldout(bundle, {**CAUSAL, "objective": "none"})
    report = validate_bundle(sign_files(bundle), OPTIONS)
    assert report
    assert report.scores is None
