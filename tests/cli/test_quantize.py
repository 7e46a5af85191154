"""``flash-export quantize``: what it prints, how a budget is written, and what is refused in one line."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from flash_export.bundle.bundle import Bundle
from flash_export.bundle.quantization_record import ProductRecord
from flash_export.cli.main import main
from flash_export.cli.quantize import describe_product, parse_share
from flash_export.config import SCHEMES_BY_RUNTIME, QuantizeOptions
from flash_export.errors import ConfigError

pytest.importorskip("onnxruntime")


def invoke(*arguments: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(main, ["quantize", *map(str, arguments)])


def check_refused(result: Result, *fragments: str) -> None:
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert "internal error" not in result.stderr
    assert [fragment for fragment in fragments if fragment not in result.stderr] == [], result.stderr


@pytest.fixture
def asked(int8_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Answer with a bundle that is there, and keep what was asked for."""
    seen: dict[str, Any] = {}

    def answer(bundle: Bundle, output: Path, **arguments: Any) -> Bundle:
        seen.update(arguments, bundle=bundle, output=output)
        return int8_bundle

    monkeypatch.setattr("flash_export.quantization.quantize.quantize_bundle", answer)
    return seen


def test_it_writes_a_bundle_and_says_what_each_product_became(masked_byte_bundle: Bundle, tmp_path: Path) -> None:
    output = tmp_path / "out"
    result = invoke(masked_byte_bundle.path, "-o", output, "--keep", "head", "--threads", "1")
    assert result.exit_code == 0, result.output
    record = Bundle.open(output).read_quantization()
    assert record is not None
    assert result.stderr == f"Next: flash-export validate {output}\n"
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    assert lines[:2] == [
        f"Quantization to {output}: int8-token",
        f"Judged by {record.predictions:,} predictions on held-out text.",
    ]
    rows = [re.sub(" +", " ", line) for line in lines]
    for product in record.products:
        cost = "-" if product.sensitivity is None else f"{product.sensitivity:.3%}"
        assert f"{product.name} {describe_product(product)} {product.weights:,} {cost}".rstrip() in rows
    assert "head fp32 8,224 -" in rows
    assert "  head: fp32, because --keep head" in lines
    assert lines[-2].startswith(f"Loss: {record.loss:.2%}, accepted 0.50%, {record.score:.4f} bits")
    assert lines[-1] == f"In few bits: {record.quantized_share:.0%} of the weights"


def test_options_are_passed_on(masked_byte_bundle: Bundle, tmp_path: Path, asked: dict[str, Any]) -> None:
    options = "--scheme int4 --data a.txt --keep a --keep b.* --budget 1% --block-size 64 --no-smoothing --force"
    assert invoke(masked_byte_bundle.path, "-o", tmp_path / "q", *options.split()).exit_code == 0
    assert asked["options"] == QuantizeOptions("int4", Path("a.txt"), ("a", "b.*"), 0.01, 64, smoothing=False)
    assert (asked["bundle"].path, asked["output"], asked["force"]) == (masked_byte_bundle.path, tmp_path / "q", True)


def test_defaults_are_those_of_the_library(masked_byte_bundle: Bundle, tmp_path: Path, asked: dict[str, Any]) -> None:
    assert invoke(masked_byte_bundle.path, "-o", tmp_path / "q").exit_code == 0
    assert asked["options"] == QuantizeOptions()
    assert asked["force"] is False


@pytest.mark.parametrize(("runtime", "scheme"), SCHEMES_BY_RUNTIME.items())
def test_what_is_to_run_it_chooses_the_scheme(
    masked_byte_bundle: Bundle, tmp_path: Path, asked: dict[str, Any], runtime: str, scheme: str
) -> None:
    arguments = masked_byte_bundle.path, "-o", tmp_path / "q", "--for", runtime
    assert invoke(*arguments).exit_code == 0
    assert asked["options"].scheme == scheme


@pytest.mark.parametrize(("text", "share"), [("0.5%", 0.005), ("0.005", 0.005), (" 2 %", 0.02), ("1e-3", 0.001)])
def test_a_share_is_a_fraction_or_per_cent(text: str, share: float) -> None:
    assert parse_share(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["", "%", "half", "0.5%%", "5% of it", "0,5%"])
def test_what_is_no_share_is_refused(masked_byte_bundle: Bundle, tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        parse_share(text)
    result = invoke(masked_byte_bundle.path, "-o", tmp_path / "q", "--budget", text)
    check_refused(result, f"budget={text!r} is not a share; write it like 0.5% or 0.005")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "0"], "budget=0.0 is not usable; use a fraction between 0 and 1"),
        (["--budget", "100%"], "budget=1.0 is not usable"),
        (["--budget=-1%"], "budget=-0.01 is not usable"),
        (["--budget", "nan"], "budget=nan is not usable"),
        (["--scheme", "int2"], "'int2' is none of int8-token, int8, int4, fp8 (did you mean int8?)"),
        (["--block-size", "24"], "block_size=24 is not usable; use a power of two from 16 on"),
        (
            ["--precision", "bf16"],
            "precision=bf16 is for int8, which runtimes with bf16 have, not for int8-token; use",
        ),
        (["--scheme", "int4", "--precision", "bf16"], "precision=bf16 is for int8"),
        (["--block-size", "8"], "block_size=8 is not usable"),
        (["--threads", "0"], "threads=0 is not usable; use at least 1"),
        (["--scheme", "int8", "--for", "openvino"], "--scheme says what to compute in, so that --for would be ignored"),
        (["--data", "none.txt"], "none.txt cannot be read"),
        (
            ["--keep", "nothing"],
            "keep='nothing' names nothing; the products are layers.0.projection, layers.0.out, hea",
        ),
    ],
)
def test_bad_options_are_one_line(masked_byte_bundle: Bundle, tmp_path: Path, options: list[str], message: str) -> None:
    check_refused(invoke(masked_byte_bundle.path, "-o", tmp_path / "q", *options), message)
    assert list(tmp_path.iterdir()) == []


def test_bundles_that_cannot_be_quantized_are_one_line(int8_bundle: Bundle, tmp_path: Path) -> None:
    check_refused(
        invoke(tmp_path / "none", "-o", tmp_path / "q"), "none is not a folder; give the folder that 'flash-e"
    )
    check_refused(
        invoke(int8_bundle.path, "-o", tmp_path / "q"), "is int8; quantize the fp32 bundle that it was made fr"
    )
    check_refused(
        invoke(int8_bundle.path, "-o", int8_bundle.path), "is int8; quantize the fp32 bundle that it was made fr"
    )
    assert list(tmp_path.iterdir()) == []


def test_how_a_product_is_computed_is_said_in_words() -> None:
    product = ProductRecord("head", "int8", 10, 0.1)
    assert describe_product(product) == "int8"
    assert describe_product(replace(product, terms=2)) == "int8 in two terms"
    assert describe_product(replace(product, smoothing_strength=0.5)) == "int8, smoothed"
    assert describe_product(ProductRecord("head", "fp32", 10, 0.1)) == "fp32"
