"""The Transformer of ``transformer.py`` with a cache of keys and values, one token a step.

The cache has a fixed capacity and is updated where it lies: a ScatterND whose input and output are bound to the same
buffer writes one row and copies nothing. Tried with it, on the CPU provider of onnxruntime 1.32: ``Attention`` with
``past_key`` and ``present_key``, and concatenation, both of which copy the cache at every step: at 1,024 and 16,384
tokens, attention takes 1.6 to 2 times as long. TensorScatter with ``nonpad_kv_seqlen`` (opset 24), and MatMul and
Softmax in place of ``Attention``, are as fast as what is here.

Axes: n capacity, d model, h head, k width of a head. The batch is 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnxruntime
import torch
from sessions import open_session
from torch import nn
from torch.nn import functional as F
from transformer import HEADS, OPSET, Transformer, TransformerLayer, check_attention

from flash_export.exporters.primitives import TRANSLATIONS, put_at
from flash_export.exporters.tracing import quiet_exporter

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

TRACED_CAPACITY = 40


class CachedTransformer(nn.Module):
    """``forward(input_ids, position, caches) -> logits, caches``; a layer has a cache of keys and one of values."""

    def __init__(self, model: Transformer) -> None:
        """Share the weights of a Transformer."""
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Int[Tensor, "1 1"], position: Int[Tensor, " 1"], caches: tuple[Float[Tensor, "h n k"], ...]
    ) -> tuple[Float[Tensor, "1 1 vocab"], tuple[Float[Tensor, "h n k"], ...]]:
        """Return the logits of the token at ``position``, and the caches with its keys and values."""
        x = self.model.token_emb(input_ids) + self.model.abs_pos_emb(position)
        row = torch.stack((torch.arange(HEADS), position.expand(HEADS)), dim=-1).unsqueeze(1)  # (h, 1, 2)
        is_past = (torch.arange(caches[0].shape[1]) <= position)[None, None, None]  # (1, 1, 1, n)
        new: list[Tensor] = []
        layers = cast("list[TransformerLayer]", self.model.layers)
        for layer, keys, values in zip(layers, caches[::2], caches[1::2], strict=True):
            q, k, v = _project(layer, x)  # (h, 1, k)
            keys, values = put_at(keys, row, k), put_at(values, row, v)
            x = _mix(layer, x, q, keys, values, is_past)
            new += (keys, values)
        return self.model.to_logits(x), tuple(new)


class CachedDecoder:
    """An exported :class:`CachedTransformer` and its caches, which hold noise until they are written."""

    def __init__(self, path: Path, capacity: int) -> None:
        """Open the graph and allocate caches.

        Args:
            path: The ONNX file.
            capacity: Longest text in tokens; every step attends to as many slots.
        """
        self._session = open_session(path)
        self._binding = self._session.io_binding()
        self._input_ids = self._bind_input("input_ids", np.zeros((1, 1), np.int64))
        self._position = self._bind_input("position", np.zeros(1, np.int64))
        random, self.cache_bytes = np.random.default_rng(0), 0
        logits, *caches = self._session.get_outputs()
        self._logits = onnxruntime.OrtValue.ortvalue_from_shape_and_type(logits.shape, np.float32)
        self._binding.bind_ortvalue_output(logits.name, self._logits)
        for output in caches:
            heads, _, width = output.shape
            noise = random.standard_normal((heads, capacity, width), np.float32)
            cache = self._bind_input(output.name.removeprefix("new_"), noise)
            self._binding.bind_ortvalue_output(output.name, cache)
            self.cache_bytes += noise.nbytes

    def step(self, token: int, position: int) -> Float[np.ndarray, " vocab"]:
        """Feed the token at a position and return a copy of the logits of the next."""
        self._input_ids.update_inplace(np.array([[token]]))
        self._position.update_inplace(np.array([position]))
        self._session.run_with_iobinding(self._binding)
        return np.array(self._logits.numpy()[0, 0])

    def _bind_input(self, name: str, array: np.ndarray) -> Any:
        value = onnxruntime.OrtValue.ortvalue_from_numpy(array)
        self._binding.bind_ortvalue_input(name, value)
        return value


def export_cached_transformer(model: Transformer, path: Path) -> Path:
    """Export with symbolic capacity; refuse if the attention did not become one operator a layer."""
    names = [f"{kind}.{index}" for index in range(len(model.layers)) for kind in ("keys", "values")]
    width = model.token_emb.embedding_dim // HEADS
    caches = tuple(torch.zeros(HEADS, TRACED_CAPACITY, width) for _ in names)
    with quiet_exporter():
        torch.onnx.export(
            CachedTransformer(model).eval(),
            (torch.ones(1, 1, dtype=torch.int64), torch.ones(1, dtype=torch.int64), caches),
            str(path),
            dynamo=True,
            opset_version=OPSET,
            input_names=["input_ids", "position", *names],
            output_names=["logits", *(f"new_{name}" for name in names)],
            dynamic_shapes=(None, None, tuple({1: torch.export.Dim("capacity", min=2)} for _ in names)),
            custom_translation_table=TRANSLATIONS,
            external_data=False,
            verbose=False,
        )
    check_attention(path, len(model.layers))
    return path


def _project(layer: TransformerLayer, x: Float[Tensor, "1 1 d"]) -> tuple[Tensor, ...]:
    """Return query, key and value of one token, ``(h, 1, k)`` each."""
    qkv = layer.to_qkv(layer.attention_norm(x)).chunk(3, dim=-1)
    return tuple(part.reshape(HEADS, 1, -1) for part in qkv)


def _mix(
    layer: TransformerLayer,
    x: Float[Tensor, "1 1 d"],
    q: Float[Tensor, "h 1 k"],
    keys: Float[Tensor, "h n k"],
    values: Float[Tensor, "h n k"],
    is_past: Bool[Tensor, "1 1 1 n"],
) -> Float[Tensor, "1 1 d"]:
    mixed = F.scaled_dot_product_attention(q[None], keys[None], values[None], attn_mask=is_past)  # (1, h, 1, k)
    x = x + layer.to_out(mixed.reshape(1, 1, -1))
    return x + layer.mlp(layer.mlp_norm(x))
