"""The example that trains byte models: it learns, writes whole checkpoints and never trains on held-out files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from flash_export.models.checkpoint import load_checkpoint
from flash_export.study import corpus
from flash_export.study.objective import build_example, measure_bits_per_byte

if TYPE_CHECKING:
    from pathlib import Path

TINY = "--dim 32 --depth 1 --chunk-size 64 --heldout-bytes 4096 --learning-rate 1e-2 --lengths 64:0.5,256:0.5"
RUN = "--tokens 3072 --batch-tokens 256 --evaluations 3"
FILES = {"config.json", "heldout.json", "heldout.txt", "model.safetensors", "training.json"}


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


@pytest.fixture
def train(library: Path, load_module: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the example's command line on the stand-in."""
    read_sources = corpus.read_sources
    monkeypatch.setattr(corpus, "read_sources", lambda: read_sources(library))
    script = load_module("train_byte_lm")
    return lambda *arguments: CliRunner().invoke(script.main, [str(one) for one in arguments])


@pytest.mark.parametrize(("objective", "system"), [("causal", "flash"), ("masked", "linformer")])
def test_run_learns_and_writes_a_whole_checkpoint(objective: str, system: str, tmp_path: Path, train: Any) -> None:
    output = tmp_path / "model"
    arguments = ("--system", system, "--objective", objective, "--output", output, *RUN.split(), *TINY.split())
    result = train(*arguments)
    assert result.exit_code == 0, result.output
    assert {path.name for path in output.iterdir()} == FILES
    record = json.loads((output / "training.json").read_text())
    assert [entry["tokens"] for entry in record["history"]] == [1024, 2048, 3072]
    history = [entry["bits"]["256"] for entry in record["history"]]
    assert history[-1] < history[0] < 10
    assert record["tokens_seen"] == 3072
    assert record["system"] == system
    masked = objective == "masked"
    assert json.loads((output / "heldout.json").read_text()) == {
        "objective": objective,
        "tokenizer": "bytes",
        "seq_len": 1024,
        "mask_token_id": 256 if masked else None,
        "mask_fraction": 0.15 if masked else None,
        "seed": 0,
    }
    model = load_checkpoint(output).model
    tensors = load_file(output / "model.safetensors")
    parameters = dict(model.named_parameters())
    assert all((tensor.dtype == torch.float16) == (name in parameters) for name, tensor in tensors.items())
    text = np.frombuffer((output / "heldout.txt").read_bytes(), dtype=np.uint8)
    bits = measure_bits_per_byte(model, text, "masked" if masked else "causal", 1024)
    assert bits == pytest.approx(record["heldout_bits_per_byte"]["1024"], abs=1e-3)
    again = train(*arguments)  # it is done already
    assert again.exit_code == 0
    assert json.loads((output / "training.json").read_text())["minutes"] == record["minutes"]


def test_config_in_place_of_a_system(tmp_path: Path, train: Any) -> None:
    config = tmp_path / "config.json"
    values = {"model_type": "gau", "vocab_size": 5, "dim": 16, "depth": 1, "hidden_dim": 16, "qk_dim": 8}
    config.write_text(json.dumps(values))
    result = train("--config", config, "--objective", "causal", "--output", tmp_path / "m", *RUN.split(), *TINY.split())
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "m" / "config.json").read_text())
    assert {**values, "vocab_size": 256, "causal": True}.items() <= written.items()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--objective causal --system linformer", "system linformer has no causal form"),
        ("--objective causal --batch-tokens 64", "batch_tokens=64 is below the longest window"),
        ("--objective causal --lengths 64:0.5", "are no shares of one whole"),
        ("--system flash", "Missing option '--objective'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    arguments: str, message: str, tmp_path: Path, train: Any
) -> None:
    result = train("--output", tmp_path / "model", *TINY.split(), *arguments.split())
    assert result.exit_code == 2
    assert message in result.output
    assert list(tmp_path.iterdir()) == []


def test_splits_share_no_file(library: Path) -> None:
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


def test_heldout_excerpt_comes_from_heldout_files_only(library: Path) -> None:
    sources = corpus.read_sources(library)
    excerpt = corpus.excerpt_heldout(sources, 2000)
    assert 1900 < len(excerpt) < 2200
    training = corpus.join_split(sources, "train").tobytes().decode()
    functions = [line for line in excerpt.splitlines() if line.startswith("def")]
    assert functions
    assert not [line for line in functions if line in training]


def test_split_of_a_file_is_fixed() -> None:
    paths = ("ast.py", "argparse.py", "json/decoder.py", "typing.py")
    assert {path: corpus.SourceFile(path, "").split for path in paths} == {
        "ast.py": "heldout",
        "argparse.py": "train",
        "json/decoder.py": "train",
        "typing.py": "validation",
    }


def test_masked_examples_hide_what_they_ask_for() -> None:
    windows = np.random.default_rng(1).integers(256, size=(4, 1024))
    inputs, targets = build_example(windows, "masked", np.random.default_rng(0))
    masked = np.random.default_rng(0).random((4, 1024)) < 0.15
    assert (inputs.numpy() == np.where(masked, 256, windows)).all()
    assert (targets.numpy() == np.where(masked, windows, -100)).all()


def test_causal_targets_are_the_next_bytes() -> None:
    windows = np.arange(8, dtype=np.uint8)[None]
    inputs, targets = build_example(windows, "causal", np.random.default_rng(0))
    assert inputs.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]
    assert targets.tolist() == [[1, 2, 3, 4, 5, 6, 7, -100]]
