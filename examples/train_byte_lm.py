"""Train a small language model on the bytes of Python's standard library: any system of the study, or any config.

    python examples/train_byte_lm.py --system flash --objective causal --tokens 8000000 --output /tmp/flash
    python examples/train_byte_lm.py --config CONFIG.json --objective masked --tokens 8000000 --output /tmp/masked

``causal`` predicts the next byte; ``masked`` restores bytes that were hidden behind a mask token. The output
folder is a checkpoint that ``flash-export`` reads, with the held-out text, how to evaluate it, and what was seen beside
it. It is written at every evaluation. The folder ``OUTPUT.run`` keeps the state: the same command goes on from there.
"""

from __future__ import annotations

import json
import platform
import shlex
import sys
import tempfile
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flash_export.errors import FlashExportError
from flash_export.models.registry import get_family
from flash_export.study.corpus import excerpt_heldout, join_split, read_sources
from flash_export.study.objective import EVALUATION_SEQ_LEN, MASK_TOKEN_ID, describe_heldout
from flash_export.study.systems import SYSTEMS, Size, build_config, count_parameters
from flash_export.study.training import TrainingPlan, TrainingRun, hash_text

if TYPE_CHECKING:
    from flash_export.models.base import ModelConfig, ReferenceModel

SCORED_LENGTHS = (512, EVALUATION_SEQ_LEN, 2048, 8192)


class Corpus:
    """The three texts."""

    def __init__(self, heldout_bytes: int) -> None:
        """Read them."""
        sources = read_sources()
        self.training = join_split(sources, "train")
        self.excerpt = excerpt_heldout(sources, heldout_bytes)
        self.heldout = np.frombuffer(self.excerpt.encode("utf-8"), dtype=np.uint8)
        self.validation = join_split(sources, "validation")[: max(heldout_bytes // 4, 16384)]


def write_checkpoint(run: TrainingRun, corpus: Corpus, output: Path, record: dict[str, Any]) -> None:
    """Replace the files of the output folder one by one; each is complete at any time."""
    output.mkdir(parents=True, exist_ok=True)
    rounded = round_to_half(run.model)
    longest = rounded.config.interface.max_len or len(corpus.heldout)
    lengths = [length for length in SCORED_LENGTHS if length <= min(longest, len(corpus.heldout))]
    scores = {str(length): round(run.score(corpus.heldout, length, rounded), 5) for length in lengths}
    with tempfile.TemporaryDirectory(dir=output) as scratch:
        folder = Path(scratch)
        rounded.save_pretrained(folder, dtype=torch.float16)
        (folder / "heldout.txt").write_bytes(corpus.excerpt.encode("utf-8"))
        (folder / "heldout.json").write_text(json.dumps(describe_heldout(run.plan.objective), indent=2) + "\n")
        seen = {"tokens_seen": run.tokens, "minutes": round(run.seconds / 60, 2), "heldout_bits_per_byte": scores}
        text = json.dumps({**record, **seen, "history": run.history}, indent=2)
        (folder / "training.json").write_text(text + "\n")
        for path in sorted(folder.iterdir()):
            path.replace(output / path.name)


def round_to_half(model: ReferenceModel) -> ReferenceModel:
    """Return a copy in fp32 whose parameters are those that the checkpoint will hold."""
    rounded = deepcopy(model).to("cpu").eval()
    for parameter in rounded.parameters():
        parameter.data = parameter.data.half().float()
    return rounded


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
@click.option("--seed", default=0, help="Seed of weights, windows and masks.")
@click.option("--dim", default=128, help="Width of a system.")
@click.option("--depth", default=5, help="Depth of a Transformer; gated attention units are twice as many.")
@click.option("--chunk-size", default=128, help="Chunk or reach of a system.")
@click.option("--max-positions", default=4096, help="Longest sequence of the systems that have one.")
@click.option("--evaluations", default=10, help="How often to measure, evenly over the run.")
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
    seed: int,
    evaluations: int,
    heldout_bytes: int,
    threads: int,
    device: str,
    **size: int,
) -> None:
    """Train a small language model on the sources of Python's standard library."""
    torch.set_num_threads(threads)
    shares = tuple((int(length), float(share)) for length, share in (one.split(":") for one in lengths.split(",")))
    try:
        plan = TrainingPlan(
            objective, tokens, batch_tokens, shares, learning_rate=learning_rate, seed=seed, evaluations=evaluations
        )
        causal = objective == "causal"
        vocab_size = 256 if causal else MASK_TOKEN_ID + 1
        model_config = choose_config(system, config, size, vocab_size=vocab_size, causal=causal)
        run = TrainingRun(model_config, plan, output.with_name(f"{output.name}.run"), device)
    except FlashExportError as error:
        raise click.UsageError(str(error)) from error
    corpus = Corpus(heldout_bytes)
    count = count_parameters(model_config)
    record = {
        "system": system if config is None else None,
        "config": model_config.to_dict(),
        "parameters": count.constant,
        "parameters_that_grow_with_length": count.growing,
        "plan": asdict(plan),
        "text": f"standard library of Python {platform.python_version()}",
        "training_sha256": hash_text(corpus.training),
        "heldout_sha256": hash_text(corpus.heldout),
        "device": device,
        "torch": torch.__version__,
        "command": shlex.join(["python", "examples/train_byte_lm.py", *sys.argv[1:]]),
    }
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        task = bar.add_task(objective, total=plan.num_steps, completed=run.step)
        evaluated = len(run.history)

        def show(run: TrainingRun, bits: float) -> None:
            nonlocal evaluated
            bar.update(task, completed=run.step, description=f"{objective} {run.step}: {bits:.3f} bits per byte")
            if len(run.history) > evaluated:
                evaluated = len(run.history)
                write_checkpoint(run, corpus, output, record)
                bar.console.print(f"{run.tokens:,} bytes, {run.seconds / 60:.1f} min: {run.history[-1]['bits']}")

        run.train(corpus.training, corpus.validation, progress=show)
    write_checkpoint(run, corpus, output, record)


if __name__ == "__main__":
    main()
