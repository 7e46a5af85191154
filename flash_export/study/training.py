"""Training a model of bytes: the same text, in the same order, for as many tokens, whatever the model.

A run is a folder with ``state.pt``, what it goes on from. The windows of a step follow from the seed and the number of
the step alone, so that a run that was interrupted ends as if it had not been.

Axes: b batch, n sequence.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch
from torch import nn

from flash_export.errors import CheckpointError, ConfigError
from flash_export.layers.attention import OffsetScale
from flash_export.layers.position import RelativePositionBias
from flash_export.models.flash import FlashLayer
from flash_export.models.gau import GauLayer
from flash_export.models.multihead import MultiheadLayer
from flash_export.models.registry import FAMILIES
from flash_export.study.objective import build_example, compute_loss, measure_bits_per_byte

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from flash_export.models.base import ModelConfig, ReferenceModel
    from flash_export.study.objective import Objective

BETAS = (0.9, 0.98)
MAX_GRAD_NORM = 1.0
WARMUP = 0.05  # of the run
FINAL_LR_SCALE = 0.02
FP32: Final = "fp32"
BF16: Final = "bf16"
STATE_FILE = "state.pt"


@dataclass(frozen=True)
class TrainingPlan:
    """What a run depends on, beside the model and the text.

    Attributes:
        objective: ``causal`` or ``masked``.
        tokens: Tokens to see, in all.
        batch_tokens: Tokens of a step.
        lengths: Lengths of windows, each with the share of the tokens that is seen in windows of it.
        learning_rate: Peak of the schedule.
        weight_decay: Of the matrices of linear layers.
        seed: Of weights, windows and masks.
        evaluations: How often validation text is scored, evenly over the run.
        precision: ``bf16``: products and what PyTorch's autocast takes with them, weights and scores stay fp32.
    """

    objective: Objective
    tokens: int
    batch_tokens: int = 2048
    lengths: tuple[tuple[int, float], ...] = ((512, 0.75), (2048, 0.25))
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    seed: int = 0
    evaluations: int = 10
    precision: Literal["fp32", "bf16"] = FP32

    def __post_init__(self) -> None:
        """Check that a step holds the longest window, and that the shares are all there is.

        Raises:
            ConfigError: They are not.
        """
        longest = max(length for length, _ in self.lengths)
        if self.batch_tokens < longest:
            raise ConfigError(f"batch_tokens={self.batch_tokens} is below the longest window; use {longest} or more")
        if abs(sum(share for _, share in self.lengths) - 1) > 1e-6 or min(share for _, share in self.lengths) <= 0:
            raise ConfigError(f"lengths={dict(self.lengths)} are no shares of one whole; let them add up to 1")

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return max(1, self.tokens // self.batch_tokens)

    def draw_windows(self, text: np.ndarray, step: int) -> tuple[np.ndarray, np.random.Generator]:
        """Return the windows of a step, ``(b, n)``, and a generator for what else is drawn in it."""
        random = np.random.default_rng([self.seed, step])
        lengths, shares = zip(*self.lengths, strict=True)
        seq_len = int(random.choice(lengths, p=shares))
        starts = random.integers(len(text) - seq_len, size=self.batch_tokens // seq_len)
        windows: np.ndarray = text[starts[:, None] + np.arange(seq_len)]
        return windows, random

    def compute_learning_rate(self, step: int) -> float:
        """Return the rate of a step: a linear warm-up, then a cosine."""
        progress = step / self.num_steps
        if progress < WARMUP:
            return self.learning_rate * max(progress / WARMUP, 0.01)
        cosine = 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP)))
        return self.learning_rate * (FINAL_LR_SCALE + (1 - FINAL_LR_SCALE) * cosine)


def build_model(config: ModelConfig, seed: int) -> ReferenceModel:
    """Create a model with weights that train well.

    The T5 table's default, N(0, 1) times sqrt(qk_dim), is squared by relu² and drowns the scores; and the heads'
    default std of 0.02 gives scores of 1e-5. Both are set so that scores and bias start at the same small scale. What
    every block adds to the residual starts smaller the deeper the model.
    """
    torch.manual_seed(seed)
    model = FAMILIES[config.model_type].model_class(config)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, RelativePositionBias):
                module.relative_attention_bias.weight.mul_(0.3 / module.scale)
            elif isinstance(module, OffsetScale):
                module.gamma.normal_(1.0, 0.2)
            elif isinstance(module, MultiheadLayer):
                for linear in (module.to_out, module.feed_forward.to_out):
                    linear.weight.mul_((2 * config.num_blocks) ** -0.5)
            elif isinstance(module, FlashLayer | GauLayer):
                name = "to_out.weight" if isinstance(module, FlashLayer) else "to_out.0.weight"
                module.get_parameter(name).mul_(config.num_blocks**-0.5)
    return model


def build_optimizer(model: nn.Module, plan: TrainingPlan) -> torch.optim.AdamW:
    """Create AdamW; only the matrices of linear layers decay."""
    decayed = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        groups[name in decayed].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": plan.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=plan.learning_rate,
        betas=BETAS,
    )


class TrainingRun:
    """A run that can be taken up again.

    Attributes:
        model: The model, as far as it has come.
        step: Steps that were taken.
        seconds: Time that they took.
        history: What validation text was scored, with step and minutes.
    """

    def __init__(self, config: ModelConfig, plan: TrainingPlan, folder: Path, device: str = "cpu") -> None:
        """Start, or go on from the state in a folder.

        Raises:
            CheckpointError: The folder holds a run of another model or plan, or a state that cannot be read.
        """
        self.config, self.plan, self.folder, self.device = config, plan, folder, device
        self.model = build_model(config, plan.seed).to(device)
        self.optimizer = build_optimizer(self.model, plan)
        self.step, self.seconds = 0, 0.0
        self.history: list[dict[str, Any]] = []
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / STATE_FILE
        if path.exists():
            try:
                state = torch.load(path, weights_only=True, map_location=device)
                described = state["described"]
            except Exception as error:
                raise CheckpointError(f"{path} cannot be read ({error}); remove {folder} to start anew") from error
            if described != self.describe():
                raise CheckpointError(f"{folder} holds a run of another model or plan; give another folder")
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds, self.history = state["step"], state["seconds"], json.loads(state["history"])

    def describe(self) -> str:
        """Return what tells this run from others."""
        return json.dumps({"config": self.config.to_dict(), "plan": asdict(self.plan)}, sort_keys=True)

    @property
    def tokens(self) -> int:
        """Tokens that were seen."""
        return self.step * self.plan.batch_tokens

    @property
    def is_done(self) -> bool:
        """Whether all steps were taken."""
        return self.step >= self.plan.num_steps

    def save(self) -> None:
        """Keep the state, whole or not at all."""
        state = {
            "described": self.describe(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "history": json.dumps(self.history),
        }
        part = self.folder / f"{STATE_FILE}.part"
        torch.save(state, part)
        part.replace(self.folder / STATE_FILE)

    def learn(self, text: np.ndarray) -> float:
        """Take a step, and return its loss in bits a byte."""
        start = time.monotonic()
        windows, random = self.plan.draw_windows(text, self.step)
        inputs, targets = (tensor.to(self.device) for tensor in build_example(windows, self.plan.objective, random))
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.compute_learning_rate(self.step)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.plan.precision == BF16):
            logits = self.model(inputs)
        loss = compute_loss(logits, targets)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM, error_if_nonfinite=True)
        self.optimizer.step()
        self.step += 1
        self.seconds += time.monotonic() - start
        return loss.item() / math.log(2)

    def score(self, text: np.ndarray, seq_len: int, model: ReferenceModel | None = None) -> float:
        """Return the bits a byte of a text in windows of a length, for this model or one of its kind on the CPU."""
        if model is not None:
            return measure_bits_per_byte(model, text, self.plan.objective, seq_len)
        self.model.eval()
        bits = measure_bits_per_byte(self.model, text, self.plan.objective, seq_len, self.device)
        self.model.train()
        return bits

    def train(
        self,
        text: np.ndarray,
        validation: np.ndarray,
        *,
        save_every: float = 120.0,
        progress: Callable[[TrainingRun, float], None] | None = None,
    ) -> None:
        """Take all steps that are left, keeping the state every so many seconds.

        Args:
            text: What windows are drawn from.
            validation: What is scored now and then, in windows of each length of the plan.
            save_every: Seconds between two states that are kept.
            progress: Called after each step with the bits a byte of its windows.
        """
        saved = time.monotonic()
        while not self.is_done:
            bits = self.learn(text)
            if self.step * self.plan.evaluations // self.plan.num_steps > len(self.history):
                scores = {str(length): round(self.score(validation, length), 4) for length, _ in self.plan.lengths}
                self.history.append({"tokens": self.tokens, "minutes": round(self.seconds / 60, 2), "bits": scores})
            if progress is not None:
                progress(self, bits)
            if time.monotonic() - saved > save_every or self.is_done:
                self.save()
                saved = time.monotonic()


def hash_text(text: np.ndarray) -> str:
    """Return the sha256 of a text."""
    return hashlib.sha256(text.tobytes()).hexdigest()
