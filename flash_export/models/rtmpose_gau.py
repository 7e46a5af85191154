"""Family ``rtmpose_gau``: the gated attention unit of RTMPose, alone or in its SimCC head, as mmpose 1.3.2 has them.

Source of the maths: arXiv 2303.07399; mmpose's ``RTMCCBlock`` (self-attention) and ``RTMCCHead``. Submodules carry the
names that they have there below ``head.``, so that its state dicts load without translation.

Axes: b batch, k keypoint, d model width, s query/key width, e hidden width, m pixel of a feature map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from flash_export.errors import ConfigError
from flash_export.interface import BATCH, Bins, Features, Interface, TensorSpec
from flash_export.layers.activation import relu_squared
from flash_export.layers.norm import SCALE_NORM_EPS, ScaleNorm
from flash_export.layers.position import spread_bias
from flash_export.layers.tap import Tap
from flash_export.models.base import ConfigFields, ModelConfig, ReferenceModel
from flash_export.probes import Quantity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jaxtyping import Float
    from torch import Tensor

THETA = 10000
HEAD_QUANTITIES = {
    "maps": Quantity("feature maps of the keypoints", place="before"),
    "embedding": Quantity("vectors of the keypoints", place="before", is_normed=True),
}
BLOCK_QUANTITIES = {
    "normed": Quantity("input after the norm"),
    "gate": Quantity("gates"),
    "value": Quantity("values"),
    "q": Quantity("queries"),
    "k": Quantity("keys"),
    "weights": Quantity("attention weights", "pairs"),
    "mixed": Quantity("attended values"),
    "out": Quantity("output of the block"),
}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": nn.functional.silu, "relu": torch.relu}


@dataclass(frozen=True)
class SimccHead(ConfigFields):
    """What stands around the unit in a SimCC head: from the features of an image to scores along its two axes.

    Attributes:
        in_channels: Channels of the features that the backbone gives.
        map_width: Width of the features, in their own pixels.
        map_height: Height of the features.
        kernel_size: Of the convolution that makes one map a keypoint; odd, so that maps keep their size.
        image_width: Width of the image that the backbone takes, in pixels.
        image_height: Height of that image.
        bins_per_pixel: Scores a pixel of the image; mmpose calls it ``simcc_split_ratio``.
    """

    in_channels: int
    map_width: int
    map_height: int
    kernel_size: int
    image_width: int
    image_height: int
    bins_per_pixel: float = 2.0

    def __post_init__(self) -> None:
        """Check the fields, and that maps keep their size and axes have bins."""
        super().__post_init__()
        if self.kernel_size % 2 == 0:
            raise ConfigError(f"kernel_size={self.kernel_size} is even, which changes the size of maps; use an odd one")
        if min(self.num_bins) < 1:
            shortest = min(self.image_width, self.image_height)
            raise ConfigError(
                f"bins_per_pixel={self.bins_per_pixel} gives {shortest} pixels of the image no bin; "
                f"use 1 / {shortest} or more"
            )

    @property
    def num_bins(self) -> tuple[int, int]:
        """Number of bins along the width and the height of the image, rounded down as mmpose does."""
        return int(self.image_width * self.bins_per_pixel), int(self.image_height * self.bins_per_pixel)

    @property
    def map_size(self) -> int:
        """Pixels of a feature map."""
        return self.map_width * self.map_height


@dataclass(frozen=True)
class RtmposeGauConfig(ModelConfig):
    """Hyper-parameters of RTMPose's gated attention unit and, if it has one, of its head.

    Attributes:
        num_keypoints: Number of keypoints, K: the one length that such a model has.
        dim: Width d of what the unit takes; mmpose's ``hidden_dims`` or ``in_token_dims``.
        hidden_dim: Width e of values and gates: ``int(dim * expansion_factor)``.
        out_dim: Width of what the unit returns. Only if it is ``dim``, the scaled input is added.
        qk_dim: Width s of the shared queries and keys.
        act_fn: ``silu`` or ``relu``, after the projection.
        bias: Whether the two linear layers have one.
        rel_bias: Whether scores have a learned bias by distance; mmpose's ``use_rel_bias``.
        rotary: Whether queries and keys are turned by position; mmpose's ``pos_enc``.
        eps: Smallest root mean square that the norm divides by.
        head: The SimCC head around the unit; None: the unit alone.
    """

    model_type: ClassVar[str] = "rtmpose_gau"
    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {"act_fn": tuple(ACTIVATIONS)}
    PARTS: ClassVar[dict[str, type[ConfigFields]]] = {"head": SimccHead}

    num_keypoints: int
    dim: int
    hidden_dim: int
    out_dim: int
    qk_dim: int = 128
    act_fn: str = "silu"
    bias: bool = False
    rel_bias: bool = False
    rotary: bool = False
    eps: float = SCALE_NORM_EPS
    head: SimccHead | None = None

    def __post_init__(self) -> None:
        """Check the fields, and what mmpose itself cannot run."""
        super().__post_init__()
        if self.rotary and self.qk_dim % 2:
            raise ConfigError(f"qk_dim={self.qk_dim} is odd; rotary turns its two halves, so use an even width")
        if self.rel_bias and self.num_keypoints == 1:
            raise ConfigError("rel_bias=True with num_keypoints=1: mmpose cannot run that either; use rel_bias false")
        if self.eps <= 0:
            raise ConfigError(f"eps={self.eps} is not usable; use a number above 0, such as {SCALE_NORM_EPS}")

    @property
    def interface(self) -> Interface:
        """A fixed number of keypoints: features of an image to scores along its axes, or vectors to vectors."""
        keypoints, head = self.num_keypoints, self.head
        if head is None:
            inputs, outputs = (BATCH, keypoints, self.dim), (BATCH, keypoints, self.out_dim)
            return Interface(
                inputs=(TensorSpec("features", "float32", inputs, Features()),),
                outputs=(TensorSpec("hidden", "float32", outputs, Features()),),
                task="signal",
                unit="keypoints",
                padding="refused",
                min_len=keypoints,
                fixed_len=keypoints,
            )
        shape, bins = (BATCH, head.in_channels, head.map_height, head.map_width), Bins(head.bins_per_pixel)
        return Interface(
            inputs=(TensorSpec("features", "float32", shape, Features()),),
            outputs=tuple(
                TensorSpec(f"simcc_{axis}", "float32", (BATCH, keypoints, size), bins)
                for axis, size in zip("xy", head.num_bins, strict=True)
            ),
            task="keypoints",
            unit="keypoints",
            padding="refused",
            min_len=keypoints,
            fixed_len=keypoints,
        )

    @property
    def num_blocks(self) -> int:
        """One gated attention unit."""
        return 1

    @property
    def quantities(self) -> Mapping[str, Quantity]:
        """What is computed on the way."""
        return BLOCK_QUANTITIES if self.head is None else HEAD_QUANTITIES | BLOCK_QUANTITIES

    @property
    def state_refusal(self) -> str | None:
        """There is nothing to carry."""
        return "it takes all keypoints of an image at once, so that there is no past"

    def count_macs(self, seq_len: int) -> int:
        """Count the projections, the attention between all keypoints, and the convolution and products of the head."""
        per_keypoint = self.dim * (2 * self.hidden_dim + self.qk_dim) + self.hidden_dim * self.out_dim
        per_keypoint += seq_len * (self.qk_dim + self.hidden_dim)
        if (head := self.head) is not None:
            per_keypoint += head.map_size * (head.in_channels * head.kernel_size**2 + self.dim)
            per_keypoint += self.out_dim * sum(head.num_bins)
        return seq_len * per_keypoint

    def estimate_bytes(self, batch: int, seq_len: int) -> int:
        """Count the projections twice, the attention, and what a convolution in float64 unfolds its input to."""
        per_row = seq_len * (4 * self.hidden_dim + 4 * self.qk_dim + 2 * (self.dim + self.out_dim) + 3 * seq_len)
        if (head := self.head) is not None:
            per_row += head.map_size * (head.in_channels * (1 + head.kernel_size**2) + 3 * seq_len)
            per_row += 3 * seq_len * sum(head.num_bins)
        return 8 * batch * per_row


def compute_turns(num_keypoints: int, qk_dim: int) -> tuple[Float[Tensor, "k s/2"], Float[Tensor, "k s/2"]]:
    """Return cosine and sine of the angles by which queries and keys are turned, in fp32.

    The frequencies *rise* from 1 to nearly ``THETA`` radians a position: mmpose negates the exponent twice
    (``rope`` in ``rtmcc_block.py``). Models were trained with angles of that size rounded to fp32, so that what was
    rounded off is part of the function, in float64 too.
    """
    half = qk_dim // 2
    frequencies = THETA ** (torch.arange(half) / float(half))
    angles = torch.arange(num_keypoints)[:, None] * frequencies
    return angles.cos(), angles.sin()


def turn_halves(x: Float[Tensor, "b k s"]) -> Float[Tensor, "b k s"]:
    """Turn channel i of the first half and channel i of the second half by the keypoint's i-th angle."""
    cos, sin = (table.to(x) for table in compute_turns(x.shape[1], x.shape[2]))
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class Scale(nn.Module):
    """One learned factor a channel."""

    def __init__(self, dim: int) -> None:
        """Create factors of 1."""
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "b k d"]) -> Float[Tensor, "b k d"]:
        """Multiply the channels."""
        return x * self.scale


class RtmccBlock(nn.Module):
    """One pre-norm gated attention unit between the keypoints of an image."""

    def __init__(self, config: RtmposeGauConfig) -> None:
        """Create the unit of a model with this config."""
        super().__init__()
        self.config = config
        self.ln = ScaleNorm(config.dim, config.eps)
        self.uv = nn.Linear(config.dim, 2 * config.hidden_dim + config.qk_dim, bias=config.bias)
        self.gamma = nn.Parameter(torch.rand(2, config.qk_dim))
        self.beta = nn.Parameter(torch.rand(2, config.qk_dim))
        self.w = nn.Parameter(torch.rand(2 * config.num_keypoints - 1)) if config.rel_bias else None
        self.o = nn.Linear(config.hidden_dim, config.out_dim, bias=config.bias)
        self.res_scale = Scale(config.dim) if config.out_dim == config.dim else None
        self.tap = Tap()

    def forward(self, x: Float[Tensor, "b k d"]) -> Float[Tensor, "b k out"]:
        """Mix the keypoints: ``o(gate * relu²((q k^T + bias) / sqrt(s)) value) + res_scale * x``."""
        tap, config = self.tap, self.config
        projected = ACTIVATIONS[config.act_fn](self.uv(tap("normed", self.ln(x))))
        gate, value, z = projected.split([config.hidden_dim, config.hidden_dim, config.qk_dim], dim=-1)
        gate, value = tap("gate", gate), tap("value", value)
        q, k = (z * gamma + beta for gamma, beta in zip(self.gamma, self.beta, strict=True))
        if config.rotary:
            q, k = turn_halves(q), turn_halves(k)
        scores = tap("q", q) @ tap("k", k).mT
        if self.w is not None:
            scores = scores + spread_bias(self.w)
        weights = tap("weights", relu_squared(scores / math.sqrt(config.qk_dim)))
        mixed = tap("mixed", weights @ value)
        update = self.o(gate * mixed)
        return tap("out", update if self.res_scale is None else self.res_scale(x) + update)


class RtmposeGauModel(ReferenceModel):
    """The unit, alone or between the convolution and the two classifiers of a SimCC head."""

    BLOCK_NAMES: ClassVar[dict[str, str]] = {"gau": "layers.0"}

    def __init__(self, config: RtmposeGauConfig) -> None:
        """Create the model with random weights."""
        super().__init__()
        self.config: RtmposeGauConfig = config
        self.gau = RtmccBlock(config)
        self.tap = Tap()
        if (head := config.head) is not None:
            kernel_size = head.kernel_size
            self.final_layer = nn.Conv2d(head.in_channels, config.num_keypoints, kernel_size, padding=kernel_size // 2)
            self.mlp = nn.Sequential(ScaleNorm(head.map_size), nn.Linear(head.map_size, config.dim, bias=False))
            self.cls_x, self.cls_y = (nn.Linear(config.out_dim, size, bias=False) for size in head.num_bins)

    def forward(self, features: Float[Tensor, "b ..."]) -> Float[Tensor, "b k out"] | tuple[Tensor, Tensor]:
        """Return what the unit makes of vectors, or the scores along the two axes of an image.

        Args:
            features: ``(batch, keypoints, dim)`` for the unit alone, ``(batch, channels, height, width)`` for the head.
        """
        if self.config.head is None:
            return self.gau(features)
        maps = self.tap("maps", self.final_layer(features).flatten(2))  # (b, k, m)
        hidden = self.gau(self.tap("embedding", self.mlp(maps)))
        return self.cls_x(hidden), self.cls_y(hidden)
