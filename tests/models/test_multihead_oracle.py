"""The references of the multi-head models against libraries that have the same attention, in float64.

Our model runs from tokens to logits; a library's module is given what ours computed before it, and has to give what
ours computed after it. What no library has, ``test_multihead_formulas.py`` compares with formulas.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from torch import nn

from flash_export.models import performer
from flash_export.models.bigbird import NO_BLOCK, BigBirdConfig, BlockSparseAttention
from flash_export.models.linformer import LinformerConfig, ProjectedAttention
from flash_export.models.longformer import LongformerConfig
from flash_export.models.performer import FeatureAttention, PerformerConfig
from flash_export.models.transformer import TransformerConfig
from tests.models.linformer_release import import_linformer
from tests.models.multihead_models import SIZES, compute_error, make_batch, make_model, read_quantities
from tests.models.performer_release import import_performer
from tests.models.transformers_release import import_transformers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from flash_export.models.multihead import MultiheadConfig, MultiheadLayer, MultiheadModel

pytestmark = pytest.mark.peer

RELATIVE_TOLERANCE = 1e-9
FP32_SOFTMAX = 1e-6  # transformers computes that of a Longformer in float32, whatever it is given
LENGTHS = (1, 3, 5, 7, 9, 15, 17, 33, 63, 79)
FF_MULT = 2
FF_DIM = FF_MULT * SIZES["dim"]
DIM, NUM_HEADS = SIZES["dim"], SIZES["num_heads"]


def build(config: MultiheadConfig) -> MultiheadModel:
    return make_model(config).double()


def list_layers(model: MultiheadModel) -> list[MultiheadLayer]:
    return cast("list[MultiheadLayer]", list(model.layers))


def load(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Give a library's module our float64 tensors, strictly."""
    module.double().eval().requires_grad_(requires_grad=False)
    module.load_state_dict(dict(tensors))
    return module


def make_row(length: int) -> Tensor:
    return make_batch([length], seed=length)[0]


def check_equal(actual: Tensor, expected: Tensor, tolerance: float = RELATIVE_TOLERANCE) -> None:
    assert actual.dtype == expected.dtype == torch.float64
    assert expected.abs().max() > 0.01
    assert compute_error(expected, actual) <= tolerance


def check_rows(model: MultiheadModel, lengths: list[int]) -> None:
    """Check that rows of a padded batch are what the model, by then that of the library, gives for each alone."""
    input_ids, mask = make_batch(lengths)
    logits = model(input_ids, mask)
    for row, length in enumerate(lengths):
        check_equal(logits[row, :length], model(input_ids[row : row + 1, :length])[0])


def name_feed_forward(layer: MultiheadLayer) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the hidden channels with the gate first, as lucidrains' libraries have it."""
    hidden = layer.feed_forward.to_hidden
    if layer.config.ff_type == "mlp":
        return hidden.weight, hidden.bias
    weight, bias = (torch.cat(list(reversed(one.chunk(2)))) for one in (hidden.weight, hidden.bias))
    return weight, bias


@pytest.mark.parametrize("causal", [False, True])
def test_transformer_equals_torch(causal: bool) -> None:
    """``nn.TransformerEncoder`` with its norms first, from the embedding to the last block."""
    model = build(TransformerConfig(**SIZES, causal=causal))
    theirs = nn.TransformerEncoderLayer(
        DIM, NUM_HEADS, SIZES["ff_dim"], dropout=0, activation="gelu", batch_first=True, norm_first=True
    )
    encoder = nn.TransformerEncoder(theirs, SIZES["depth"], enable_nested_tensor=False)
    tensors: dict[str, Tensor] = {}
    for index, layer in enumerate(list_layers(model)):
        projections = (layer.to_q, layer.to_k, layer.to_v)
        named = {
            "self_attn.in_proj_weight": torch.cat([one.weight for one in projections]),
            "self_attn.in_proj_bias": torch.cat([one.bias for one in projections]),
        }
        parts = {"self_attn.out_proj": layer.to_out, "norm1": layer.norm, "norm2": layer.ff_norm}
        parts |= {"linear1": layer.feed_forward.to_hidden, "linear2": layer.feed_forward.to_out}
        for part, module in parts.items():
            named |= {f"{part}.{name}": tensor for name, tensor in module.state_dict().items()}
        tensors |= {f"layers.{index}.{name}": tensor for name, tensor in named.items()}
    load(encoder, tensors)
    for length in LENGTHS:
        readings = read_quantities(model, make_row(length))
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1) if causal else None
        check_equal(readings["layers.1.out"], encoder(readings["embedding"], mask=hidden))
    input_ids, mask = make_batch([33, 7, 1])
    readings, square = read_quantities(model, input_ids, mask), torch.ones(33, 33, dtype=torch.bool).triu(1)
    expected = encoder(
        readings["embedding"], mask=square if causal else None, src_key_padding_mask=~mask.bool(), is_causal=causal
    )
    check_equal(readings["layers.1.out"][mask.bool()], expected[mask.bool()])


@pytest.mark.parametrize("ff_type", ["mlp", "geglu"])
@pytest.mark.parametrize("causal", [False, True])
def test_performer_equals_performer_pytorch(causal: bool, ff_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the embedding to the last block, with nothing added to the features."""
    monkeypatch.setattr(performer, "FEATURE_EPS", 0.0)
    library = import_performer(eps=0)
    model = build(PerformerConfig(**{**SIZES, "ff_dim": FF_DIM}, num_features=12, causal=causal, ff_type=ff_type))
    sizes = {"dim_head": DIM // NUM_HEADS, "ff_mult": FF_MULT, "nb_features": 12}
    theirs = library.Performer(DIM, SIZES["depth"], NUM_HEADS, **sizes, causal=causal, ff_glu=ff_type == "geglu")
    tensors = {"proj_updater.calls_since_last_redraw": torch.tensor(0)}
    for index, layer in enumerate(list_layers(model)):
        weight, bias = name_feed_forward(layer)
        attention = cast("FeatureAttention", layer.attention)
        parts = {"to_q": layer.to_q, "to_k": layer.to_k, "to_v": layer.to_v, "to_out": layer.to_out}
        named = {
            f"0.fn.{part}.{name}": one for part, module in parts.items() for name, one in module.state_dict().items()
        }
        named |= {"0.fn.fast_attention.projection_matrix": attention.projection}
        named |= {"0.norm.weight": layer.norm.weight, "0.norm.bias": layer.norm.bias}
        named |= {"1.norm.weight": layer.ff_norm.weight, "1.norm.bias": layer.ff_norm.bias}
        named |= {"1.fn.fn.w1.weight": weight, "1.fn.fn.w1.bias": bias}
        named |= {f"1.fn.fn.w2.{name}": one for name, one in layer.feed_forward.to_out.state_dict().items()}
        tensors |= {
            f"{root}.layers.{index}.{name}": one
            for root in ("net", "proj_updater.instance")
            for name, one in named.items()
        }
    load(theirs, tensors)
    for length in LENGTHS:
        readings = read_quantities(model, make_row(length))
        check_equal(readings["layers.1.out"], theirs(readings["embedding"]))
    check_rows(model, [33, 7, 1])


def test_performer_pytorch_lets_padding_and_later_tokens_through() -> None:
    """With something added to features, the largest key of all changes every token: why ours does not divide by it."""
    library = import_performer(eps=1e-4)
    theirs = library.FastAttention(8, 12, causal=True).double()
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 1, 9, 8, dtype=torch.float64)
    later = k.clone()
    later[..., -1, :] *= 3
    assert (theirs(q, k, v) - theirs(q, later, v))[..., :-1, :].abs().max() > 1e-6


@pytest.mark.parametrize("shares_kv", [False, True])
def test_linformer_equals_linformer(shares_kv: bool) -> None:
    """``LinformerLM`` up to its last block; with ``share_kv`` it has one projection of both, which ours has twice."""
    library = import_linformer()
    sizes = {**SIZES, "ff_dim": 4 * DIM}
    model = build(LinformerConfig(**sizes, num_projected=5, positions="learnt", max_positions=80, shares_kv=shares_kv))
    theirs = library.LinformerLM(SIZES["vocab_size"], DIM, 80, SIZES["depth"], k=5, heads=NUM_HEADS, share_kv=shares_kv)
    theirs.to_logits = nn.Identity()
    tensors = {"token_emb.weight": model.token_emb.weight}
    if model.pos_emb is not None:
        tensors["pos_emb.weight"] = model.pos_emb.weight
    for index, layer in enumerate(list_layers(model)):
        for projection in (layer.to_q, layer.to_k, layer.to_v):  # the library's have none
            projection.bias.zero_()
        attention = cast("ProjectedAttention", layer.attention)
        named = {"0.fn.to_q.weight": layer.to_q.weight, "0.fn.to_k.weight": layer.to_k.weight}
        named |= {"0.fn.proj_k": attention.proj_k}
        if attention.proj_v is None:
            layer.to_v.weight.copy_(layer.to_k.weight)
        else:
            named |= {"0.fn.to_v.weight": layer.to_v.weight, "0.fn.proj_v": attention.proj_v}
        parts = {"0.fn.to_out": layer.to_out, "0.norm": layer.norm, "1.norm": layer.ff_norm}
        parts |= {"1.fn.w1": layer.feed_forward.to_hidden, "1.fn.w2": layer.feed_forward.to_out}
        for part, module in parts.items():
            named |= {f"{part}.{name}": tensor for name, tensor in module.state_dict().items()}
        tensors |= {f"linformer.net.layers.{index}.{name}": tensor for name, tensor in named.items()}
    load(theirs, tensors)
    for length in (*LENGTHS, 80):
        input_ids = make_row(length)
        check_equal(read_quantities(model, input_ids)["layers.1.out"], theirs(input_ids))
    check_rows(model, [33, 7, 1])


def name_projections(layer: MultiheadLayer) -> dict[str, Tensor]:
    """Return weights and biases of queries, keys and values as transformers calls them."""
    parts = {"query": layer.to_q, "key": layer.to_k, "value": layer.to_v}
    return {f"{part}.{name}": one for part, module in parts.items() for name, one in module.state_dict().items()}


@pytest.mark.parametrize("reach", [2, 4])
def test_longformer_equals_transformers_without_global_tokens(reach: int) -> None:
    longformer, _ = import_transformers()
    model = build(LongformerConfig(**SIZES, reach=reach))
    settings = SimpleNamespace(
        hidden_size=DIM, num_attention_heads=NUM_HEADS, attention_probs_dropout_prob=0, attention_window=[2 * reach] * 2
    )
    for index, layer in enumerate(list_layers(model)):
        theirs: Any = longformer.LongformerSelfAttention(settings, index)
        named = name_projections(layer)
        unused = {f"{name.replace('.', '_global.')}": torch.zeros_like(one) for name, one in named.items()}
        load(theirs, {**named, **unused})
        for length in LENGTHS:
            readings = read_quantities(model, make_row(length))
            normed, mixed = (readings[f"layers.{index}.{name}"] for name in ("normed", "mixed"))
            padding = -length % (2 * reach)  # the library's model pads to whole windows
            hidden = torch.cat((torch.zeros(1, length), torch.full((1, padding), -1e4)), dim=1).double()
            padded = nn.functional.pad(normed, (0, 0, 0, padding))
            (expected,) = theirs(padded, hidden, is_index_masked=hidden < 0)
            check_equal(mixed, expected[:, :length], FP32_SOFTMAX)
    check_rows(model, [33, 7, 1])


def run_bigbird(library: Any, theirs: Any, x: Tensor, length: int, *, has_drawn: bool) -> Tensor:
    """Run the library's attention on a row, padded to whole blocks as its model does, drawn blocks hidden or not."""
    padding = -length % theirs.block_size
    mask = torch.cat((torch.ones(1, length), torch.zeros(1, padding)), dim=1).double()
    blocked, band, from_mask, to_mask = library.BigBirdModel.create_masks_for_block_sparse_attn(mask, theirs.block_size)
    drawn = blocked if has_drawn else torch.zeros_like(blocked)  # what it is for in the library
    mixed, _ = theirs(nn.functional.pad(x, (0, 0, 0, padding)), band, from_mask, to_mask, blocked, drawn)
    return mixed[:, :length]


def draw_table(num_blocks: int, num_random: int, seed: int) -> Tensor:
    """Return drawn blocks that no block of queries sees anyhow, for all blocks but the global ones."""
    torch.manual_seed(seed)
    table = torch.full((num_blocks, num_random), float(NO_BLOCK))
    for block in range(1, num_blocks - 1):
        others = [other for other in range(1, num_blocks - 1) if abs(other - block) > 1]
        chosen = torch.randperm(len(others))[:num_random]
        table[block] = torch.tensor([others[index] for index in chosen], dtype=torch.float32)
    return table


@pytest.mark.parametrize("num_random", [0, 2])
def test_bigbird_equals_transformers(num_random: int) -> None:
    """Its window and global blocks, and drawn ones where the library is told ours: in evaluation it takes block 0.

    It cannot do without drawn blocks, so that its one is hidden where ours has none.
    """
    _, bigbird = import_transformers()
    size, shortest = 4, 5 + 2 * num_random + 1  # the library's own model has full attention below
    lengths = tuple(shortest * size + more for more in (-3, -1, 1, 3, 5, 7, 15, 17, 33, 39))
    config = BigBirdConfig(**SIZES, block_size=size, num_random=max(num_random, 1), max_positions=96)
    settings = SimpleNamespace(
        hidden_size=DIM,
        num_attention_heads=NUM_HEADS,
        use_bias=True,
        max_position_embeddings=96,
        num_random_blocks=max(num_random, 1),
        block_size=size,
    )
    model = build(config)
    for index, layer in enumerate(list_layers(model)):
        theirs: Any = bigbird.BigBirdBlockSparseAttention(settings)
        load(theirs, name_projections(layer))
        attention = cast("BlockSparseAttention", layer.attention)
        for length in lengths:
            num_blocks = -(-length // size)
            table = draw_table(num_blocks, num_random, seed=index)
            attention.random_blocks[:] = NO_BLOCK
            attention.random_blocks[:num_blocks, :num_random] = table
            if num_random:
                told = [table[1:-1].int().numpy()] * NUM_HEADS
                theirs._bigbird_block_rand_mask_with_head = lambda told=told, **_: told
            readings = read_quantities(model, make_row(length))
            normed, mixed = (readings[f"layers.{index}.{name}"] for name in ("normed", "mixed"))
            check_equal(mixed, run_bigbird(bigbird, theirs, normed, length, has_drawn=num_random > 0))
    check_rows(model, [63, 7, 1])
