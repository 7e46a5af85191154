"""Data that a user puts into a bundle: checked before anything is exported, and there for every later command."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from flash_export.config import ExportOptions
from flash_export.data.heldout import open_heldout
from flash_export.errors import InputError
from flash_export.exporters.export import export_onnx

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle

FORWARD = ExportOptions(max_seq_len=96, max_batch=4, graphs=("forward",))


def test_data_of_the_user_takes_the_place_of_that_of_the_checkpoint(causal_byte_bundle: Bundle, tmp_path: Path) -> None:
    ids = np.arange(500) % 257
    np.save(tmp_path / "ids.npy", ids)
    path, folder = causal_byte_bundle.path, tmp_path / "bundle"
    bundle = export_onnx(path, folder, options=FORWARD, heldout_file=tmp_path / "ids.npy")
    assert not {"heldout.txt", "heldout.npz"} & bundle.manifest.files.keys()
    assert {"heldout.npy", "heldout.json"} <= bundle.manifest.files.keys()
    heldout = open_heldout(bundle)
    assert heldout is not None
    assert (heldout.label, heldout.seq_len, len(heldout.samples)) == ("held-out data", 96, 5)
    assert heldout.source.rows.arrays["input_ids"][0].tolist() == ids[:480].tolist()
    assert all(sample.target is not None for sample in heldout.samples)


def test_data_that_does_not_fit_is_refused_and_nothing_written(causal_byte_bundle: Bundle, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(500))
    with pytest.raises(InputError, match="token ids from 0 to 499, wanted 0 to 256"):
        export_onnx(causal_byte_bundle.path, tmp_path / "bundle", heldout_file=tmp_path / "ids.npy")
    assert not (tmp_path / "bundle").exists()
