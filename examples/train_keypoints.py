"""Train a small RTMPose head, with a backbone for it, to find the joints of drawn figures.

    python examples/train_keypoints.py --output /tmp/stick-figures --minutes 30

The output folder is a checkpoint of the head that ``flash-export`` reads. Its held-out data are what the backbone makes
of figures that were not trained on, and where their joints are; the backbone itself stays in ``OUTPUT.run``, where an
interrupted run is taken up again. The loss is that of SimCC heads in mmpose: the divergence from Gaussians over bins.
"""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import torch
from keypoint_figures import HEIGHT, NAMES, WIDTH, draw_figures
from torch import nn
from torch.nn import functional as F
from training_run import Run

from flash_export.models.rtmpose_gau import RtmposeGauConfig, RtmposeGauModel, SimccHead

if TYPE_CHECKING:
    from keypoint_figures import Figures
    from torch import Tensor

STRIDE, CHANNELS, SIGMA = 16, 64, 3.0  # SIGMA in bins
CONFIG = RtmposeGauConfig(
    num_keypoints=len(NAMES),
    dim=96,
    hidden_dim=192,
    out_dim=96,
    qk_dim=64,
    head=SimccHead(
        in_channels=CHANNELS,
        map_width=WIDTH // STRIDE,
        map_height=HEIGHT // STRIDE,
        kernel_size=5,
        image_width=WIDTH,
        image_height=HEIGHT,
    ),
)
NUM_VALIDATED, NUM_HELDOUT = 256, 96


def make_backbone() -> nn.Module:
    """Return convolutions that take the image down to a sixteenth of its width and height."""
    layers: list[nn.Module] = []
    widths = ((3, 24, 7, 4), (24, 32, 3, 1), (32, 48, 3, 2), (48, 48, 3, 1), (48, 64, 3, 2), (64, CHANNELS, 3, 1))
    for before, after, kernel_size, stride in widths:
        convolution = nn.Conv2d(before, after, kernel_size, stride, kernel_size // 2, bias=False)
        layers += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


def compute_loss(scores: tuple[Tensor, Tensor], keypoints: Tensor) -> Tensor:
    """Return the mean cross-entropy with Gaussians around the true bins, along both axes."""
    total = torch.zeros(())
    for axis, logits in enumerate(scores):
        head = CONFIG.head
        assert head is not None
        bins = torch.arange(logits.shape[-1])
        target = torch.exp(-((bins - keypoints[..., axis, None] * head.bins_per_pixel) ** 2) / (2 * SIGMA**2))
        target = target / target.sum(-1, keepdim=True)
        total = total - (target * F.log_softmax(logits, dim=-1)).sum(-1).mean()
    return total


@torch.inference_mode()
def measure_error(head: RtmposeGauModel, features: Tensor, keypoints: Tensor) -> float:
    """Return the mean distance of the decoded keypoints from the true ones, in pixels."""
    assert CONFIG.head is not None
    scores = head(features)
    found = torch.stack([one.argmax(-1) / CONFIG.head.bins_per_pixel for one in scores], dim=-1)
    return float((found - keypoints).norm(dim=-1).mean())


@torch.inference_mode()
def see(backbone: nn.Module, figures: Figures) -> Tensor:
    """Return the features of images, rounded to half precision, as they are stored."""
    backbone.eval()
    features = backbone(figures.images).half().float()
    backbone.train()
    return features


def write_checkpoint(folder: Path, head: RtmposeGauModel, features: Tensor, keypoints: Tensor, facts: Any) -> None:
    """Write the head in half precision with the held-out figures and how it was trained."""
    head.save_pretrained(folder, dtype=torch.float16)
    np.savez_compressed(folder / "heldout.npz", features=features.numpy(), target=keypoints.numpy())
    settings = {"objective": "none", "tokenizer": "arrays", "seq_len": CONFIG.num_keypoints}
    (folder / "heldout.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "training.json").write_text(json.dumps(facts, indent=2) + "\n")


@click.command()
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), required=True, help="Checkpoint folder.")
@click.option("--minutes", type=float, default=30.0, show_default=True, help="CPU time of the run in all.")
@click.option("--threads", type=int, default=1, show_default=True)
@click.option("--batch", type=int, default=32, show_default=True, help="Figures a step.")
@click.option("--learning-rate", type=float, default=2e-3, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--save-every", type=float, default=120.0, show_default=True, help="Seconds between evaluations.")
def main(
    output: Path, minutes: float, threads: int, batch: int, learning_rate: float, seed: int, save_every: float
) -> None:
    """Train, and keep the best head."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    head, backbone = RtmposeGauModel(CONFIG), make_backbone()
    run = Run(output, {"head": head, "backbone": backbone}, learning_rate, seed)
    validation = draw_figures(NUM_VALIDATED, np.random.default_rng([seed, 0, 1]))
    heldout = draw_figures(NUM_HELDOUT, np.random.default_rng([seed, 0, 2]))
    begun, losses, last_saved = time.process_time() - run.seconds, [], time.monotonic()
    while run.seconds < 60 * minutes:
        figures = draw_figures(batch, run.random)
        loss = compute_loss(head(backbone(figures.images)), figures.keypoints)
        run.learn(loss, run.seconds / (60 * minutes))
        losses.append(float(loss.detach()))
        run.seconds = time.process_time() - begun
        if time.monotonic() - last_saved < save_every and run.seconds < 60 * minutes:
            continue
        error = measure_error(head, see(backbone, validation), validation.keypoints)
        entry = {
            "step": run.step,
            "minutes": round(run.seconds / 60, 1),
            "training_loss": round(float(np.mean(losses)), 3),
            "validation_pixels": round(error, 3),
        }
        run.history.append(entry)
        click.echo(json.dumps(entry))
        if -error > run.best:
            run.best = -error
            features, stored = see(backbone, heldout), copy.deepcopy(head).half().float()
            facts = {
                "task": f"the joints of drawn figures in images of {WIDTH} by {HEIGHT} pixels",
                "heldout_pixels": round(measure_error(stored, features, heldout.keypoints), 3),
                "parameters": head.count_parameters(),
                "batch": batch,
                "learning_rate": learning_rate,
                "seed": seed,
                **entry,
                "history": run.history,
            }
            write_checkpoint(output, head, features, heldout.keypoints, facts)
        run.save()
        losses, last_saved = [], time.monotonic()


if __name__ == "__main__":
    main()
