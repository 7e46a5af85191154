"""The multi-head models by their formulas: one row, float64 numpy, one token or one square of all pairs at a time.

Nothing here is cut into chunks, padded or masked. What a token sees is asked for each pair of tokens.

Axes: n sequence, d width, h head, s head width.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from flash_export.models.bigbird import BigBirdConfig
from flash_export.models.linformer import LinformerConfig
from flash_export.models.longformer import LongformerConfig
from flash_export.models.mc_tfm import McTfmConfig
from flash_export.models.performer import PerformerConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from flash_export.models.multihead import MultiheadConfig, MultiheadModel

    Weights = Mapping[str, np.ndarray]

PERFORMER_EPS = 1e-4  # added to each feature
_erf = np.vectorize(math.erf, otypes=[float])


def compute_logits(model: MultiheadModel, input_ids: list[int]) -> np.ndarray:
    """Return the logits ``(n, vocab)`` of one row."""
    config = model.config
    weights = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    places = np.arange(len(input_ids))[:, None]
    x = weights["token_emb.weight"][input_ids]
    if config.positions == "sinusoid":
        angles = places * weights["abs_pos_emb.inv_freq"]
        x = x + np.concatenate((np.sin(angles), np.cos(angles)), axis=1) * weights["abs_pos_emb.scale"]
    elif config.positions == "learnt":
        x = x + weights["pos_emb.weight"][: len(input_ids)]
    for index in range(config.depth):
        prefix = f"layers.{index}."
        layer = {name.removeprefix(prefix): one for name, one in weights.items() if name.startswith(prefix)}
        x = run_block(config, layer, x, weights.get("rotary_pos_emb.freqs"))
    return linear(layer_norm(x, weights, "to_logits.0"), weights, "to_logits.1")


def run_block(config: MultiheadConfig, weights: Weights, x: np.ndarray, freqs: np.ndarray | None) -> np.ndarray:
    """Return ``x + attention(norm(x))``, and that plus the feed-forward layer of its norm."""
    normed = apply_norm(config, x, weights, "norm")
    width = config.dim // config.num_heads
    mixed = []
    for head in range(config.num_heads):
        q, k, v = (
            linear(normed, weights, f"to_{name}")[:, head * width : (head + 1) * width] for name in ("q", "k", "v")
        )
        if freqs is not None:
            q, k = turn(q, freqs), turn(k, freqs)
        mixed.append(attend(config, weights, head, q, k, v))
    x = x + linear(np.concatenate(mixed, axis=1), weights, "to_out")
    hidden = linear(apply_norm(config, x, weights, "ff_norm"), weights, "feed_forward.to_hidden")
    if config.ff_type == "mlp":
        hidden = gelu(hidden)
    else:
        value, gate = hidden[:, : config.ff_dim], hidden[:, config.ff_dim :]
        hidden = value * (gelu(gate) if config.ff_type == "geglu" else gate / (1 + np.exp(-gate)))
    return x + linear(hidden, weights, "feed_forward.to_out")


def attend(
    config: MultiheadConfig, weights: Weights, head: int, q: np.ndarray, k: np.ndarray, v: np.ndarray
) -> np.ndarray:
    """Return what each token of a head takes from the others."""
    if isinstance(config, PerformerConfig):
        return attend_by_features(config, weights, q, k, v)
    if isinstance(config, LinformerConfig):
        by_key = weights["attention.proj_k"][: len(q)]
        by_value = by_key if config.shares_kv else weights["attention.proj_v"][: len(q)]
        return softmax(q @ (by_key.T @ k).T / math.sqrt(q.shape[1])) @ (by_value.T @ v)
    sees = build_visible(config, weights, len(q))
    mixed = softmax(np.where(sees, q @ k.T / math.sqrt(q.shape[1]), -np.inf)) @ v
    if isinstance(config, McTfmConfig):
        mixed = mixed + sum_linear(config, weights, head, q, k, v)
    return mixed


def build_visible(config: MultiheadConfig, weights: Weights, length: int) -> np.ndarray:
    """Ask of each pair of tokens whether the first sees the second."""
    pairs = [[sees(config, weights, i, j, length) for j in range(length)] for i in range(length)]
    return np.array(pairs)


def sees(config: MultiheadConfig, weights: Weights, i: int, j: int, length: int) -> bool:
    """Return whether token i of a row of this length sees token j, by softmax."""
    if config.causal and j > i:
        return False
    if isinstance(config, LongformerConfig):
        return abs(i - j) <= config.reach
    if isinstance(config, McTfmConfig):
        return i // config.chunk_size == j // config.chunk_size
    if isinstance(config, BigBirdConfig):
        ours, theirs, last = i // config.block_size, j // config.block_size, (length - 1) // config.block_size
        if abs(ours - theirs) <= 1 or theirs == 0 or theirs in weights["attention.random_blocks"][ours]:
            return True
        return not config.causal and (ours == 0 or ours == last or theirs == last)
    return True


def sum_linear(
    config: McTfmConfig, weights: Weights, head: int, q: np.ndarray, k: np.ndarray, v: np.ndarray
) -> np.ndarray:
    """Return the linear attention of each token: to all, or to those of all earlier chunks."""
    gamma, beta = weights["attention.gamma"][:, head], weights["attention.beta"][:, head]
    q, k = q * gamma[0] + beta[0], k * gamma[1] + beta[1]
    rows = []
    for i in range(len(q)):
        first = i // config.chunk_size * config.chunk_size
        others, divisor = (range(first), config.chunk_size) if config.causal else (range(len(q)), len(q))
        rows.append(sum((q[i] @ k[j] * v[j] / divisor for j in others), np.zeros(v.shape[1])))
    return np.array(rows)


def attend_by_features(
    config: PerformerConfig, weights: Weights, q: np.ndarray, k: np.ndarray, v: np.ndarray
) -> np.ndarray:
    """Return the mean of the values that each token sees, weighed by products of positive features."""
    directions = weights["attention.projection"]

    def compute_features(x: np.ndarray, largest: bool) -> np.ndarray:
        x = x / x.size**0.25
        exponents = np.array([direction @ x - x @ x / 2 for direction in directions])
        return np.exp(exponents - (exponents.max() if largest else 0)) + PERFORMER_EPS

    keys, rows = [compute_features(key, largest=False) for key in k], []
    for i, query in enumerate(q):
        features = compute_features(query, largest=True)
        shares = np.array([features @ key for key in (keys[: i + 1] if config.causal else keys)])
        rows.append(shares @ v[: len(shares)] / shares.sum())
    return np.array(rows)


def turn(x: np.ndarray, freqs: np.ndarray) -> np.ndarray:
    """Turn each pair of neighbouring channels as a complex number, by position times frequency."""
    pairs = (x[:, 0::2] + 1j * x[:, 1::2]) * np.exp(1j * np.arange(len(x))[:, None] * freqs)
    return np.stack((pairs.real, pairs.imag), axis=2).reshape(x.shape)


def apply_norm(config: MultiheadConfig, x: np.ndarray, weights: Weights, name: str) -> np.ndarray:
    if config.norm_type == "layernorm":
        return layer_norm(x, weights, name)
    return x / np.sqrt((x**2).mean(axis=1, keepdims=True)) * weights[f"{name}.g"]


def layer_norm(x: np.ndarray, weights: Weights, name: str) -> np.ndarray:
    centred = x - x.mean(axis=1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
    return normed * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: np.ndarray, weights: Weights, name: str) -> np.ndarray:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + _erf(x / math.sqrt(2)))


def softmax(scores: np.ndarray) -> Any:
    exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)
