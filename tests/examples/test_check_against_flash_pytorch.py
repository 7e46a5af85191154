"""The example that compares a graph with the library alone takes what ``onnx`` takes, and tells right from wrong."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from flash_export.config import ExportOptions
from flash_export.exporters.export import export_onnx
from flash_export.models.flash import FlashConfig, FlashModel
from flash_export.models.gau import GauConfig, GauModel

if TYPE_CHECKING:
    from collections.abc import Callable

    Check = Callable[..., tuple[int, str]]

pytestmark = pytest.mark.peer

EXAMPLES = Path(__file__).parents[2] / "examples"
OLD = Path(sys.prefix) / "oracles" / "flash-pytorch==0.1.0"
LONGEST = 40
SIZES: dict[str, Any] = {"vocab_size": 17, "dim": 12, "depth": 1, "hidden_dim": 18, "qk_dim": 20}
FLASH: dict[str, Any] = {"group_size": 16, "laplace_attn_fn": False, "reduce_group_non_causal_attn": True}
GAU: dict[str, Any] = {"causal": False, "laplace_attn_fn": True}


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Check:
    """Run the script in this process, with whichever release of the library it asks for."""
    pytest.importorskip("flash_pytorch", reason="flash-pytorch is not installed")
    for name in ("flash_pytorch", "flash_pytorch.flash_pytorch", "flash_pytorch.autoregressive_wrapper"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(sys, "path", list(sys.path))
    script = importlib.import_module("check_against_flash_pytorch")

    def run(weights: Path, graph: Path, arguments: dict[str, Any], *options: str | Path) -> tuple[int, str]:
        told = [part for name, value in arguments.items() for part in ("--set", f"{name}={str(value).lower()}")]
        words = [weights, graph, *told, *options, "--max-seq-len", LONGEST]
        monkeypatch.setattr(sys, "argv", ["check", *map(str, words)])
        return script.main(), capsys.readouterr().out

    return run


def write_weights(model: FlashModel | GauModel, path: Path, wrap: Callable[[Any], Any] = lambda state: state) -> Path:
    """Save random weights as flash-pytorch would, inside of what a training script leaves around them."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    state = dict(model.state_dict())
    if "rotary_pos_emb.freqs" in state:
        freqs = state.pop("rotary_pos_emb.freqs")
        state |= {f"layers.{index}.rotary_pos_emb.freqs": freqs for index in range(SIZES["depth"])}
    torch.save(wrap(state), path)
    return path


def export(weights: Path, family: str, arguments: dict[str, Any], **options: Any) -> Path:
    graph = ExportOptions(max_seq_len=LONGEST, graphs=("forward",))
    bundle = export_onnx(
        weights,
        weights.parent / "bundle",
        options=graph,
        family=family,
        config=arguments,
        assume_defaults=True,
        **options,
    )
    return bundle.get_graph_path()


def test_script_does_not_know_this_package() -> None:
    text = (EXAMPLES / "check_against_flash_pytorch.py").read_text()
    assert "import flash_export" not in text
    assert "from flash_export" not in text


@pytest.mark.parametrize("divisor", [pytest.param("valid", marks=pytest.mark.slow), "padded"])
def test_masked_gau(check: Check, tmp_path: Path, divisor: str) -> None:
    arguments = {**GAU, "mask_divisor": divisor}
    weights = write_weights(GauModel(GauConfig(**SIZES)), tmp_path / "gau.pt")
    graph = export(weights, "gau", arguments)
    code, output = check(weights, graph, arguments, "--family", "gau", "--assume-defaults")
    assert code == 0, output
    assert ("masked, each row alone" if divisor == "valid" else "scale, masked\n") in output
    other = {**arguments, "mask_divisor": "padded" if divisor == "valid" else "valid"}
    code, output = check(weights, graph, other, "--family", "gau")
    assert code == 1, output


def test_averaged_and_rounded_weights_of_a_wrapped_model(check: Check, tmp_path: Path) -> None:
    def wrap(state: dict[str, torch.Tensor]) -> dict[str, Any]:
        halved = {f"module.net._orig_mod.{name}": tensor.half() for name, tensor in state.items()}
        return {"state_dict": {name: tensor * 0.5 for name, tensor in halved.items()}, "ema": halved, "epoch": 3}

    arguments = {**FLASH, "causal": True}
    model = FlashModel(FlashConfig(**SIZES, chunk_size=16, causal=True))
    weights = write_weights(model, tmp_path / "run.ckpt", wrap)
    graph = export(weights, "flash", arguments, weights_key="ema")
    code, output = check(weights, graph, arguments, "--weights-key", "ema")
    assert code == 0, output
    code, output = check(weights, graph, arguments)
    assert code == 1, output
    assert output.splitlines()[-1].endswith(": DIFFERENT")


def test_old_release_and_wrong_arguments(check: Check, tmp_path: Path) -> None:
    if not OLD.parent.is_dir():
        pytest.skip(f"{OLD.parent} does not exist; 'make test' fills it")
    arguments = {"group_size": 16, "causal": False}
    weights = write_weights(FlashModel(FlashConfig(**SIZES)), tmp_path / "old.pt")
    graph = export(weights, "flash", arguments, library_version="0.1.0")
    old = ("--library", OLD, "--library-version", "0.1.0")
    code, output = check(weights, graph, arguments, *old)
    assert code == 0, output
    assert output.startswith("flash-pytorch 0.1.0, flash\n")
    code, output = check(weights, graph, {**arguments, "group_size": 8}, *old)
    assert code == 1, output


def test_bundle_is_a_folder_of_weights_with_all_arguments(check: Check, tmp_path: Path) -> None:
    torch.manual_seed(0)
    FlashModel(FlashConfig(**SIZES, chunk_size=16, shift_tokens=False)).save_pretrained(tmp_path / "model")
    bundle = export_onnx(tmp_path / "model", tmp_path / "bundle", options=ExportOptions(max_seq_len=LONGEST))
    code, output = check(bundle.path, bundle.get_graph_path(), {})
    assert code == 0, output


def test_another_release_than_the_named_one_is_refused(check: Check, tmp_path: Path) -> None:
    weights = write_weights(FlashModel(FlashConfig(**SIZES)), tmp_path / "model.pt")
    with pytest.raises(SystemExit, match=r"give --library the folder of 0\.1\.2"):
        check(weights, tmp_path / "model.onnx", FLASH, "--library-version", "0.1.2")
