"""A tiny model in a bundle of its own, and a way to damage the graph of a copy of it."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING

import onnx
import pytest
import torch

from flash_export.bundle.bundle import HELDOUT_FILES, SETTINGS_FILE, Bundle
from flash_export.config import ExportOptions
from flash_export.exporters.export import export_onnx
from flash_export.files import hash_file, write_file
from flash_export.models.flash import FlashConfig, FlashModel

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import FolderSharer

GraphEditor = Callable[[Callable[[onnx.ModelProto], None]], Bundle]


@pytest.fixture(scope="session")
def pristine_bundle(share_folder: FolderSharer) -> Bundle:
    """A good bundle, chunk 8, lengths to 96, that no test may change."""
    return Bundle.open(share_folder("pristine", _export_pristine) / "bundle")


def _export_pristine(folder: Path) -> None:
    torch.manual_seed(0)
    config = FlashConfig(vocab_size=257, dim=16, depth=1, hidden_dim=32, chunk_size=8, qk_dim=8)
    model = FlashModel(config).eval()
    with torch.no_grad():  # fresh queries and keys are so small that attention hardly matters
        for name, parameter in model.named_parameters():
            if "qk_offset_scale" in name:
                parameter.normal_()
    model.save_pretrained(folder / "checkpoint")
    options = ExportOptions(max_seq_len=96, max_batch=4)
    export_onnx(folder / "checkpoint", folder / "bundle", options=options)


@pytest.fixture
def bundle(pristine_bundle: Bundle, tmp_path: Path) -> Bundle:
    """A good bundle of the test's own."""
    return Bundle.open(shutil.copytree(pristine_bundle.path, tmp_path / "bundle"))


@pytest.fixture
def edit_graph(bundle: Bundle) -> GraphEditor:
    """Change the graph of ``bundle`` and sign the change, as if the exporter had made the mistake."""

    def edit(change: Callable[[onnx.ModelProto], None]) -> Bundle:
        path = bundle.get_graph_path()
        model = onnx.load(path)
        change(model)
        onnx.save(model, path)
        return sign_files(bundle)

    return edit


def sign_files(bundle: Bundle) -> Bundle:
    """Write the hashes of the files as they are now into the manifest."""
    heldout = [name for name in (SETTINGS_FILE, *HELDOUT_FILES) if (bundle.path / name).exists()]
    files = {name: hash_file(bundle.path / name) for name in {*bundle.manifest.files, *heldout}}
    manifest = dataclasses.replace(bundle.manifest, files=files)
    write_file(bundle.path / "manifest.json", manifest.to_json().encode())
    return Bundle.open(bundle.path)
