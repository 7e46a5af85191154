"""What a training run of a byte model consists of: its options, model, optimiser, schedule and windows."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import torch
from byte_objective import MASK_TOKEN_ID, Objective

from flash_export.models.flash import FlashConfig, FlashLayer, FlashModel

if TYPE_CHECKING:
    from pathlib import Path

BETAS = (0.9, 0.98)
MAX_GRAD_NORM = 1.0
WARMUP = 0.03  # of the run
FINAL_LR_SCALE = 0.02
# Window lengths and how often each is drawn. Long windows cost nothing extra (a batch always has the same
# number of bytes) and teach the linear branch, whose sum grows with the length; they come once the model is good.
EARLY_LENGTHS = {512: 0.5, 1024: 0.5}
LATE_LENGTHS = {512: 0.2, 1024: 0.5, 2048: 0.3}
LATE_PHASE = 0.6  # of the run


@dataclass(frozen=True)
class TrainOptions:
    """What a run depends on; the fields are the command line's options."""

    objective: Objective
    output: Path
    steps: int | None
    minutes: float | None
    threads: int
    seed: int
    dim: int
    depth: int
    hidden_dim: int
    chunk_size: int
    qk_dim: int
    batch_tokens: int
    learning_rate: float
    weight_decay: float
    evaluations: int
    heldout_bytes: int
    bf16: bool

    def __post_init__(self) -> None:
        """Check that the run has an end and that a batch holds the longest window."""
        if self.steps is None and self.minutes is None:
            raise click.UsageError("a run without an end: give --steps, --minutes or both")
        if self.batch_tokens < max(LATE_LENGTHS):
            raise click.UsageError(f"--batch-tokens {self.batch_tokens} is too small; use at least {max(LATE_LENGTHS)}")

    def compute_progress(self, step: int, minutes: float) -> float:
        """Return how much of the run is done, in [0, 1], after so many steps and minutes."""
        done = [step / self.steps] if self.steps else []
        done += [minutes / self.minutes] if self.minutes else []
        return min(max(done), 1.0)

    @property
    def model_config(self) -> FlashConfig:
        """Return the hyper-parameters of the model to train."""
        return FlashConfig(
            vocab_size=256 if self.objective == "causal" else MASK_TOKEN_ID + 1,
            dim=self.dim,
            depth=self.depth,
            hidden_dim=self.hidden_dim,
            chunk_size=self.chunk_size,
            qk_dim=self.qk_dim,
            causal=self.objective == "causal",
        )

    @property
    def command(self) -> str:
        """Return the command line that repeats this run."""
        words = ["python", "examples/train_byte_lm.py"]
        for field in fields(self):
            value, flag = getattr(self, field.name), "--" + field.name.replace("_", "-")
            if isinstance(value, bool):
                words.append(flag if value else flag.replace("--", "--no-", 1))
            elif value is not None:
                words += [flag, str(value)]
        return shlex.join(words)


def build_model(config: FlashConfig) -> FlashModel:
    """Create a model with weights that train well.

    The T5 table's default, N(0, 1) times sqrt(qk_dim), is squared by relu² and drowns the scores; and the heads'
    default std of 0.02 gives scores of 1e-5. Both are set so that scores and bias start at the same small scale.
    """
    model = FlashModel(config)
    with torch.no_grad():
        for layer in model.modules():
            if not isinstance(layer, FlashLayer):
                continue
            layer.rel_pos_bias.relative_attention_bias.weight.mul_(0.3 / layer.rel_pos_bias.scale)
            layer.qk_offset_scale.gamma.normal_(1.0, 0.2)
            layer.to_out.weight.mul_(config.depth**-0.5)
    return model


def describe_optimizer(options: TrainOptions) -> dict[str, Any]:
    """Return the settings of the optimiser and its schedule, for ``training.json``."""
    return {
        "name": "AdamW",
        "learning_rate": options.learning_rate,
        "schedule": f"warmup {WARMUP:.0%} of the run, cosine to {FINAL_LR_SCALE:.0%}",
        "betas": BETAS,
        "weight_decay": options.weight_decay,
        "max_grad_norm": MAX_GRAD_NORM,
        "batch_tokens": options.batch_tokens,
        "seq_lens_early": EARLY_LENGTHS,
        "seq_lens_late": LATE_LENGTHS,
    }


def build_optimizer(model: FlashModel, options: TrainOptions) -> torch.optim.AdamW:
    """Create AdamW; only the matrices of linear layers decay."""
    decayed = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[name in decayed].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": options.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=options.learning_rate,
        betas=BETAS,
    )


def compute_lr_scale(progress: float) -> float:
    """Return the factor of the learning rate at ``progress`` in [0, 1]: linear warmup, then a cosine."""
    if progress < WARMUP:
        return max(progress / WARMUP, 0.01)
    cosine = 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))
    return FINAL_LR_SCALE + (1 - FINAL_LR_SCALE) * cosine


def draw_windows(text: np.ndarray, progress: float, batch_tokens: int, generator: np.random.Generator) -> np.ndarray:
    """Draw windows of one random length from random places of the training text, ``batch_tokens`` in all."""
    lengths = EARLY_LENGTHS if progress < LATE_PHASE else LATE_LENGTHS
    seq_len = int(generator.choice(list(lengths), p=list(lengths.values())))
    starts = generator.integers(len(text) - seq_len, size=batch_tokens // seq_len)
    windows: np.ndarray = text[starts[:, None] + np.arange(seq_len)]
    return windows
