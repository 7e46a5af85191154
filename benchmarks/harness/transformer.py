"""What a user would pick instead of FLASH: a pre-norm Transformer with as many parameters.

Its attention is exported as the one operator ``ai.onnx::Attention``, which opset 23 brought.

For decoding it has a cache of keys and values of a fixed capacity, updated where it lies: a ScatterND whose input and
output are bound to the same buffer writes one row and copies nothing. Tried with it, on the CPU provider of onnxruntime
1.32: ``Attention`` with ``past_key`` and ``present_key``, and concatenation, both of which copy the cache each time: at
1,024 and 16,384 tokens, attention takes 1.6 to 2 times as long. TensorScatter with ``nonpad_kv_seqlen`` (opset 24),
and MatMul and Softmax in place of ``Attention``, are as fast as what is here.

Axes: b batch, n sequence or capacity of the cache, d model, h head, k width of a head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn
from torch.nn import functional as F

from flash_export.exporters.spelling import TRANSLATIONS, put_at
from flash_export.exporters.tracing import quiet_exporter
from flash_export.layers.position import ScaledSinusoid
from harness.models import build_original, count_parameters
from harness.sessions import open_session

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Float, Int
    from torch import Tensor

    from harness.models import PeerConfig

HEADS = 8
OPSET = 23
# The paper counts two gated attention units for one Transformer layer, attention and MLP.
FLASH_LAYERS_A_LAYER = 2
TRACED_LEN = 40


class TransformerLayer(nn.Module):
    """Attention, then an MLP, each behind a LayerNorm and beside a residual."""

    def __init__(self, dim: int, mlp_dim: int, *, causal: bool, heads: int = HEADS) -> None:
        """Create the layer with random weights."""
        super().__init__()
        self.causal, self.heads = causal, heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_qkv, self.to_out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_dim), nn.ReLU(), nn.Linear(mlp_dim, dim))

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Mix the tokens, then the channels."""
        q, k, v = self.project(x)
        return self.mix(x, F.scaled_dot_product_attention(q, k, v, is_causal=self.causal))

    def project(self, x: Float[Tensor, "b n d"]) -> list[Float[Tensor, "b h n k"]]:
        """Return queries, keys and values."""
        qkv = self.to_qkv(self.attention_norm(x)).chunk(3, dim=-1)
        return [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in qkv]

    def mix(self, x: Float[Tensor, "b n d"], attended: Float[Tensor, "b h n k"]) -> Float[Tensor, "b n d"]:
        """Add what was attended to, then mix the channels."""
        x = x + self.to_out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.mlp_norm(x))


class Transformer(nn.Module):
    """The embedding and head of the FLASH model around Transformer layers."""

    def __init__(self, config: PeerConfig, depth: int, mlp_dim: int, *, heads: int = HEADS) -> None:
        """Create the model with random weights."""
        super().__init__()
        self.token_emb = nn.Embedding(config.num_tokens, config.dim)
        self.abs_pos_emb = ScaledSinusoid(config.dim)
        self.layers = nn.ModuleList(
            TransformerLayer(config.dim, mlp_dim, causal=config.causal, heads=heads) for _ in range(depth)
        )
        self.to_logits = nn.Sequential(nn.LayerNorm(config.dim), nn.Linear(config.dim, config.num_tokens))

    def forward(self, input_ids: Int[Tensor, "b n"]) -> Float[Tensor, "b n vocab"]:
        """Return the logits of every position."""
        x = self.token_emb(input_ids) + self.abs_pos_emb(torch.arange(input_ids.shape[1], device=input_ids.device))
        for layer in self.layers:
            x = layer(x)
        return self.to_logits(x)


def build_transformer(config: PeerConfig, *, parameters: int | None = None, heads: int = HEADS) -> Transformer:
    """Build a Transformer with as many parameters, to within one row of the MLPs.

    Args:
        config: The FLASH model that it is compared with.
        parameters: How many that has; None: as many as flash-pytorch's module.
        heads: Heads of its attention.
    """
    torch.manual_seed(0)
    depth = -(-config.depth // FLASH_LAYERS_A_LAYER)
    budget = count_parameters(build_original(config)) if parameters is None else parameters
    narrowest = count_parameters(Transformer(config, depth, 1, heads=heads))
    mlp_dim = 1 + round((budget - narrowest) / (depth * (2 * config.dim + 1)))
    return Transformer(config, depth, mlp_dim, heads=heads).requires_grad_(requires_grad=False).eval()


def export_transformer(model: Transformer, path: Path) -> Path:
    """Export with symbolic length."""
    tokens, shapes = torch.ones(1, TRACED_LEN, dtype=torch.int64), ({1: torch.export.Dim("seq", min=2)},)
    names = {"input_names": ["input_ids"], "output_names": ["logits"]}
    return export_attention(model, len(model.layers), (tokens,), path, dynamic_shapes=shapes, **names)


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
            q, k, v = layer.project(x)  # (1, h, 1, k)
            keys, values = put_at(keys, row, k[0]), put_at(values, row, v[0])
            x = layer.mix(x, F.scaled_dot_product_attention(q, keys[None], values[None], attn_mask=is_past))
            new += (keys, values)
        return self.model.to_logits(x), tuple(new)


class CachedDecoder:
    """An exported :class:`CachedTransformer` and its caches, which hold noise until they are written."""

    def __init__(self, path: Path, capacity: int) -> None:
        """Open the graph and allocate caches; every step attends to ``capacity`` tokens, the longest text."""
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
    """Export with symbolic capacity."""
    names = [f"{kind}.{index}" for index in range(len(model.layers)) for kind in ("keys", "values")]
    width = model.token_emb.embedding_dim // HEADS
    caches = tuple(torch.zeros(HEADS, TRACED_LEN, width) for _ in names)
    inputs = torch.ones(1, 1, dtype=torch.int64), torch.ones(1, dtype=torch.int64), caches
    shapes = None, None, tuple({1: torch.export.Dim("capacity", min=2)} for _ in names)
    signature = {
        "input_names": ["input_ids", "position", *names],
        "output_names": ["logits", *(f"new_{name}" for name in names)],
    }
    cached = CachedTransformer(model).eval()
    return export_attention(cached, len(model.layers), inputs, path, dynamic_shapes=shapes, **signature)


def export_attention(model: nn.Module, num_layers: int, inputs: tuple[Any, ...], path: Path, **options: Any) -> Path:
    """Export a model whose layers have one attention each.

    Raises:
        RuntimeError: It did not become one operator a layer, so that onnxruntime's own would not be what is measured.
    """
    options |= {"dynamo": True, "opset_version": OPSET, "custom_translation_table": TRANSLATIONS}
    with quiet_exporter():
        torch.onnx.export(model, inputs, str(path), external_data=False, verbose=False, **options)
    number = [node.op_type for node in onnx.load(path).graph.node].count("Attention")
    if number != num_layers:
        raise RuntimeError(f"got {number} Attention nodes for {num_layers} layers")
    return path
