"""``flash-export triton``: the repository, what is said of it, and what is refused."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.cli.commands import check, invoke

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle


def test_models_are_written_and_listed(causal_byte_bundle: Bundle, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    command = ["triton", causal_byte_bundle.path, "-o", repository, "--name", "m"]
    result = check(*command, "--form", "forward", "--form", "generate")

    assert sorted(path.name for path in repository.iterdir()) == ["m", "m-generate"]
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["m", "forward", "1", "none", "onnxruntime_onnx", "4"] in lines
    assert ["m-generate", "generate", "1", "none", "python", "not", "batched"] in lines
    assert result.stderr == f"Next: tritonserver --model-repository={repository}\n"
    assert "m forward" in " ".join(check(*command, "-q", "--markdown", "-").stdout.replace("|", " ").split())


def test_what_is_refused_is_told_in_one_line(masked_byte_bundle: Bundle, tmp_path: Path) -> None:
    result = invoke("triton", masked_byte_bundle.path, "-o", tmp_path / "repository", "--form", "sequence")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"Error: {masked_byte_bundle.path} has no graph extend, which alone takes a text in pieces from any position "
        "with a state of constant size; export a causal flash model, with all graphs\n"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--slots", "4"), "only the forms sequence, generate use it, so that --slots would be ignored; leave it out"),
        (("--timeout-s", "4"), "only the forms sequence, generate use it, so that --timeout-s would be ignored"),
        (
            ("--form", "generate", "--max-batch", "3"),
            "only the forms forward, ragged, sequence use it, so that --max-batch",
        ),
        (("--form", "generate", "--queue-delay-us", "3"), "so that --queue-delay-us would be ignored"),
        (("--form", "sequence", "--max-waiting", "3"), "so that --max-waiting would be ignored"),
        (("--engine", "e", "--threads", "3"), "an engine runs on its GPU, so that --threads would be ignored"),
    ],
)
def test_what_would_be_ignored_is_refused(
    causal_byte_bundle: Bundle, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    result = invoke("triton", causal_byte_bundle.path, "-o", tmp_path / "repository", *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "repository").exists()


def test_without_tritonclient_nothing_is_written(
    causal_byte_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    result = invoke("triton", causal_byte_bundle.path, "-o", tmp_path / "repository")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: tritonclient is not installed; pip install")
    assert not (tmp_path / "repository").exists()
