"""Multi-head models from a folder of weights to an engine, with the commands that a user types."""

from __future__ import annotations

import importlib
import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

from flash_export.bundle.bundle import Bundle
from tests.cli.commands import check, invoke
from tests.models.multihead_models import CONFIGS, VOCAB_SIZE, make_model

if TYPE_CHECKING:
    from click.testing import Result

    from tests.conftest import FolderSharer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
THREADS = ("--threads", "1")
LENGTHS = ("--seq-lens", "1,5,64")
# A Transformer and a model of chunks are tried in every run, the others where there is more time.
QUICK = ("transformer++", "bigbird")
OTHERS = ("causal mc_tfm", "performer", "linformer", "longformer")
MAY_BE_SLOW = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
FAULTS = {
    "transformer++": (
        *("queries of one head scaled by another width", "queries turned the other way"),
        *("feed-forward layer without gate", "hidden future visible"),
    ),
    "bigbird": ("values of two heads swapped", "residual missing", "a drawn block changed"),
}


class Made(NamedTuple):
    """A model of two blocks, the folder with its weights and tokens, and its bundle."""

    name: str
    folder: Path
    bundle: Bundle


@pytest.fixture(scope="session", params=MAY_BE_SLOW)
def made(request: pytest.FixtureRequest, share_folder: FolderSharer) -> Made:
    """Save a model, and export it; not to be changed."""
    name = request.param

    def write(folder: Path) -> None:
        make_model(CONFIGS[name]).save_pretrained(folder / "checkpoint")
        np.save(folder / "tokens.npy", np.random.default_rng(0).integers(0, VOCAB_SIZE, 2000))
        export(folder, folder / "bundle")

    folder = share_folder(f"multihead-{name.replace(' ', '-')}", write)
    return Made(name, folder, Bundle.open(folder / "bundle"))


def export(folder: Path, target: Path, *options: str) -> Result:
    data = ("--heldout", folder / "tokens.npy", "--max-seq-len", 64)
    return check("onnx", folder / "checkpoint", "-o", target, *data, *options)


def load_faults(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Import the faults that can be planted, and what plants them."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("harness.multihead_faults").FAULTS, importlib.import_module("harness.faults").plant


def test_a_folder_tells_all(made: Made) -> None:
    family = CONFIGS[made.name].model_type
    assert made.bundle.manifest.checkpoint["format"] == "flash-export"
    text = " ".join(check("inspect", made.bundle.path).stdout.split())
    assert f"model {family}, " in text
    assert "in each of 2 blocks" in text


def test_validation_passes_at_every_length_padded_or_not(made: Made, tmp_path: Path) -> None:
    copy = shutil.copytree(made.bundle.path, tmp_path / "bundle")
    result = check("validate", copy, "--no-latency", *THREADS)
    assert re.search(r"PASSED +\d+ passed, 0 failed", result.stdout)
    assert ("Bits per token, " in result.stdout) == CONFIGS[made.name].causal


def test_a_good_graph_bisects_clean(made: Made) -> None:
    assert "CLEAN  No fault found: 20 quantities" in check("bisect", made.bundle.path, *THREADS).stdout


def test_faults_are_refused_and_found_where_they_are(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some are planted in every run, all of them where there is more time."""
    faults, plant = load_faults(monkeypatch)
    chosen = [fault for fault in faults if made.name in fault.models]
    if made.name in FAULTS:
        chosen = [fault for fault in chosen if fault.name in FAULTS[made.name]]
        assert len(chosen) == len(FAULTS[made.name])
    check_faults(made.bundle, chosen, plant, tmp_path)


@pytest.mark.slow
def test_all_faults_are_found_where_they_are(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faults, plant = load_faults(monkeypatch)
    check_faults(made.bundle, [fault for fault in faults if made.name in fault.models], plant, tmp_path)


def check_faults(bundle: Bundle, faults: list[Any], plant: Any, folder: Path) -> None:
    quantities = {name: one.label for name, one in CONFIGS["transformer"].quantities.items()}
    for index, fault in enumerate(faults):
        broken = plant(fault, bundle, folder / str(index))
        assert invoke("validate", broken.path, "--no-latency", *LENGTHS, *THREADS).exit_code == 1, fault.name
        result = invoke("bisect", broken.path, *THREADS)
        assert result.exit_code == 1, fault.name
        text = " ".join(result.stdout.split())
        (quantity,) = fault.quantities
        assert f"FOUND Block {fault.block}, {quantities[quantity]}" in text, fault.name


def test_ranges_tell_what_the_precision_has_to_hold(made: Made) -> None:
    rows = json.loads(check("profile-ranges", made.bundle.path, *THREADS, "--json", "-").stdout)["rows"]
    names = {row["name"] for row in rows}
    first, *inner = CONFIGS[made.name].quantities
    assert {first, *(f"layers.{index}.{name}" for index in (0, 1) for name in inner)} <= names
    assert all(point["max_abs"] > 0 for row in rows for point in row["points"])


@pytest.mark.slow
def test_it_is_quantized_compared_and_validated_again(made: Made, tmp_path: Path) -> None:
    text = check("quantize", made.bundle.path, "-o", tmp_path / "int8", "--scheme", "int8", *THREADS).stdout
    assert re.search(r"layers\.\d\.\S+ +int8", text)
    assert check("validate", tmp_path / "int8", "--no-latency", *LENGTHS, *THREADS)
    compared = check("compare", made.bundle.path, tmp_path / "int8", "--no-latency", *THREADS, "--json", "-")
    first, second = json.loads(compared.stdout)["entries"]
    assert first["quality"]["measures"]["top1_agreement"] == 1
    assert 0.7 < second["quality"]["measures"]["top1_agreement"] < 1


@pytest.mark.slow
def test_fp16_is_validated_and_built(made: Made, tmp_path: Path) -> None:
    export(made.folder, tmp_path / "half", "--precision", "fp16")
    assert check("validate", tmp_path / "half", "--no-latency", *LENGTHS, *THREADS)
    pytest.importorskip("tensorrt_rtx", reason="engines are built here with TensorRT-RTX alone")
    assert "float16" in check("trt", tmp_path / "half", "--compute-capability", "8.9").stdout


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("validate", "{bundle}", "--against", "original", "--checkpoint", "{folder}/checkpoint"), "which no other li"),
        (("onnx", "{folder}/checkpoint", "-o", "{target}", "--family", "flash"), "leave --family out"),
        (("onnx", "{folder}/checkpoint", "-o", "{target}", "--set", "num_heads=5"), "cannot be shared between"),
    ],
)
def test_what_does_not_fit_is_one_line(made: Made, tmp_path: Path, command: tuple[str, ...], message: str) -> None:
    places = {"bundle": made.bundle.path, "folder": made.folder, "target": tmp_path / "bundle"}
    result = invoke(*(part.format(**places) for part in command))
    assert result.exit_code == 2
    assert re.search(message, result.stderr)
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("generate", "{bundle}", "--prompt", "a"),
        ("onnx", "{folder}/checkpoint", "-o", "{target}", "--graphs", "forward,decode"),
    ],
)
def test_model_without_a_state_is_refused_one_in_one_line(made: Made, tmp_path: Path, command: tuple[str, ...]) -> None:
    if CONFIGS[made.name].state_refusal is None:
        assert made.name == "transformer++"  # tests/cli/test_transformer_state.py is about its state
        return
    places = {"bundle": made.bundle.path, "folder": made.folder, "target": tmp_path / "bundle"}
    result = invoke(*(part.format(**places) for part in command))
    assert result.exit_code == 2
    assert re.search("exported for whole sequences alone|is not causal", result.stderr)
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
