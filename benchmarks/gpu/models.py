"""The models: FLASH and a Transformer of the same size in PyTorch, and the bundle that graphs and engines are from.

Weights are random, the same at every call. Axes: b batch, n sequence, h head, k width of a head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch.nn import functional as F

from flash_export import Bundle, ExportOptions, export_onnx
from flash_export.models.flash import FlashModel
from flash_export.runtime.eager import DTYPES
from harness.models import PeerConfig, count_parameters
from harness.transformer import build_transformer

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Float, Int
    from torch import Tensor

    from gpu.device import Device
    from gpu.sizes import Sizes
    from harness.transformer import Transformer, TransformerLayer


def build_flash(sizes: Sizes) -> FlashModel:
    """Build the FLASH model, in fp32 on the CPU."""
    torch.manual_seed(0)
    return FlashModel(sizes.config).eval().requires_grad_(requires_grad=False)


def place_flash(sizes: Sizes, precision: str, device: Device) -> FlashModel:
    """Return the FLASH model on the device; angles stay in fp32, as in the reference."""
    model = build_flash(sizes)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(DTYPES[precision])
    return model.to(device.kind)


def place_transformer(sizes: Sizes, precision: str, device: Device) -> Transformer:
    """Return a Transformer with as many parameters on the device."""
    config = sizes.config
    peer = PeerConfig(config.dim, config.vocab_size, config.depth, config.chunk_size, config.qk_dim, causal=True)
    model = build_transformer(peer, parameters=count_parameters(build_flash(sizes)), heads=sizes.heads)
    return model.to(device.kind, DTYPES[precision])


def make_ids(sizes: Sizes, seq_len: int, device: Device) -> Int[Tensor, "1 n"]:
    """Return one random text, the same at every call."""
    generator = torch.Generator().manual_seed(seq_len)
    return torch.randint(sizes.config.vocab_size, (1, seq_len), generator=generator).to(device.kind)


def export_bundle(sizes: Sizes, precision: str, folder: Path) -> Bundle:
    """Export all graphs, unless that was done before; half precision keeps in fp32 what always is."""
    target = folder / f"bundle-{precision}"
    if target.is_dir():
        return Bundle.open(target)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint"
    if not checkpoint.is_dir():
        build_flash(sizes).save_pretrained(checkpoint)
    options = ExportOptions(max_seq_len=max(sizes.seq_lens), precision=precision)
    return export_onnx(checkpoint, target, options=options)


class TransformerSteps:
    """Steps of a Transformer whose keys and values are kept, after a context that they hold noise of."""

    def __init__(self, model: Transformer, context: int) -> None:
        """Allocate keys and values for the context and the token of the step."""
        self._model = model
        self._layers = cast("list[TransformerLayer]", list(model.layers))
        weight, heads = model.token_emb.weight, self._layers[0].heads
        shape = (1, heads, context + 1, weight.shape[1] // heads)
        self._caches = [
            tuple(torch.randn(shape, device=weight.device, dtype=weight.dtype) for _ in range(2)) for _ in self._layers
        ]
        self._position = torch.tensor([context], device=weight.device)

    def step(self, input_ids: Int[Tensor, "1 1"]) -> Float[Tensor, "1 1 vocab"]:
        """Feed one token, and return the logits of the next."""
        model = self._model
        x = model.token_emb(input_ids) + model.abs_pos_emb(self._position)
        for layer, (keys, values) in zip(self._layers, self._caches, strict=True):
            q, k, v = layer.project(x)
            keys.index_copy_(2, self._position, k)
            values.index_copy_(2, self._position, v)
            x = layer.mix(x, F.scaled_dot_product_attention(q, keys, values))
        return model.to_logits(x)
