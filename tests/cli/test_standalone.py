"""``flash-export standalone``: what it prints, and what it refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.cli.commands import check, invoke

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle


def test_it_says_what_is_in_the_folder_and_what_is_not(small_bundle: Bundle, tmp_path: Path) -> None:
    result = check("standalone", small_bundle.path, "-o", tmp_path / "service")
    shown = " ".join(result.stdout.split())
    assert shown.startswith(f"flash, fp32: {tmp_path / 'service'} (")
    assert "programs Python, C++, JavaScript" in shown
    assert "left out generation: it is not causal, so that every token changes all tokens before it" in shown
    assert (
        "C++ for TensorRT: the bundle has no engine of forward; build it with 'flash-export trt BUNDLE' first" in shown
    )
    assert result.stderr == f"Next: flash-export validate {small_bundle.path}\n"


def test_a_second_time_needs_force(small_bundle: Bundle, tmp_path: Path) -> None:
    target = tmp_path / "service"
    check("standalone", small_bundle.path, "-o", target)
    result = invoke("standalone", small_bundle.path, "-o", target)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"Error: {target} already holds a standalone folder; add --force to replace it, with what was changed\n"
    )
    check("standalone", small_bundle.path, "-o", target, "--force")


def test_a_changed_bundle_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with bundle.get_graph_path().open("ab") as stream:
        stream.write(b"\0")
    result = invoke("standalone", bundle.path, "-o", tmp_path / "service")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "was changed after the export" in result.stderr
    assert not (tmp_path / "service").exists()
