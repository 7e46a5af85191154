"""Training: the same text in the same order for all, and an interrupted run ends as if it had not been."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from flash_export.errors import BundleError, CheckpointError, ConfigError, InputError
from flash_export.locks import lock_folder
from flash_export.study.corpus import Corpus, read_corpus
from flash_export.study.systems import SYSTEMS, Size, build_config
from flash_export.study.trained import train_model
from flash_export.study.training import STATE_FILE, TrainingPlan, TrainingRun

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.models.base import ModelConfig

SIZE = Size(dim=16, depth=1, num_heads=2, qk_dim=8, chunk_size=8, max_positions=64)
PLAN = TrainingPlan("causal", 64 * 12, 64, ((16, 0.5), (32, 0.5)), learning_rate=1e-2, evaluations=3)
TEXT = np.frombuffer(b"the cat sat on the mat. " * 400, dtype=np.uint8)


def build(name: str = "flash", *, causal: bool = True) -> ModelConfig:
    return build_config(name, SIZE, vocab_size=256 if causal else 257, causal=causal)


def test_windows_follow_from_seed_and_step_alone() -> None:
    drawn = [PLAN.draw_windows(TEXT, step)[0] for step in range(30)]
    again = [PLAN.draw_windows(TEXT, step)[0] for step in range(30)]
    assert all(np.array_equal(one, other) for one, other in zip(drawn, again, strict=True))
    assert {one.shape for one in drawn} == {(4, 16), (2, 32)}
    other = replace(PLAN, seed=1)
    assert not all(
        one.shape == two.shape and np.array_equal(one, two)
        for one, two in zip(drawn, (other.draw_windows(TEXT, step)[0] for step in range(30)), strict=True)
    )


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_learns(name: str, tmp_path: Path) -> None:
    causal = not SYSTEMS[name].is_bidirectional_only
    plan = replace(PLAN, objective="causal" if causal else "masked", tokens=64 * 40)
    run = TrainingRun(build(name, causal=causal), plan, tmp_path)
    bits = [run.learn(TEXT) for _ in range(plan.num_steps)]
    assert np.mean(bits[-5:]) < np.mean(bits[:5]) - 1.5


def test_interrupted_run_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = TrainingRun(build(), PLAN, tmp_path / "whole")
    whole.train(TEXT, TEXT[:512])
    part = TrainingRun(build(), PLAN, tmp_path / "part")
    for _ in range(5):
        part.learn(TEXT)
    part.save()
    part.learn(TEXT)  # is lost
    resumed = TrainingRun(build(), PLAN, tmp_path / "part")
    assert (resumed.step, resumed.is_done) == (5, False)
    resumed.train(TEXT, TEXT[:512])
    states = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert whole.history[-1]["bits"] == resumed.history[-1]["bits"]
    assert [entry["tokens"] for entry in whole.history] == [256, 512, 768]


def test_bf16_computes_products_alone_in_bf16(tmp_path: Path) -> None:
    plan = replace(PLAN, tokens=64 * 40, precision="bf16")
    run, exact = TrainingRun(build(), plan, tmp_path / "bf16"), TrainingRun(build(), PLAN, tmp_path / "fp32")
    bits = [run.learn(TEXT) for _ in range(plan.num_steps)]
    first = exact.learn(TEXT)
    assert bits[0] != first
    assert bits[0] == pytest.approx(first, rel=1e-2)
    assert bits[-1] < 0.8 * bits[0]
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float32}


def test_state_of_another_run_is_refused(tmp_path: Path) -> None:
    TrainingRun(build(), PLAN, tmp_path).save()
    with pytest.raises(CheckpointError, match="holds a run of another model or plan; give another folder"):
        TrainingRun(build(), replace(PLAN, seed=1), tmp_path)
    with pytest.raises(CheckpointError, match="another model or plan"):
        TrainingRun(build("transformer"), PLAN, tmp_path)
    (tmp_path / STATE_FILE).write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"cannot be read .*; remove .* to start anew"):
        TrainingRun(build(), PLAN, tmp_path)


def test_rate_warms_up_and_falls() -> None:
    plan = replace(PLAN, tokens=64 * 1000)
    rates = [plan.compute_learning_rate(step) for step in range(1000)]
    assert rates[0] < 2e-4
    assert max(rates) == pytest.approx(1e-2)
    assert rates.index(max(rates)) == 50
    assert rates[-1] == pytest.approx(2e-4, rel=0.01)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_tokens": 16}, "batch_tokens=16 is below the longest window; use 32 or more"),
        ({"lengths": ((16, 0.5), (32, 0.4))}, "are no shares of one whole"),
    ],
)
def test_plan_that_cannot_be_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(PLAN, **fields)  # type: ignore[arg-type]


def test_record_says_what_was_seen_and_the_checkpoint_is_what_was_scored(tmp_path: Path) -> None:
    from flash_export.models.checkpoint import load_checkpoint
    from flash_export.study.objective import measure_bits_per_byte

    text = np.frombuffer(b"the cat sat on the mat. " * 100, dtype=np.uint8)
    corpus = Corpus(TEXT, TEXT[:512], text, text.tobytes().decode())
    steps: list[int] = []
    told = train_model(
        build(), PLAN, corpus, tmp_path / "model", heldout_len=32, progress=lambda run, _: steps.append(run.step)
    )
    assert steps == list(range(1, 13))
    assert told["tokens_seen"] == 768
    assert [entry["tokens"] for entry in told["history"]] == [256, 512, 768]
    model = load_checkpoint(tmp_path / "model").model
    assert told["parameters"] == model.count_parameters()
    bits = measure_bits_per_byte(model, text, "causal", 512)
    assert bits == pytest.approx(told["heldout_bits_per_byte"]["512"], abs=1e-4)
    again = train_model(build(), PLAN, corpus, tmp_path / "model", heldout_len=32)
    assert again["heldout_bits_per_byte"] == told["heldout_bits_per_byte"]


def test_run_that_another_process_goes_on_with_is_left_alone(tmp_path: Path) -> None:
    corpus = Corpus(TEXT, TEXT[:512], TEXT[:1024], "")
    run = TrainingRun(build(), PLAN, tmp_path / "model.run")
    with lock_folder(run.folder), pytest.raises(BundleError, match="has been changed by another process"):
        train_model(build(), PLAN, corpus, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_end_of_a_text_file_is_held_out(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {index}\n" for index in range(40_000)))
    corpus = read_corpus(path, 4096)
    texts = [part.tobytes().decode() for part in (corpus.training, corpus.validation, corpus.heldout)]
    assert corpus.excerpt == texts[2]
    assert len(texts[2]) == 4096
    numbers = [[int(line.split()[1]) for line in text.splitlines()[1:-1]] for text in texts]
    assert max(numbers[0]) < min(numbers[1]) < max(numbers[1]) < min(numbers[2])
    path.write_text("short")
    with pytest.raises(InputError, match="has 5 bytes, too few to train on"):
        read_corpus(path, 4096)
