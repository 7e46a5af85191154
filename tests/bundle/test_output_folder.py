"""Folders that are written lie neither in a file nor in a bundle, and replace what they may."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from flash_export.bundle.output_folder import check_folder, check_replaceable
from flash_export.cli.main import main
from flash_export.errors import BundleError

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle


def check(target: Path, *, force: bool = False) -> None:
    check_replaceable(target, "marker", "kind", "notes", force=force)


def test_free_places_are_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "manifest.json").write_text("of something else")
    for target in (tmp_path / "new", tmp_path / "a" / "b", tmp_path / "empty"):
        check(target)
        check_folder(target)


def test_one_of_the_kind_is_replaced_by_force_alone(tmp_path: Path) -> None:
    (tmp_path / "marker").touch()
    with pytest.raises(BundleError, match="already holds a kind; add --force to replace it, with notes"):
        check(tmp_path)
    check(tmp_path, force=True)
    (tmp_path / "marker").rename(tmp_path / "other")
    with pytest.raises(BundleError, match="holds other files and is no kind; choose another folder"):
        check(tmp_path, force=True)


@pytest.mark.parametrize("name", ["file", "file/x", "file/x/y"])
def test_nothing_is_made_in_a_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("text")
    for refuse in (check, check_folder):
        with pytest.raises(BundleError, match="file is a file; give the name of a folder to create"):
            refuse(tmp_path / name)


@pytest.mark.parametrize(
    "arguments",
    [
        ("quantize", "BUNDLE", "-o", "BUNDLE/new"),
        ("standalone", "BUNDLE", "-o", "BUNDLE/new"),
        ("onnx", "BUNDLE", "-o", "BUNDLE/a/new"),
        ("triton", "BUNDLE", "-o", "BUNDLE"),
        ("triton", "BUNDLE", "-o", "BUNDLE/new"),
        ("tune", "BUNDLE", "-o", "BUNDLE/new"),
        ("demo", "-o", "BUNDLE"),
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_nothing_is_written_into_a_bundle(causal_byte_bundle: Bundle, arguments: tuple[str, ...]) -> None:
    path = causal_byte_bundle.path
    before = sorted(path.rglob("*"))
    result = CliRunner().invoke(main, [one.replace("BUNDLE", str(path)) for one in arguments])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == (
        f"Error: {path} is a bundle, and what is written into one is lost when it is replaced; choose another folder"
    )
    assert sorted(path.rglob("*")) == before
