"""What is built is what git holds, and a wheel works with nothing but what its metadata asks for."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).parent.parent
MAPPED = {"exporters": "flash_export/exporters", "validators": "flash_export/validators"}
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy what git holds, or would with the next commit: builds leave files beside the sources."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no git checkout, so nothing says which files belong to the packages")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    copy = tmp_path_factory.mktemp("checkout")
    for name in listed:
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    return copy


@pytest.fixture(scope="module")
def sdist(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a source archive of the checkout and unpack it."""
    archive = _build("build_sdist", checkout, tmp_path_factory.mktemp("sdist"))
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return next(folder.iterdir())


@pytest.fixture(scope="module")
def wheel(checkout: Path, sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel of the checkout, which leaves files there that the source archive must not hold."""
    return _build("build_wheel", checkout, tmp_path_factory.mktemp("wheel"))


def test_wheel_holds_each_file_of_the_packages_that_git_holds(checkout: Path, wheel: Path) -> None:
    expected = _read_packages(checkout)

    assert "flash_export/assets/byte-causal/model.safetensors" in expected
    assert _read_wheel(wheel) == expected


def test_wheel_of_the_source_archive_is_the_same(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    again = _build("build_wheel", sdist, tmp_path)

    assert _read_wheel(again) == _read_wheel(wheel)


def test_source_archive_holds_no_part_of_the_tests(sdist: Path) -> None:
    assert not (sdist / "tests").exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("model", ["byte-causal", "byte-masked"])
def test_installed_demo_runs_with_what_the_metadata_asks_for(wheel: Path, tmp_path: Path, model: str) -> None:
    python = _install_alone(wheel, tmp_path / "bare")
    neutral = tmp_path / "neutral"
    neutral.mkdir()
    command = [str(python.with_name("flash-export")), "demo", "--model", model, "--max-seq-len", "256"]

    done = subprocess.run(command, cwd=neutral, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert "No engine: TensorRT-RTX is not installed" in " ".join(done.stdout.split())  # no extra but [cpu] is there
    assert (neutral / "demo" / model / "reports" / "report.html").is_file()


def _build(hook: str, source: Path, output: Path) -> Path:
    """Run the build backend that pyproject.toml names, as pip does, without its own environment."""
    done = subprocess.run([sys.executable, "-c", BUILD, hook, str(output)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return next(output.iterdir())


def _read_packages(checkout: Path) -> dict[str, bytes]:
    """Return each file of the packages by its installed path; git's links to the mapped folders are none."""
    names = {"flash_export": "flash_export", **MAPPED}
    return {
        f"{names[folder]}/{path.relative_to(checkout / folder).as_posix()}": path.read_bytes()
        for folder in names
        for path in (checkout / folder).rglob("*")
        if path.is_file() and not any(parent.is_symlink() for parent in path.parents)
    }


def _read_wheel(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}


def _install_alone(wheel: Path, folder: Path) -> Path:
    """Install a wheel with extra [cpu] into a new environment that sees what it requires, and nothing else.

    Returns:
        The environment's Python. Requirements are links to this environment's packages.
    """
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (info,) = site.glob("flash_export-*.dist-info")
    own = importlib.metadata.PathDistribution(info)
    required: dict[str, importlib.metadata.Distribution] = {}
    _add_required(own.requires or [], {"", "cpu"}, required)
    for distribution in required.values():
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    return python


def _add_required(
    requirements: Iterable[str], extras: set[str], found: dict[str, importlib.metadata.Distribution]
) -> None:
    """Add the distributions that are asked for here, and what those ask for."""
    for requirement in map(Requirement, requirements):
        wanted = requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras)
        if wanted and requirement.name not in found:
            found[requirement.name] = importlib.metadata.distribution(requirement.name)
            _add_required(found[requirement.name].requires or [], {"", *requirement.extras}, found)
