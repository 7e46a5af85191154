"""``validate --against original``: the library's own code with its own checkpoint is what a bundle is compared with."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch

from flash_export.models.registry import FAMILIES
from flash_export.originals.flash_pytorch import GauStack
from tests.cli.commands import check, invoke
from tests.models.clearvoice_release import RELEASE as CLEARVOICE
from tests.models.clearvoice_release import import_clearvoice, randomise
from tests.models.gau_alpha_release import RELEASE as GAU_ALPHA
from tests.models.gau_alpha_release import import_gau_alpha
from tests.models.mmpose_release import RELEASE as MMPOSE
from tests.models.mmpose_release import import_mmpose
from tests.models.oracles import make_python

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from flash_export.models.importers.arguments import ImportedModel
    from tests.conftest import FolderSharer

pytestmark = pytest.mark.peer

FLASH: dict[str, Any] = {"group_size": 16, "causal": True, "shift_tokens": True, "laplace_attn_fn": True}
LENGTHS = ("--seq-lens", "1,17,40", "--threads", "1")


def save(model: nn.Module, path: Path) -> Path:
    """Save a model with weights that leave nothing at 0 or 1."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("freqs"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    torch.save(model.state_dict(), path)
    return path


def export(folder: Path, weights: Path, family: str, arguments: dict[str, Any], *options: str) -> Path:
    (folder / "arguments.json").write_text(json.dumps(arguments))
    told = ("--config", folder / "arguments.json", "--max-seq-len", 64, "--graphs", "forward", "--assume-defaults")
    bundle = folder / f"{weights.stem}-bundle"
    check("onnx", weights, "-o", bundle, "--family", family, *(told if family != "rtmpose_gau" else told[:2]), *options)
    return bundle


@pytest.fixture(scope="module")
def flash(share_folder: FolderSharer) -> Path:
    """Save and export a model of flash-pytorch; not to be changed."""
    library = pytest.importorskip("flash_pytorch", reason="flash-pytorch is not installed")

    def write(folder: Path) -> None:
        model = library.FLASHTransformer(num_tokens=30, dim=16, depth=1, query_key_dim=8, **FLASH)
        export(folder, save(model, folder / "model.pt"), "flash", FLASH)

    return share_folder("original-flash", write)


def test_a_good_bundle_is_the_library_s_model(flash: Path, tmp_path: Path) -> None:
    result = check(
        *("validate", flash / "model-bundle", "--against", "original", "--checkpoint", flash / "model.pt"),
        *("--report", tmp_path, *LENGTHS),
    )
    facts = json.loads((tmp_path / "report.json").read_text())["environment"]
    versions = (
        rf"Python {sys.version_info.major}\.{sys.version_info.minor}\.\d+ and torch {re.escape(torch.__version__)}"
    )
    assert re.fullmatch(rf"flash-pytorch \d+\.\d+\.\d+ in float64, with {versions}", facts["original"])
    text = " ".join(result.stdout.split())
    assert f"The original model, {facts['original']}, and the exported one (ort-cpu) got the same random inputs" in text
    assert "Time" not in text
    assert "the code of the library that the weights come from" in (tmp_path / "report.html").read_text()


def test_only_the_original_finds_what_reference_and_graph_share(
    flash: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = FAMILIES["flash"].import_weights

    def misread(tensors: Any, arguments: Any) -> ImportedModel:
        imported = right(tensors, arguments)
        config: Any = imported.config
        return dataclasses.replace(imported, config=dataclasses.replace(config, attention_fn="laplace_wide"))

    with monkeypatch.context() as patch:
        patch.setitem(FAMILIES, "flash", dataclasses.replace(FAMILIES["flash"], import_weights=misread))
        bundle = export(tmp_path, flash / "model.pt", "flash", FLASH)
    check("validate", bundle, "--no-latency", *LENGTHS)
    result = invoke("validate", bundle, "--against", "original", "--checkpoint", flash / "model.pt", *LENGTHS)
    assert result.exit_code == 1
    assert "FAILED" in result.stdout
    command = re.search(r"flash-export (validate .*--check \S+ --no-latency)", " ".join(result.stdout.split()))
    assert command is not None
    assert invoke(*command[1].split()).exit_code == 1
    assert "--against original --checkpoint" in command[1]


def test_half_precision_has_the_original_in_float64_to_compare_with(flash: Path, tmp_path: Path) -> None:
    bundle = export(tmp_path, flash / "model.pt", "flash", FLASH, "--precision", "fp16")
    result = check("validate", bundle, "--against", "original", "--checkpoint", flash / "model.pt", *LENGTHS)
    assert "in float64" in result.stdout
    assert "PyTorch's own error in fp16" in " ".join(result.stdout.split())


def test_gau_layers_in_a_stack(tmp_path: Path) -> None:
    library = pytest.importorskip("flash_pytorch.flash_pytorch", reason="flash-pytorch is not installed")
    model = GauStack(library, num_tokens=30, dim=16, query_key_dim=8, laplace_attn_fn=False)
    weights = save(model, tmp_path / "gau.pt")
    bundle = export(tmp_path, weights, "gau", {"causal": False, "laplace_attn_fn": False})
    result = check("validate", bundle, "--against", "original", "--checkpoint", weights, *LENGTHS)
    assert "with and without padding" in " ".join(result.stdout.split())


def test_gau_alpha_in_an_interpreter_of_its_own(tmp_path: Path) -> None:
    library = import_gau_alpha()
    config = {
        "vocab_size": 30,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "attention_key_size": 8,
        "hidden_act": "swish",
        "normalization": "softmax_plus",
        "attention_scale": True,
    }
    weights = save(library.GAUAlphaForMaskedLM(library.GAUAlphaConfig(**config)), tmp_path / "model.bin")
    bundle = export(tmp_path, weights, "gau_alpha", config)
    python = make_python(tmp_path / "python", GAU_ALPHA)
    asked = ("validate", bundle, "--against", "original", "--checkpoint", weights, *LENGTHS)
    result = check(*asked, "--original-python", python)
    text = " ".join(result.stdout.split())
    assert re.search(r"The original model, gau-alpha 0\.0\.3 in float64, with Python [^ ]+ and torch [^ ]+,", text)
    assert "with and without padding" in text
    missing = invoke(*asked)
    assert missing.exit_code == 2
    assert f"{sys.executable} has no module 'gau_alpha', which gau-alpha needs; install it there with" in missing.stderr


@pytest.mark.parametrize("kind", ["enhancement", "separation"])
def test_mossformer2_in_an_interpreter_of_its_own(tmp_path: Path, kind: str) -> None:
    library, sizes = import_clearvoice(), {"dim": 8, "depth": 1, "qk_dim": 4, "chunk_size": 5, "fsmn_dim": 6}
    if kind == "enhancement":
        model = library.build_enhancement(6, out_channels=5, **sizes)
    else:
        model = library.build_separation(kernel_size=4, **sizes)
    weights = tmp_path / "model.pt"
    torch.save({"model": randomise(model, 0).float().state_dict()}, weights)
    rate = {} if kind == "enhancement" else {"sampling_rate": 8000}
    bundle = export(tmp_path, weights, "mossformer2", {"group_size": 5, **rate})
    python = make_python(tmp_path / "python", CLEARVOICE)
    asked = ("--against", "original", "--checkpoint", weights, "--original-python", python, "--threads", "1")
    text = " ".join(check("validate", bundle, "--seq-lens", "6,11,40", *asked).stdout.split())
    assert re.search(r"clearvoice 0\.1\.2 in float64, with Python [^ ]+ and torch [^ ]+, without torchinfo, and", text)


def test_a_graph_that_takes_sound_has_no_network_of_clearvoice_to_compare_with(tmp_path: Path) -> None:
    model = import_clearvoice().build_enhancement(180, out_channels=961, dim=8, depth=1, qk_dim=4, fsmn_dim=6)
    weights = tmp_path / "model.pt"
    torch.save({"model": randomise(model, 0).float().state_dict()}, weights)
    check("onnx", weights, "-o", tmp_path / "bundle", "--assume-defaults", "--waveform")
    python = make_python(tmp_path / "python", CLEARVOICE)
    asked = ("--against", "original", "--checkpoint", weights, "--original-python", python, "--threads", "1")
    result = invoke("validate", tmp_path / "bundle", *asked)
    assert result.exit_code == 2
    assert "the network takes features and the bundle a waveform; export it without --waveform" in result.stderr


def test_head_of_mmpose_in_an_interpreter_of_its_own(tmp_path: Path) -> None:
    unit = {"hidden_dims": 16, "s": 8, "expansion_factor": 2, "dropout_rate": 0.0, "drop_path": 0.0}
    head = {
        "in_channels": 4,
        "out_channels": 5,
        "input_size": [24, 32],
        "in_featuremap_size": [3, 4],
        "simcc_split_ratio": 2.0,
        "final_layer_kernel_size": 3,
        "gau_cfg": {**unit, "act_fn": "SiLU", "use_rel_bias": False, "pos_enc": True},
    }
    weights = save(import_mmpose().head(**head), tmp_path / "head.pth")
    bundle = export(tmp_path, weights, "rtmpose_gau", head)
    python = make_python(tmp_path / "python", MMPOSE)
    asked = ("--against", "original", "--checkpoint", weights, "--original-python", python, "--threads", "1")
    text = " ".join(check("validate", bundle, *asked).stdout.split())
    assert re.search(r"mmpose 1\.3\.2 in float64, with Python [^ ]+ and torch [^ ]+, without mmcv, mmengine, and", text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--against", "original"), "against original and a checkpoint go together; give both, or neither"),
        (("--checkpoint", "x.pt"), "against original and a checkpoint go together; give both, or neither"),
        (("--original-python", "python3"), "original_python was given without against original; give both, or neither"),
        (
            ("--against", "original", "--checkpoint", "x.pt", "--compile"),
            "compiled and against original were both given; the original is not timed",
        ),
        (("--against", "original", "--checkpoint", "x.pt"), "x.pt does not exist"),
    ],
)
def test_what_does_not_go_together_is_one_line(flash: Path, options: tuple[str, ...], message: str) -> None:
    result = invoke("validate", flash / "model-bundle", *options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_another_checkpoint_is_refused(flash: Path, tmp_path: Path) -> None:
    weights = torch.load(flash / "model.pt")
    weights["to_logits.1.bias"] += 1
    torch.save(weights, tmp_path / "model.pt")
    result = invoke("validate", flash / "model-bundle", "--against", "original", "--checkpoint", tmp_path / "model.pt")
    assert result.exit_code == 2
    assert re.search(
        r"model\.pt has sha256 \w{12}\.\.\., the bundle was made of model\.pt with \w{12}\.\.\.", result.stderr
    )


def test_an_interpreter_that_is_none_is_refused(flash: Path, tmp_path: Path) -> None:
    asked = ("validate", flash / "model-bundle", "--against", "original", "--checkpoint", flash / "model.pt")
    result = invoke(*asked, "--original-python", tmp_path / "python")
    assert result.exit_code == 2
    assert "python cannot be run; give the path of a Python interpreter" in result.stderr
    result = invoke(*asked, "--original-python", tmp_path)
    assert result.exit_code == 2
    assert "cannot be run; give the path of a Python interpreter" in result.stderr
    no_program = tmp_path / "no-program"
    no_program.write_bytes(b"\x7fELF and nothing more")
    no_program.chmod(0o755)
    result = invoke(*asked, "--original-python", no_program)
    assert result.exit_code == 2
    assert "no-program does not start (Exec format error); give the path of a Python interpreter" in result.stderr
    result = invoke(*asked, "--original-python", shutil.which("echo"))
    assert result.exit_code == 2
    assert "echo is no Python interpreter (it wrote b'-I -c import sy'); name one" in result.stderr
    ends = {
        "exit 3": "ended with exit code 3 (it said why); see whether it is a Python with torch, or name another",
        "kill -9 $$": "ended with exit code -9 (it said why); run it where there is more memory, or name another",
    }
    for end, message in ends.items():
        silent = tmp_path / "silent"
        silent.write_text(f"#!/bin/sh\necho it said why >&2\n{end}\n")
        silent.chmod(0o755)
        result = invoke(*asked, "--original-python", silent)
        assert result.exit_code == 2
        assert message in result.stderr


def test_a_checkpoint_of_our_own_has_no_original(small_bundle: Any) -> None:
    before = sorted(small_bundle.path.iterdir())
    result = invoke("validate", small_bundle.path, "--against", "original", "--checkpoint", small_bundle.path)
    assert result.exit_code == 2
    assert sorted(small_bundle.path.iterdir()) == before
    assert "which no other library reads; validate it without --against original" in result.stderr
