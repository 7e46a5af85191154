"""Figures of sticks in random poses, drawn as images, with the 17 keypoints of COCO where they really are.

The limbs of the left and of the right side, the head and the trunk have colours of their own, which vary; behind them
are sticks and noise. Nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

NAMES = (
    *("nose", "left eye", "right eye", "left ear", "right ear", "left shoulder", "right shoulder", "left elbow"),
    *("right elbow", "left wrist", "right wrist", "left hip", "right hip", "left knee", "right knee"),
    *("left ankle", "right ankle"),
)
WIDTH, HEIGHT = 96, 128
MARGIN = 6  # pixels between a figure and the edge, at least
# Sticks between keypoints, with the base of their colour: left is reddish, right is bluish, the trunk greenish.
_LEFT, _RIGHT, _TRUNK, _HEAD = (0.9, 0.3, 0.2), (0.2, 0.4, 0.9), (0.3, 0.8, 0.3), (0.9, 0.8, 0.4)
_STICKS = (
    *((5, 7, _LEFT), (7, 9, _LEFT), (11, 13, _LEFT), (13, 15, _LEFT), (0, 1, _LEFT), (1, 3, _LEFT)),
    *((6, 8, _RIGHT), (8, 10, _RIGHT), (12, 14, _RIGHT), (14, 16, _RIGHT), (0, 2, _RIGHT), (2, 4, _RIGHT)),
    *((5, 6, _TRUNK), (11, 12, _TRUNK), (5, 11, _TRUNK), (6, 12, _TRUNK), (3, 5, _HEAD), (4, 6, _HEAD)),
)
_NUM_CLUTTER = 4


@dataclass(frozen=True)
class Figures:
    """Images ``(b, 3, height, width)``, float32, and keypoints ``(b, 17, 2)``, x and y in pixels."""

    images: Float[Tensor, "b 3 h w"]
    keypoints: Float[Tensor, "b 17 2"]


def draw_figures(count: int, random: np.random.Generator) -> Figures:
    """Draw figures in random poses."""
    keypoints = torch.from_numpy(np.stack([_pose(random) for _ in range(count)]).astype(np.float32))
    images = torch.from_numpy(random.normal(0, 0.15, (count, 3, HEIGHT, WIDTH)).astype(np.float32))
    images += torch.from_numpy(random.uniform(-0.3, 0.3, (count, 3, 1, 1)).astype(np.float32))
    ends = random.uniform((0, 0), (WIDTH, HEIGHT), (count, _NUM_CLUTTER, 2, 2)).astype(np.float32)
    for index in range(_NUM_CLUTTER):
        color = random.uniform(-0.2, 0.6, (count, 3))
        _draw_sticks(images, torch.from_numpy(ends[:, index]), color, random.uniform(0.5, 1.5, count))
    thickness = random.uniform(1.0, 2.2, count)
    for first, second, base in _STICKS:
        color = np.array(base) * random.uniform(0.7, 1.3, (count, 3)) + random.normal(0, 0.05, (count, 3))
        _draw_sticks(images, keypoints[:, [first, second]], color, thickness)
    return Figures(images, keypoints)


def _draw_sticks(images: Tensor, ends: Tensor, color: np.ndarray, thickness: np.ndarray) -> None:
    """Draw one stick into each image, its edges a pixel soft."""
    start, along = ends[:, 0, :, None, None], (ends[:, 1] - ends[:, 0])[:, :, None, None]  # (b, 2, 1, 1)
    x = torch.arange(WIDTH) + 0.5 - start[:, 0]  # (b, 1, w)
    y = (torch.arange(HEIGHT) + 0.5)[:, None] - start[:, 1]  # (b, h, 1)
    unit = along / along.square().sum(1, keepdim=True).clamp(min=1e-6)
    share = (x * unit[:, 0] + y * unit[:, 1]).clamp_(0, 1)  # (b, h, w)
    distance = (x - share * along[:, 0]).square_().add_((y - share * along[:, 1]).square_()).sqrt_()
    radius = torch.from_numpy(thickness.astype(np.float32))[:, None, None]
    covered = distance.sub_(radius).mul_(-2).sigmoid_()[:, None]
    images.lerp_(torch.from_numpy(color.astype(np.float32))[:, :, None, None].expand_as(images), covered)


def _pose(random: np.random.Generator) -> np.ndarray:
    """Return keypoints of a random pose that fills a random part of the image."""

    def step(length: float, angle: float) -> np.ndarray:
        return length * np.array((np.sin(angle), np.cos(angle)))

    lean, side = random.normal(0, 0.25), random.uniform(0.4, 1.0)  # how far the trunk is turned from the front
    up, across = -step(1.0, lean), side * np.array((np.cos(lean), -np.sin(lean)))
    neck = up * random.uniform(0.9, 1.1)
    shoulders = [neck + 0.36 * across, neck - 0.36 * across]
    hips = [0.24 * across, -0.24 * across]
    nod, tilt = random.normal(0, 0.3), random.normal(0, 0.15)
    head = neck - step(random.uniform(0.4, 0.5), lean + nod)
    eyes = [head + 0.1 * sign * across - step(0.07, lean + tilt) for sign in (1, -1)]
    ears = [head + 0.2 * sign * across - step(0.03, lean - tilt) for sign in (1, -1)]
    limbs = []
    for joints, upper, lower, spread in ((shoulders, 0.55, 0.5, 1.0), (hips, 0.75, 0.7, 0.45)):
        middles, tips = [], []
        for sign, joint in zip((1, -1), joints, strict=True):
            angle = lean + sign * random.normal(0.2, spread)
            middles.append(joint + step(upper, angle))
            tips.append(middles[-1] + step(lower, angle + random.normal(0, 0.7)))
        limbs += [middles, tips]
    elbows, wrists, knees, ankles = limbs
    points = np.stack((head, *eyes, *ears, *shoulders, *elbows, *wrists, *hips, *knees, *ankles))
    points -= points.min(axis=0)
    room = np.array((WIDTH, HEIGHT)) - 2 * MARGIN
    points *= (room / points.max(axis=0)).min() * random.uniform(0.6, 1.0)
    return np.asarray(points + MARGIN + random.uniform(0, 1, 2) * (room - points.max(axis=0)))
