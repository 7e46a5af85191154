"""Train a small language model on the bytes of Python's standard library: any system of the study, or any config.

    python examples/train_byte_lm.py --system flash --objective causal --tokens 8000000 --output /tmp/flash
    python examples/train_byte_lm.py --config CONFIG.json --objective masked --tokens 8000000 --output /tmp/masked

``causal`` predicts the next byte; ``masked`` restores bytes that were hidden behind a mask token. The output
folder is a checkpoint that ``flash-export`` reads, with the held-out text, how to evaluate it, and what was seen beside
it. It is written at every evaluation. The folder ``OUTPUT.run`` keeps the state: the same command goes on from there.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flash_export.errors import FlashExportError
from flash_export.models.registry import get_family
from flash_export.study.corpus import read_corpus
from flash_export.study.objective import VOCAB_SIZES
from flash_export.study.systems import SYSTEMS, Size, build_config
from flash_export.study.trained import train_model
from flash_export.study.training import TrainingPlan

if TYPE_CHECKING:
    from flash_export.models.base import ModelConfig
    from flash_export.study.training import TrainingRun


def choose_config(
    system: str, config: Path | None, size: dict[str, int], *, vocab_size: int, causal: bool
) -> ModelConfig:
    """Return the config of a system, or that of a file with the vocabulary and direction of the objective."""
    if config is None:
        return build_config(system, Size(**size), vocab_size=vocab_size, causal=causal)
    values = {**json.loads(config.read_text(encoding="utf-8")), "vocab_size": vocab_size, "causal": causal}
    return get_family(values.get("model_type")).config_class.from_dict(values)


@click.command(context_settings={"show_default": True})
@click.option("--system", type=click.Choice(list(SYSTEMS)), default="flash", help="What is trained.")
@click.option("--config", type=click.Path(path_type=Path, dir_okay=False), help="A config.json in place of a system.")
@click.option("--objective", type=click.Choice(["causal", "masked"]), required=True, help="What the model learns.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), required=True, help="Checkpoint folder.")
@click.option("--tokens", type=click.IntRange(min=1), default=8_000_000, help="Bytes to see.")
@click.option("--lengths", default="512:0.75,2048:0.25", help="Window lengths and their share of the bytes.")
@click.option("--batch-tokens", type=click.IntRange(min=1), default=2048, help="Bytes a step.")
@click.option("--learning-rate", default=2e-3, help="Peak of the schedule.")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", help="Arithmetic of the products.")
@click.option("--seed", default=0, help="Seed of weights, windows and masks.")
@click.option("--dim", default=128, help="Width of a system.")
@click.option("--depth", default=5, help="Depth of a Transformer; gated attention units are twice as many.")
@click.option("--chunk-size", default=128, help="Chunk or reach of a system.")
@click.option("--max-positions", default=4096, help="Longest sequence of the systems that have one.")
@click.option("--evaluations", default=10, help="How often to measure, evenly over the run.")
@click.option("--text", type=click.Path(path_type=Path, dir_okay=False), help="Train on this file instead.")
@click.option("--heldout-bytes", default=65 * 1024, help="Size of the held-out text.")
@click.option("--threads", default=1, help="CPU threads.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="Where to train.")
def main(
    *,
    system: str,
    config: Path | None,
    objective: Any,
    output: Path,
    tokens: int,
    lengths: str,
    batch_tokens: int,
    learning_rate: float,
    precision: Any,
    seed: int,
    evaluations: int,
    text: Path | None,
    heldout_bytes: int,
    threads: int,
    device: str,
    **size: int,
) -> None:
    """Train a small language model on the sources of Python's standard library."""
    torch.set_num_threads(threads)
    shares = tuple((int(length), float(share)) for length, share in (one.split(":") for one in lengths.split(",")))
    causal = objective == "causal"
    vocab_size = VOCAB_SIZES[objective]
    try:
        plan = TrainingPlan(
            objective,
            tokens,
            batch_tokens,
            shares,
            learning_rate=learning_rate,
            seed=seed,
            evaluations=evaluations,
            precision=precision,
        )
        model_config = choose_config(system, config, size, vocab_size=vocab_size, causal=causal)
        corpus = read_corpus(text, heldout_bytes)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns) as bar:
            task, evaluated = bar.add_task(objective, total=plan.num_steps), 0

            def show(run: TrainingRun, bits: float) -> None:
                nonlocal evaluated
                bar.update(task, completed=run.step, description=f"{objective} {run.step}: {bits:.3f} bits per byte")
                if len(run.history) > evaluated:
                    evaluated = len(run.history)
                    bar.console.print(f"{run.tokens:,} bytes, {run.seconds / 60:.1f} min: {run.history[-1]['bits']}")

            command = shlex.join(["python", "examples/train_byte_lm.py", *sys.argv[1:]])
            facts = {"system": system if config is None else None, "command": command}
            train_model(model_config, plan, corpus, output, device=device, facts=facts, progress=show)
    except FlashExportError as error:
        raise click.UsageError(str(error)) from error


if __name__ == "__main__":
    main()
