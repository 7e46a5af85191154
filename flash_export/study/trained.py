"""From a config to a trained checkpoint: what both the study and the training script do."""

from __future__ import annotations

import json
import platform
import tempfile
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flash_export.locks import lock_folder
from flash_export.study.objective import EVALUATION_SEQ_LEN, describe_heldout
from flash_export.study.systems import count_parameters
from flash_export.study.training import TrainingRun, hash_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from flash_export.models.base import ModelConfig, ReferenceModel
    from flash_export.study.corpus import Corpus
    from flash_export.study.training import TrainingPlan

TRAINING_FILE = "training.json"
SCORED_LENGTHS = (512, EVALUATION_SEQ_LEN, 2048, 8192)


def train_model(
    config: ModelConfig,
    plan: TrainingPlan,
    corpus: Corpus,
    output: Path,
    *,
    heldout_len: int = EVALUATION_SEQ_LEN,
    device: str = "cpu",
    facts: Mapping[str, Any] | None = None,
    progress: Callable[[TrainingRun, float], None] | None = None,
) -> dict[str, Any]:
    """Train a model, or go on with it, and write it as a checkpoint at every evaluation.

    Args:
        config: The model.
        plan: How it is trained.
        corpus: The texts.
        output: Folder of the checkpoint; ``OUTPUT.run`` beside it keeps the state.
        heldout_len: Length of the windows that the checkpoint's held-out text is to be read in.
        device: Where to train.
        facts: What ``training.json`` is to say beside.
        progress: Called after each step with the bits a byte of its windows.

    Returns:
        What ``training.json`` says.

    Raises:
        BundleError: Another process trains in the same folder.
    """
    run = TrainingRun(config, plan, output.with_name(f"{output.name}.run"), device)
    count = count_parameters(config)
    record = {
        "config": config.to_dict(),
        "parameters": count.constant,
        "parameters_that_grow_with_length": count.growing,
        "plan": asdict(plan),
        "training_sha256": hash_text(corpus.training),
        "heldout_sha256": hash_text(corpus.heldout),
        "device": device,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **(facts or {}),
    }
    written, evaluated = {}, -1

    def show(run: TrainingRun, bits: float) -> None:
        nonlocal written, evaluated
        if len(run.history) > evaluated >= 0:
            written = write_checkpoint(run, corpus, output, record, heldout_len)
        evaluated = len(run.history)
        if progress is not None:
            progress(run, bits)

    with lock_folder(run.folder, timeout_s=0):
        run.train(corpus.training, corpus.validation, progress=show)
        return written or write_checkpoint(run, corpus, output, record, heldout_len)


def write_checkpoint(
    run: TrainingRun, corpus: Corpus, output: Path, record: Mapping[str, Any], heldout_len: int
) -> dict[str, Any]:
    """Replace the files of a checkpoint folder one by one; each is complete at any time.

    Returns:
        What ``training.json`` says.
    """
    output.mkdir(parents=True, exist_ok=True)
    rounded = round_to_half(run.model)
    longest = min(rounded.config.interface.max_len or len(corpus.heldout), len(corpus.heldout))
    scores = {
        str(length): round(run.score(corpus.heldout, length, rounded), 5)
        for length in SCORED_LENGTHS
        if run.is_done and length <= longest
    }
    seen = {"tokens_seen": run.tokens, "minutes": round(run.seconds / 60, 2), "heldout_bits_per_byte": scores}
    told = {**record, **seen, "history": run.history}
    with tempfile.TemporaryDirectory(dir=output) as scratch:
        folder = Path(scratch)
        rounded.save_pretrained(folder, dtype=torch.float16)
        (folder / "heldout.txt").write_bytes(corpus.excerpt.encode("utf-8"))
        (folder / "heldout.json").write_text(
            json.dumps(describe_heldout(run.plan.objective, heldout_len), indent=2) + "\n"
        )
        (folder / TRAINING_FILE).write_text(json.dumps(told, indent=2) + "\n")
        for path in sorted(folder.iterdir()):
            path.replace(output / path.name)
    return told


def round_to_half(model: ReferenceModel) -> ReferenceModel:
    """Return a copy in fp32 whose parameters are those that the checkpoint will hold."""
    rounded = deepcopy(model).to("cpu").eval()
    for parameter in rounded.parameters():
        parameter.data = parameter.data.half().float()
    return rounded
