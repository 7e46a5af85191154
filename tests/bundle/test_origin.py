"""Bundles of the format before this one: one line says how to export them again, and that command works."""

from __future__ import annotations

import json
import shlex
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from flash_export.bundle.bundle import Bundle
from flash_export.bundle.origin import read_origin
from flash_export.cli.main import main
from flash_export.errors import BundleError
from flash_export.exporters.export import export_onnx

if TYPE_CHECKING:
    from pathlib import Path


def write_old(bundle: Bundle, folder: Path, **changes: Any) -> Path:
    """Copy a bundle and write its manifest as the format before this one had it."""
    shutil.copytree(bundle.path, folder)
    values = json.loads((folder / "manifest.json").read_text())
    del values["interface"]
    for graph in values["graphs"].values():
        for spec in (*graph["inputs"], *graph["outputs"]):
            kind = (spec["content"] or {}).get("kind")
            content = {"kind": "token ids", "min": 0, "max": 256} if kind == "token ids" else None
            spec["content"] = {"kind": "lengths", "min": 1, "max": "seq"} if kind == "lengths" else content
    (folder / "manifest.json").write_text(json.dumps(values | {"format_version": 1} | changes))
    return folder


def test_the_command_that_the_line_names_makes_the_same_bundle(causal_byte_bundle: Bundle, tmp_path: Path) -> None:
    imported = {"library_version": "0.1.9", "assumed": {"causal": True}, "weights_key": "", "weight_sets": [""]}
    old = write_old(causal_byte_bundle, tmp_path / "an old one", imported={**imported, "notes": []})
    with pytest.raises(
        BundleError, match="has the older format 1; export it again from the weights it holds: "
    ) as found:
        Bundle.open(old)
    assert "\n" not in str(found.value)

    command = shlex.split(str(found.value).rpartition(": ")[2])
    assert command[:2] == ["flash-export", "onnx"]
    ranges = ("--max-seq-len", "96", "--max-batch", "4")
    result = CliRunner().invoke(main, [*command[1:], *ranges], catch_exceptions=False)
    assert result.exit_code == 0, result.output

    again = Bundle.open(tmp_path / "an old one-new")
    assert again.manifest.checkpoint == causal_byte_bundle.manifest.checkpoint
    assert again.manifest.imported.assumed == {"causal": True}
    same = ("config.json", "model.safetensors", "model.onnx", "prefill.onnx", "decode.onnx", "heldout.txt")
    assert {name: again.manifest.files[name] for name in same} == {
        name: causal_byte_bundle.manifest.files[name] for name in same
    }


def test_the_line_keeps_half_precision_and_names_what_has_to_be_done_again(
    causal_byte_bundle: Bundle, tmp_path: Path
) -> None:
    for precision, wanted in (("fp16", "--precision fp16$"), ("int8", "-new, and quantize that again$")):
        old = write_old(causal_byte_bundle, tmp_path / precision, graphs={"forward": {"precision": precision}})
        with pytest.raises(BundleError, match=wanted):
            Bundle.open(old)


def test_what_is_not_as_the_old_manifest_says_is_not_exported(causal_byte_bundle: Bundle, tmp_path: Path) -> None:
    old = write_old(causal_byte_bundle, tmp_path / "old")
    assert read_origin(old) is not None
    (old / "heldout.txt").write_text("another text")
    with pytest.raises(BundleError, match=r"heldout.txt is not what manifest.json says; export its checkpoint again"):
        export_onnx(old, tmp_path / "new")
    (old / "heldout.txt").unlink()
    with pytest.raises(BundleError, match=r"heldout.txt is not what manifest.json says"):
        export_onnx(old, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": {}}, "it has no sha256 of config.json"),
        ({"checkpoint": {}}, "checkpoint.source is missing"),
        ({"imported": 3}, "imported is a whole number, wanted an object"),
    ],
)
def test_damaged_manifests_of_the_old_format_are_refused(
    causal_byte_bundle: Bundle, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    old = write_old(causal_byte_bundle, tmp_path / "old", **changes)
    with pytest.raises(BundleError, match=rf"manifest.json is damaged: {message}"):
        read_origin(old)


def test_a_folder_that_is_no_bundle_has_no_origin(tmp_path: Path) -> None:
    assert read_origin(tmp_path) is None
