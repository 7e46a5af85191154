from __future__ import annotations

import json
import shlex
import subprocess
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Any

import pytest

from flash_export.install import format_install_command, get_install_command

if TYPE_CHECKING:
    from pathlib import Path

GIT = {"url": "https://git.example/team/flash-export.git", "vcs_info": {"vcs": "git", "commit_id": "1f0c"}}


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, "pip install 'flash-export[cpu]'"),
        ({"url": "file:///src/flash-export", "dir_info": {}}, "pip install '/src/flash-export[cpu]'"),
        ({"url": "file:///a%20b", "dir_info": {"editable": True}}, "pip install -e '/a b[cpu]'"),
        ({"url": "file:///dist/flash_export-1.whl", "archive_info": {}}, "pip install '/dist/flash_export-1.whl[cpu]'"),
        (
            {"url": "https://x.example/f.whl", "archive_info": {}},
            "pip install 'flash-export[cpu] @ https://x.example/f.whl'",
        ),
        (GIT, "pip install 'flash-export[cpu] @ git+https://git.example/team/flash-export.git'"),
        (
            {**GIT, "vcs_info": {"vcs": "git", "requested_revision": "v1", "commit_id": "1f0c"}},
            "pip install 'flash-export[cpu] @ git+https://git.example/team/flash-export.git@v1'",
        ),
    ],
)
def test_command_names_where_it_came_from(origin: dict[str, Any] | None, command: str) -> None:
    assert format_install_command(origin, "cpu") == command


def test_no_extra_leaves_no_brackets() -> None:
    assert (
        format_install_command({"url": "file:///src/flash-export", "dir_info": {}}) == "pip install /src/flash-export"
    )


def test_origin_is_the_one_that_pip_noted(tmp_path: Path) -> None:
    info = tmp_path / "flash_export-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: flash-export\nVersion: 0\n")
    (info / "direct_url.json").write_text(json.dumps(GIT))
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from flash_export.install import *; print(read_origin())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == repr(GIT)


def test_pip_understands_the_command_here() -> None:
    """What it names exists: pip reads the extras of this very checkout."""
    words = shlex.split(get_install_command("cpu"))
    options = ["--dry-run", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([sys.executable, "-m", *words, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "does not provide the extra" not in done.stderr


def test_without_a_record_it_is_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def find_nothing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", find_nothing)
    assert get_install_command("rtx") == "pip install 'flash-export[rtx]'"
