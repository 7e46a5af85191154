"""Bundles of a scheme that is no longer made can be read and run, and are neither judged nor made again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from flash_export.bundle.bundle import Bundle
from flash_export.cli.main import main
from flash_export.config import SCHEMES, QuantizeOptions
from flash_export.errors import ConfigError
from flash_export.limits import RETIRED_SCHEMES
from tests.retired import RETIRED

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

pytest.importorskip("onnxruntime")

REFUSED = (
    "Error: int8-dynamic is retired, because what it answered for a token depended on later ones and on other rows; "
    "quantize the fp32 bundle with --scheme int8-token\n"
)


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_what_took_its_place_is_made() -> None:
    assert set(RETIRED_SCHEMES.values()) <= set(SCHEMES)
    assert RETIRED_SCHEMES.keys().isdisjoint(SCHEMES)


def test_it_is_opened(retired_bundle: Bundle) -> None:
    record = Bundle.open(retired_bundle.path).read_quantization()
    assert record is not None
    assert record.scheme == RETIRED
    result = invoke("inspect", retired_bundle.path)
    assert (result.exit_code, RETIRED in result.stdout) == (0, True), result.output


def test_it_is_compared(retired_bundle: Bundle, causal_byte_bundle: Bundle) -> None:
    options = ["--no-latency"]
    result = invoke("compare", causal_byte_bundle.path, retired_bundle.path, *options)
    assert (result.exit_code, RETIRED in result.stdout) == (0, True), result.output


def test_it_generates(retired_bundle: Bundle) -> None:
    result = invoke("generate", retired_bundle.path, "--tokens", "97,32,113", "--max-tokens", "4")
    assert (result.exit_code, result.stdout.count(",")) == (0, 3), result.output


@pytest.mark.parametrize("command", ["validate", "bisect"])
def test_it_is_not_judged(retired_bundle: Bundle, command: str) -> None:
    result = invoke(command, retired_bundle.path)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", REFUSED)


def test_it_is_not_judged_against(causal_byte_bundle: Bundle, retired_bundle: Bundle) -> None:
    result = invoke("bisect", causal_byte_bundle.path, "--against", retired_bundle.path)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", REFUSED)


def test_it_is_not_made(causal_byte_bundle: Bundle, tmp_path: Path) -> None:
    result = invoke("quantize", causal_byte_bundle.path, "-o", tmp_path / "out", "--scheme", RETIRED)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", REFUSED)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="--scheme int8-token"):
        QuantizeOptions(RETIRED)
