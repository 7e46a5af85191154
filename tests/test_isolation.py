"""Nothing is imported from the current folder or from a bundle, by this process or its children."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from flash_export.isolation import list_import_folders, run_module

EVIL = (
    "__future__",
    "importlib",
    "contextlib",
    "pathlib",
    "subprocess",
    "json",
    "typing",
    "runpy",
    "click",
    "numpy",
    "torch",
    "onnx",
    "onnxruntime",
    "tensorrt_rtx",
    "rich",
    "sitecustomize",
    "usercustomize",
)
PYTHONS_OWN = ("sitecustomize", "usercustomize", "__future__", "importlib", "contextlib", "pathlib", "typing")
PACKAGE_FOLDER = str(Path(__file__).resolve().parent.parent)


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the current folder one with modules that leave a mark when they are imported."""
    folder = tmp_path / "evil"
    (folder / "engines").mkdir(parents=True)
    for place in (folder, folder / "engines"):
        for name in EVIL:
            (place / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write(__name__)\n")
    monkeypatch.chdir(folder)
    return folder


def test_current_and_untrusted_folders_are_left_out(
    evil: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(evil)
    (tmp_path / "evil-not").mkdir()
    good = str(tmp_path / "evil-not")
    paths = ["", ".", str(evil), str(tmp_path / "link"), str(evil / "engines"), good, "../evil-not"]
    monkeypatch.setattr(sys, "path", paths)
    assert list_import_folders() == [str(evil / "engines"), good, good]
    assert list_import_folders([str(evil)]) == [good, good]


def test_folder_of_this_package_stays_though_it_is_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PACKAGE_FOLDER)
    monkeypatch.setattr(sys, "path", ["", PACKAGE_FOLDER])
    assert list_import_folders() == [PACKAGE_FOLDER]


def test_current_folder_that_is_gone_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setattr(sys, "path", ["", "/usr/lib"])
    assert list_import_folders() == ["/usr/lib"]


def test_child_imports_nothing_of_the_bundle(evil: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["", str(evil), str(evil / "engines"), *sys.path])
    for name in ("PYTHONPATH", "PYTHONUSERBASE"):
        monkeypatch.setenv(name, str(evil))
    found = run_module("flash_export.validators.footprint_process", "{}", untrusted=[str(evil)], timeout_s=120)
    assert "KeyError: 'onnx_files'" in found.stderr  # it got as far as its input
    assert not (tmp_path / "ran").exists()


def test_child_finds_this_package_where_it_is_on_no_path(
    evil: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != PACKAGE_FOLDER])
    (evil / "flash_export").mkdir()
    (evil / "flash_export" / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    found = run_module("flash_export.errors", "", timeout_s=60)
    assert (found.returncode, found.stderr) == (0, "")
    assert not (tmp_path / "ran").exists()


def test_child_that_takes_too_long_is_killed() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        run_module("flash_export.errors", "", timeout_s=0.001)


@pytest.mark.parametrize(
    "command",
    [
        ("-m", "flash_export"),
        ("-c", "from flash_export.cli.main import main; main()"),
        (str(Path(sys.executable).with_name("flash-export")),),
    ],
    ids=["module", "code", "script"],
)
@pytest.mark.parametrize("path", ["", ":"], ids=["no path", "empty entry"])
def test_command_imports_nothing_of_the_current_folder(
    evil: Path, tmp_path: Path, command: tuple[str, ...], path: str
) -> None:
    # What Python imports before anything of ours: for -m, and for the path that the development install adds to.
    for name in ("runpy", *(PYTHONS_OWN if path or command[0] == "-m" else ())):
        (evil / f"{name}.py").unlink()
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, *command, "inspect", "."], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (
        2,
        "Error: . is not a bundle: it has no manifest.json; make one with 'flash-export onnx'\n",
    )
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()
