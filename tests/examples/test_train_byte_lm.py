"""The example that trains the byte models: it learns, writes whole checkpoints and never trains on held-out files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from flash_export.models.flash import FlashConfig, FlashModel

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = "--dim 32 --depth 1 --hidden-dim 32 --qk-dim 16 --chunk-size 64 --heldout-bytes 4096 --learning-rate 1e-2"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small stand-in for the standard library, so that the test depends on no Python version."""
    root = tmp_path_factory.mktemp("library")
    for index in range(200):
        body = f"def function_{index}(value):\n    return value + {index}\n\n\n"
        path = root / f"package_{index % 7}" / f"module_{index}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"# the file {index}\n" + body * 20, encoding="utf-8")
    (root / "test").mkdir()
    (root / "test" / "test_left_out.py").write_text("# the file of a test\n", encoding="utf-8")
    return root


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_run_learns_and_writes_a_whole_checkpoint(
    objective: str, tmp_path: Path, library: Path, load_module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, output = load_module("train_byte_lm"), tmp_path / "model"
    read_sources = load_module("byte_corpus").read_sources
    monkeypatch.setattr(script, "read_sources", lambda: read_sources(library))
    arguments = ["--objective", objective, "--output", str(output), "--steps", "12", "--evaluations", "2"]

    result = CliRunner().invoke(script.main, [*arguments, *TINY.split()], catch_exceptions=False)

    assert result.exit_code == 0, result.output
    assert {path.name for path in output.iterdir()} == {
        "config.json",
        "heldout.json",
        "heldout.txt",
        "model.safetensors",
        "training.json",
    }
    record = json.loads((output / "training.json").read_text())
    history = [entry["validation_bits_per_byte"] for entry in record["history"]]
    assert len(history) == 3
    assert 7 < history[0] < 10  # about log2(256) before the first step
    assert history[-1] < history[0] - 1
    assert record["steps"] == 12
    assert record["tokens_seen"] == 12 * 2048
    assert json.loads((output / "heldout.json").read_text()) == {
        "objective": objective,
        "tokenizer": "bytes",
        "seq_len": 1024,
        "mask_token_id": 256 if objective == "masked" else None,
        "mask_fraction": 0.15 if objective == "masked" else None,
        "seed": 0,
    }

    model = FlashModel(FlashConfig.from_dict(json.loads((output / "config.json").read_text())))
    tensors = load_file(output / "model.safetensors")
    parameters = dict(model.named_parameters())
    assert all((tensor.dtype == torch.float16) == (name in parameters) for name, tensor in tensors.items())
    model.load_state_dict(tensors, strict=True)
    text = np.frombuffer((output / "heldout.txt").read_bytes(), dtype=np.uint8)
    bits = load_module("byte_objective").measure_bits_per_byte(model, text, objective)
    assert bits == pytest.approx(record["heldout_bits_per_byte"], abs=1e-3)


def test_splits_share_no_file(library: Path, load_module: Any) -> None:
    corpus = load_module("byte_corpus")
    sources = corpus.read_sources(library)
    assert [source.path for source in sources] == sorted(source.path for source in sources)
    assert len(sources) == 200

    markers = {
        split: {
            line for line in corpus.join_split(sources, split).tobytes().split(b"\n") if line.startswith(b"# the file")
        }
        for split in ("train", "validation", "heldout")
    }
    assert all(markers.values())
    assert sum(map(len, markers.values())) == len(set.union(*markers.values())) == 200


def test_heldout_excerpt_comes_from_heldout_files_only(library: Path, load_module: Any) -> None:
    corpus = load_module("byte_corpus")
    sources = corpus.read_sources(library)
    excerpt = corpus.excerpt_heldout(sources, 2000)
    assert 1900 < len(excerpt) < 2200
    training = corpus.join_split(sources, "train").tobytes().decode()
    functions = [line for line in excerpt.splitlines() if line.startswith("def")]
    assert functions
    assert not [line for line in functions if line in training]


def test_split_of_a_file_is_fixed(load_module: Any) -> None:
    source_file = load_module("byte_corpus").SourceFile
    splits = {path: source_file(path, "").split for path in ("ast.py", "argparse.py", "json/decoder.py", "typing.py")}
    assert splits == {
        "ast.py": "heldout",
        "argparse.py": "train",
        "json/decoder.py": "train",
        "typing.py": "validation",
    }


def test_masked_examples_hide_what_they_ask_for(load_module: Any) -> None:
    objective = load_module("byte_objective")
    windows = np.random.default_rng(1).integers(256, size=(4, 1024))
    inputs, targets = objective.build_example(windows, "masked", np.random.default_rng(0))
    masked = np.random.default_rng(0).random((4, 1024)) < 0.15
    assert (inputs.numpy() == np.where(masked, 256, windows)).all()
    assert (targets.numpy() == np.where(masked, windows, -100)).all()


def test_causal_targets_are_the_next_bytes(load_module: Any) -> None:
    windows = np.arange(8, dtype=np.uint8)[None]
    inputs, targets = load_module("byte_objective").build_example(windows, "causal", np.random.default_rng(0))
    assert inputs.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]
    assert targets.tolist() == [[1, 2, 3, 4, 5, 6, 7, -100]]


def test_a_run_needs_an_end(tmp_path: Path, load_module: Any) -> None:
    arguments = ["--objective", "causal", "--output", str(tmp_path / "model")]
    result = CliRunner().invoke(load_module("train_byte_lm").main, arguments)
    assert result.exit_code == 2
    assert "--steps" in result.output
    assert not (tmp_path / "model").exists()
