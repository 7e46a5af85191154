"""Train a small FLASH model on the bytes of Python's standard library.

    python examples/train_byte_lm.py --objective causal --output /tmp/byte-causal --minutes 45

``causal`` predicts the next byte; ``masked`` restores bytes that were hidden behind a mask token. The output
folder is a checkpoint that ``flash-export`` reads, with the held-out text and how to evaluate it beside it.
It is rewritten whenever the model got better, so an interrupted run keeps its best.
"""

from __future__ import annotations

import json
import math
import platform
import tempfile
import time
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import torch
from byte_corpus import excerpt_heldout, join_split, read_sources
from byte_objective import EVALUATION_SEQ_LEN, build_example, compute_loss, describe_heldout, measure_bits_per_byte
from byte_training import (
    MAX_GRAD_NORM,
    TrainOptions,
    build_model,
    build_optimizer,
    compute_lr_scale,
    describe_optimizer,
    draw_windows,
)
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from flash_export.models.flash import FlashModel


class BestKeeper:
    """Measures the model now and then, and keeps the best one in the output folder."""

    def __init__(self, options: TrainOptions) -> None:
        """Read the texts of a run with these options."""
        sources = read_sources()
        self.options = options
        self.training = join_split(sources, "train")
        self.num_training_files = sum(source.split == "train" for source in sources)
        self.heldout = excerpt_heldout(sources, options.heldout_bytes)
        num_validation_bytes = max(options.heldout_bytes // 4, EVALUATION_SEQ_LEN)
        self.validation = join_split(sources, "validation")[:num_validation_bytes]
        self.best = math.inf
        self.history: list[dict[str, float]] = []

    def is_due(self, progress: float) -> bool:
        """Return whether the next measurement belongs at or before ``progress`` in [0, 1]."""
        return progress >= len(self.history) / self.options.evaluations

    def measure(self, model: FlashModel, step: int, minutes: float) -> float:
        """Return the bits per byte of the validation text, and write the checkpoint if they are the fewest so far."""
        rounded = round_to_half(model)
        bits = measure_bits_per_byte(rounded, self.validation, self.options.objective)
        self.history.append({"step": step, "minutes": round(minutes, 2), "validation_bits_per_byte": round(bits, 4)})
        if bits < self.best:
            self.best = bits
            write_checkpoint(rounded, self.heldout, self.build_record(rounded, step, minutes), self.options)
        return bits

    def build_record(self, rounded: FlashModel, step: int, minutes: float) -> dict[str, Any]:
        """Return the content of ``training.json``."""
        heldout = np.frombuffer(self.heldout.encode("utf-8"), dtype=np.uint8)
        return {
            "objective": self.options.objective,
            "heldout_bits_per_byte": round(measure_bits_per_byte(rounded, heldout, self.options.objective), 5),
            "validation_bits_per_byte": round(self.best, 5),
            "parameters": rounded.count_parameters(),
            "text": f"standard library of Python {platform.python_version()}",
            "training_files": self.num_training_files,
            "training_bytes": len(self.training),
            "heldout_bytes": len(heldout),
            "steps": step,
            "tokens_seen": step * self.options.batch_tokens,
            "wall_minutes": round(minutes, 2),
            "optimizer": describe_optimizer(self.options),
            "precision": "bf16 autocast" if self.options.bf16 else "fp32",
            "torch": torch.__version__,
            "command": self.options.command,
            "history": self.history,
        }


def round_to_half(model: FlashModel) -> FlashModel:
    """Return a copy in fp32 whose parameters are those that the checkpoint will hold."""
    rounded = deepcopy(model).eval()
    for parameter in rounded.parameters():
        parameter.data = parameter.data.half().float()
    return rounded


def write_checkpoint(model: FlashModel, heldout: str, record: dict[str, Any], options: TrainOptions) -> None:
    """Replace the files of the output folder one by one; each is complete at any time."""
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.output) as scratch:
        folder = Path(scratch)
        model.save_pretrained(folder, dtype=torch.float16)
        (folder / "heldout.txt").write_bytes(heldout.encode("utf-8"))
        (folder / "heldout.json").write_text(json.dumps(describe_heldout(options.objective), indent=2) + "\n")
        (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")
        for path in sorted(folder.iterdir()):
            path.replace(options.output / path.name)


def train(options: TrainOptions) -> None:
    """Train a model, keeping the one with the best validation score in ``options.output``."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    generator = np.random.default_rng(options.seed)
    keeper = BestKeeper(options)
    model = build_model(options.model_config)
    optimizer = build_optimizer(model, options)

    step, progress, start = 0, 0.0, time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task(options.objective, total=1.0)
        while True:
            if keeper.is_due(progress):
                minutes = (time.monotonic() - start) / 60
                bits = keeper.measure(model, step, minutes)
                bar.console.print(f"step {step}, {minutes:.2f} min: {bits:.4f} bits per byte of validation text")
            if progress >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate * compute_lr_scale(progress)
            windows = draw_windows(keeper.training, progress, options.batch_tokens, generator)
            inputs, targets = build_example(windows, options.objective, generator)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.bf16):
                logits = model(inputs)
            loss = compute_loss(logits, targets)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM, error_if_nonfinite=True)
            optimizer.step()
            step += 1
            progress = options.compute_progress(step, (time.monotonic() - start) / 60)
            bits = loss.item() / math.log(2)
            bar.update(task, completed=progress, description=f"{options.objective} {step}: {bits:.3f} bits per byte")


@click.command(context_settings={"show_default": True})
@click.option("--objective", type=click.Choice(["causal", "masked"]), required=True, help="What the model learns.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), required=True, help="Checkpoint folder.")
@click.option("--steps", type=click.IntRange(min=1), help="End after this many steps.")
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), help="End after this much time.")
@click.option("--threads", default=1, help="CPU threads.")
@click.option("--seed", default=0, help="Seed of weights, windows and masks.")
@click.option("--dim", default=192, help="Model width.")
@click.option("--depth", default=6, help="Number of layers.")
@click.option("--hidden-dim", default=384, help="Width of values and gates.")
@click.option("--chunk-size", default=128, help="Tokens a chunk.")
@click.option("--qk-dim", default=64, help="Width of queries and keys.")
@click.option("--batch-tokens", default=2048, help="Bytes a step.")
@click.option("--learning-rate", default=2.5e-3, help="Peak of the schedule.")
@click.option("--weight-decay", default=0.05, help="Of the linear layers' matrices.")
@click.option("--evaluations", default=12, help="How often to measure, evenly over the run.")
@click.option("--heldout-bytes", default=65 * 1024, help="Size of the held-out text.")
@click.option("--bf16/--no-bf16", default=True, help="Multiply matrices in bfloat16; faster on CPUs with AVX512-BF16.")
def main(**options: Any) -> None:
    """Train a small FLASH model on the sources of Python's standard library."""
    train(TrainOptions(**options))


if __name__ == "__main__":
    main()
