"""Family ``mossformer2``: speech enhancement and separation, as clearvoice 0.1.2 has them.

Source of the maths: MossFormer2, arXiv 2312.11825; for the attention, a FLASH that weighs values and gates alike,
MossFormer, arXiv 2302.11824; clearvoice's ``MossFormer_MaskNet`` and ``MossFormer``. Enhancement takes features of
frames and returns a mask for each, or has around that what computes features of a waveform and applies the mask to it;
separation has an encoder and a decoder around it, from a waveform to one of each speaker.

Axes: b batch, n frame, i feature of a frame, k speaker, o width of a mask, t sample.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from flash_export.errors import ConfigError
from flash_export.interface import BATCH, SEQ, Features, Interface, TensorSpec, Waveform
from flash_export.layers.fsmn import DENSE_DEPTH, DILATED, PLAIN
from flash_export.layers.norm import GlobalNorm
from flash_export.layers.position import RotaryEmbedding, ScaledSinusoid
from flash_export.layers.spectrum import FULL_SCALE, Frames, compute_features, compute_spectrum, invert_spectrum
from flash_export.layers.tap import Tap
from flash_export.models.base import ConfigFields, ModelConfig, ReferenceModel
from flash_export.models.mossformer2_layer import Mossformer2Layer
from flash_export.probes import Quantity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Float
    from torch import Tensor

FINAL_NORM_EPS = 1e-6
QUANTITIES = {
    "features": Quantity("features of the waveform's frames", place="before"),
    "encoded": Quantity("encoded frames", place="before"),
    "embedding": Quantity("projected frames and their positions", place="before"),
    "shifted": Quantity("input after the token shift", is_normed=True),
    "value": Quantity("values"),
    "gate": Quantity("gates"),
    "quad_q": Quantity("quadratic queries"),
    "quad_k": Quantity("quadratic keys"),
    "lin_q": Quantity("linear queries"),
    "lin_k": Quantity("linear keys"),
    "weights": Quantity("quadratic attention weights", "pairs"),
    "quadratic_value": Quantity("quadratic branch of the values"),
    "kv_value": Quantity("linear sum of keys and values", "sums"),
    "linear_value": Quantity("linear branch of the values"),
    "quadratic_gate": Quantity("quadratic branch of the gates"),
    "kv_gate": Quantity("linear sum of keys and gates", "sums"),
    "linear_gate": Quantity("linear branch of the gates"),
    "gated": Quantity("gated attention"),
    "mixed": Quantity("output of the attention"),
    "reduced": Quantity("input of the memory"),
    "remembered": Quantity("output of the memory"),
    "out": Quantity("output of the block"),
    "trunk": Quantity("output of all blocks, normed, and their input", place="after"),
    "speakers": Quantity("features of the speakers", place="after"),
    "mask": Quantity("mask of the speech", place="after"),
}


@dataclass(frozen=True)
class WaveformFrames(ConfigFields):
    """How a waveform is cut into frames by the encoder, and put together again by the decoder.

    Attributes:
        kernel_size: Samples of a frame. The next one begins half of it later, rounded down.
        sample_rate: Samples a second that the model was trained on.
    """

    kernel_size: int
    sample_rate: int

    def __post_init__(self) -> None:
        """Check the fields, and that frames move on."""
        super().__post_init__()
        if self.kernel_size == 1:
            raise ConfigError("kernel_size=1 leaves no half to move on by; use 2 or more")

    @property
    def hop(self) -> int:
        """Samples from the start of a frame to that of the next."""
        return self.kernel_size // 2


@dataclass(frozen=True)
class SpectrumFrames(Frames, ConfigFields):
    """How a waveform is cut into frames whose features the model looks at, and whose spectra it masks."""

    def __post_init__(self) -> None:
        """Check the fields, and that every sample is in a frame."""
        super().__post_init__()
        if not 1 < self.length >= self.hop:
            raise ConfigError(
                f"length={self.length} with hop={self.hop} leaves samples out; use a length of 2 at least and no hop "
                "above it"
            )


# clearvoice 0.1.2's MossFormer2_SE_48K, whose weights do not tell them: 40 ms every 8 ms.
ENHANCEMENT_FRAMES = SpectrumFrames(sample_rate=48000, length=1920, hop=384, num_bands=60)


@dataclass(frozen=True)
class Mossformer2Config(ModelConfig):
    """Hyper-parameters of a MossFormer2 model.

    Attributes:
        in_channels: Features of a frame: those that are given, or those that the encoder makes of a waveform.
        dim: Model width d (even).
        depth: Number of blocks, each an attention and a memory.
        hidden_dim: Width e of values and of gates; twice ``dim`` in clearvoice.
        out_channels: Width of a mask; with an encoder that of its frames.
        qk_dim: Width s of the shared queries and keys.
        chunk_size: Frames a chunk, C; clearvoice calls it ``group_size``.
        conv_size: Frames that the convolution at the end of a feed-forward layer reads (odd).
        fsmn: What the memory is: ``plain``, one convolution, or ``dilated``, two dense ones and norms over time.
        fsmn_dim: Width f of the memory.
        memory_size: Frames that a convolution of the memory reads (odd).
        num_speakers: Masks that the model makes. Of enhancement only the first, the speech, is used.
        frames: Encoder and decoder of a model that separates waveforms; None: it has none.
        spectrum: What is around the masks of a model that enhances waveforms; None: it takes features of frames.
    """

    model_type: ClassVar[str] = "mossformer2"
    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {"fsmn": (PLAIN, DILATED)}
    PARTS: ClassVar[dict[str, type[ConfigFields]]] = {"frames": WaveformFrames, "spectrum": SpectrumFrames}

    in_channels: int
    dim: int
    depth: int
    hidden_dim: int
    out_channels: int
    qk_dim: int = 128
    chunk_size: int = 256
    conv_size: int = 17
    fsmn: str = PLAIN
    fsmn_dim: int = 256
    memory_size: int = 39
    num_speakers: int = 2
    frames: WaveformFrames | None = None
    spectrum: SpectrumFrames | None = None

    def __post_init__(self) -> None:
        """Check the fields, and that they fit together."""
        super().__post_init__()
        if self.dim % 2:
            raise ConfigError(f"dim={self.dim} is odd; sinusoid and token shift need halves, so use an even width")
        if self.qk_dim == 1:
            raise ConfigError("qk_dim=1 is too narrow; rotary embedding turns pairs, so use at least 2")
        for name in ("conv_size", "memory_size"):
            if getattr(self, name) % 2 == 0:
                raise ConfigError(f"{name}={getattr(self, name)} is even, which has no middle; use an odd one")
        if self.frames is not None and self.out_channels != self.in_channels:
            raise ConfigError(
                f"out_channels={self.out_channels}, but masks are multiplied by {self.in_channels} encoded channels; "
                f"use {self.in_channels}"
            )
        if self.spectrum is not None and (self.frames is not None or self.spectrum.sizes != self._mask_sizes):
            raise ConfigError(
                f"spectrum has {self.spectrum.sizes[0]} features and {self.spectrum.sizes[1]} frequencies, the model "
                f"{'an encoder of its own' if self.frames else f'{self.in_channels} and {self.out_channels}'}; "
                "leave it out"
            )

    @property
    def _mask_sizes(self) -> tuple[int, int]:
        return self.in_channels, self.out_channels

    @property
    def interface(self) -> Interface:
        """Features of frames to a mask for each, a waveform to the speech in it, or to one of each speaker.

        Norms and the linear branch go over the whole time, so that padding would change all of it. A norm of a single
        value is none: one over time alone, as a dilated memory has, needs two frames, and so does one feature.
        """
        shortest = 2 if self.fsmn == DILATED or self.in_channels == 1 else 1
        if self.spectrum is not None:
            content = Waveform(self.spectrum.sample_rate)
            return Interface(
                inputs=(TensorSpec("waveform", "float32", (BATCH, SEQ), content),),
                outputs=(TensorSpec("speech", "float32", (BATCH, SEQ), content),),
                task="signal",
                unit="samples",
                padding="refused",
                window=self.chunk_size,
                min_len=self.spectrum.length + (shortest - 1) * self.spectrum.hop,
                frame_len=self.spectrum.length,
                frame_hop=self.spectrum.hop,
            )
        if self.frames is None:
            return Interface(
                inputs=(TensorSpec("features", "float32", (BATCH, SEQ, self.in_channels), Features()),),
                outputs=(TensorSpec("mask", "float32", (BATCH, SEQ, self.out_channels), Features()),),
                task="signal",
                unit="frames",
                padding="refused",
                window=self.chunk_size,
                min_len=shortest,
            )
        content, frames = Waveform(self.frames.sample_rate), self.frames
        return Interface(
            inputs=(TensorSpec("waveform", "float32", (BATCH, SEQ), content),),
            outputs=(TensorSpec("sources", "float32", (BATCH, self.num_speakers, SEQ), content),),
            task="signal",
            unit="samples",
            padding="refused",
            window=self.chunk_size,
            min_len=frames.kernel_size + (shortest - 1) * frames.hop,
            frame_len=frames.kernel_size,
            frame_hop=frames.hop,
        )

    def take_waveform(self) -> Mossformer2Config:
        """Return the config of a model of the same weights that takes a waveform and returns the speech in it.

        Raises:
            ConfigError: The model takes a waveform already, or other features than those of 48 kHz speech.
        """
        if self.interface.unit == "samples":
            raise ConfigError("the model takes a waveform as it is; leave --waveform out")
        if ENHANCEMENT_FRAMES.sizes != self._mask_sizes:
            features, frequencies = ENHANCEMENT_FRAMES.sizes
            raise ConfigError(
                f"the model makes masks of {self.out_channels} frequencies of {self.in_channels} features; --waveform "
                f"is for {frequencies} of {features}, those of MossFormer2_SE_48K; leave it out"
            )
        return dataclasses.replace(self, spectrum=ENHANCEMENT_FRAMES)

    @property
    def num_blocks(self) -> int:
        """Number of blocks."""
        return self.depth

    @property
    def num_sources(self) -> int:
        """Masks that are used."""
        return 1 if self.frames is None else self.num_speakers

    @property
    def quantities(self) -> Mapping[str, Quantity]:
        """What is computed on the way; what stands around the masks only where the model has it."""
        absent = {"encoded"} if self.frames is None else set()
        absent |= {"features", "mask"} if self.spectrum is None else set()
        return {name: one for name, one in QUANTITIES.items() if name not in absent}

    @property
    def state_refusal(self) -> str | None:
        """Every frame depends on those after it."""
        return "MossFormer2 norms over and attends to the whole of a recording, so that every new frame changes all"

    def count_macs(self, seq_len: int) -> int:
        """Count projections and convolutions, the attention on the frames padded to whole chunks, and the masks."""
        num_frames = self.interface.count_frames(seq_len)
        padded_len = num_frames + -num_frames % self.chunk_size
        both = 2 * self.hidden_dim
        memory = self.memory_size * (1 if self.fsmn == PLAIN else sum(range(1, DENSE_DEPTH + 1)))
        projections = (self.dim + self.conv_size) * (both + self.qk_dim) + (self.hidden_dim + self.conv_size) * self.dim
        remembering = self.fsmn_dim * (2 * self.dim + 4 * self.fsmn_dim + 2 * self.conv_size + memory)
        block = num_frames * (projections + remembering + 2 * self.qk_dim * both)
        block += padded_len * self.chunk_size * (self.qk_dim + both)
        per_source = self.dim * (2 * self.dim + self.out_channels)
        around = self.dim * (self.in_channels + self.num_speakers * self.dim) + self.num_sources * per_source
        if self.frames is not None:
            around += self.frames.kernel_size * self.in_channels * (1 + self.num_speakers)
        if self.spectrum is not None:
            # The spectrum's real and imaginary part both ways, and the one that features are made of.
            waves = 4 * self.spectrum.num_frequencies + self.spectrum.padded_len
            around += self.spectrum.length * waves + self.spectrum.padded_len * self.spectrum.num_bands
        return self.depth * block + num_frames * around

    def estimate_bytes(self, batch: int, seq_len: int) -> int:
        """Count what is alive at the widest point of a block and of the head, and the outputs of three models."""
        num_frames = self.interface.count_frames(seq_len)
        padded_len = num_frames + -num_frames % self.chunk_size
        block = 16 * self.hidden_dim + 8 * self.qk_dim + 4 * self.dim + 3 * self.chunk_size
        head = self.num_speakers * (4 * self.dim + 4 * self.out_channels) + 2 * self.dim
        if self.spectrum is not None:
            head += 6 * self.spectrum.padded_len
        outputs = 0 if self.interface.unit == "frames" else 3 * self.num_sources * seq_len
        return 8 * batch * (padded_len * max(block, head) + outputs)


class Mossformer2Model(ReferenceModel):
    """From features of frames to the masks of speakers: what both models have."""

    def __init__(self, config: Mossformer2Config) -> None:
        """Create the model with random weights."""
        super().__init__()
        self.config: Mossformer2Config = config
        dim = config.dim
        self.norm = GlobalNorm(config.in_channels)
        self.project = nn.Linear(config.in_channels, dim, bias=False)
        self.abs_pos_emb = ScaledSinusoid(dim)
        self.rotary_pos_emb = RotaryEmbedding(config.qk_dim)
        self.layers = nn.ModuleList(Mossformer2Layer(config) for _ in range(config.depth))
        self.final_norms = nn.Sequential(nn.LayerNorm(dim, eps=FINAL_NORM_EPS), GlobalNorm(dim))
        self.prelu = nn.PReLU()
        self.to_speakers = nn.Linear(dim, config.num_speakers * dim)
        self.to_output = nn.Linear(dim, dim)
        self.to_gate = nn.Linear(dim, dim)
        self.to_mask = nn.Linear(dim, config.out_channels, bias=False)
        self.tap = Tap()

    def estimate_masks(self, features: Float[Tensor, "b n i"]) -> Float[Tensor, "b n k o"]:
        """Return the masks of those speakers that are used."""
        positions = torch.arange(features.shape[1], device=features.device)
        embedding = self.tap("embedding", self.project(self.norm(features)) + self.abs_pos_emb(positions))
        x = embedding
        for layer in self.layers:
            x = layer(x, rotary=self.rotary_pos_emb, positions=positions)
        trunk = self.tap("trunk", self.final_norms(x) + embedding)
        used = self.to_speakers(self.prelu(trunk))[:, :, : self.config.num_sources * self.config.dim]
        speakers = self.tap("speakers", used).unflatten(2, (self.config.num_sources, -1))  # (b, n, k, d)
        return F.relu(self.to_mask(torch.tanh(self.to_output(speakers)) * torch.sigmoid(self.to_gate(speakers))))


class EnhancementModel(Mossformer2Model):
    """The mask of the speech for features of frames."""

    def forward(self, features: Float[Tensor, "b n i"]) -> Float[Tensor, "b n o"]:
        """Return the mask of each frame."""
        return self.estimate_masks(features)[:, :, 0]


class SpeechModel(Mossformer2Model):
    """The speech in a waveform: features of its frames, masks of their spectra, and the way back."""

    def __init__(self, config: Mossformer2Config, frames: SpectrumFrames) -> None:
        """Create the model with random weights; it has no more of them than one that makes masks."""
        super().__init__(config)
        self.frames = frames

    def forward(self, waveform: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
        """Return the speech, zero where no frame reaches; PyTorch transforms in fp32 at least."""
        sound = waveform.to(torch.promote_types(waveform.dtype, torch.float32))
        features = self.tap("features", compute_features(sound * FULL_SCALE, self.frames).to(waveform.dtype))
        mask = self.tap("mask", self.estimate_masks(features)[:, :, 0]).to(sound.dtype)
        speech = invert_spectrum(compute_spectrum(sound, self.frames) * mask, self.frames, waveform.shape[1])
        return speech.to(waveform.dtype)


class SeparationModel(Mossformer2Model):
    """The waveforms of the speakers in one: encoder, masks and decoder."""

    def __init__(self, config: Mossformer2Config, frames: WaveformFrames) -> None:
        """Create the model with random weights."""
        super().__init__(config)
        self.encoder = nn.Conv1d(1, config.in_channels, frames.kernel_size, stride=frames.hop, bias=False)
        self.decoder = nn.ConvTranspose1d(config.in_channels, 1, frames.kernel_size, stride=frames.hop, bias=False)

    def forward(self, waveform: Float[Tensor, "b t"]) -> Float[Tensor, "b k t"]:
        """Return the waveform of each speaker, zero where no frame reaches."""
        encoded = self.tap("encoded", F.relu(self.encoder(waveform[:, None])).mT)  # (b, n, i)
        masked = encoded[:, :, None] * self.estimate_masks(encoded)  # (b, n, k, i)
        decoded = self.decoder(masked.permute(0, 2, 3, 1).flatten(0, 1))  # (b * k, 1, samples of the frames)
        sources = decoded.reshape(len(waveform), self.config.num_speakers, -1)
        return F.pad(sources, (0, waveform.shape[1] - sources.shape[2]))


def build_mossformer2(config: Mossformer2Config) -> Mossformer2Model:
    """Create the model of a config, with random weights."""
    if config.spectrum is not None:
        return SpeechModel(config, config.spectrum)
    return EnhancementModel(config) if config.frames is None else SeparationModel(config, config.frames)
