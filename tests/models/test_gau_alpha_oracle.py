"""The reference of GAU-alpha against gau-alpha 0.0.3's own files, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from flash_export.models.gau_alpha import GauAlphaConfig, GauAlphaModel
from tests.models.gau_alpha_release import import_gau_alpha

pytestmark = pytest.mark.peer

RELATIVE_TOLERANCE = 1e-8
VOCAB_SIZE = 29

sizes: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "dim": st.sampled_from((1, 7, 24)),
        "depth": st.integers(1, 3),
        "hidden_dim": st.sampled_from((3, 48)),
        "qk_dim": st.sampled_from((2, 6, 128)),
    }
)


@pytest.fixture(scope="module")
def gau_alpha() -> Any:
    return import_gau_alpha()


def build(gau_alpha: Any, sizes: dict[str, Any], seed: int, dialect: str) -> tuple[nn.Module, GauAlphaModel]:
    """Build the library's model and ours with the same random float64 weights."""
    torch.manual_seed(seed)
    config = gau_alpha.GAUAlphaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=sizes["dim"],
        intermediate_size=sizes["hidden_dim"],
        num_hidden_layers=sizes["depth"],
        attention_key_size=sizes["qk_dim"],
    )
    theirs = gau_alpha.GAUAlphaForMaskedLM(config).double().eval().requires_grad_(requires_grad=False)
    for parameter in theirs.parameters():
        parameter.copy_(torch.randn_like(parameter) / max(parameter.shape[-1], 4) ** 0.5)
    for name, parameter in theirs.named_parameters():  # attention is to matter
        if "scaleoffset" in name:
            parameter.copy_(3 * torch.randn_like(parameter))
    ours = GauAlphaModel(GauAlphaConfig(VOCAB_SIZE, **sizes, mask_dialect=dialect)).double().eval()
    ours.requires_grad_(requires_grad=False).load_state_dict(translate(theirs.state_dict(), sizes["depth"]))
    return theirs, ours


def translate(theirs: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Return the library's tensors by our names, apart from the importer."""
    embeddings, encoder = "gau_alpha.embeddings", "gau_alpha.encoder.layer"
    ours = {
        "token_emb.weight": theirs[f"{embeddings}.word_embeddings.weight"],
        "token_type_emb.weight": theirs[f"{embeddings}.token_type_embeddings.weight"],
    }
    for index in range(depth):
        gau = f"{encoder}.{index}.gau"
        ours[f"layers.{index}.i_dense.weight"] = theirs[f"{gau}.i_dense.weight"]
        ours[f"layers.{index}.o_dense.weight"] = theirs[f"{gau}.o_dense.weight"]
        gammas = [theirs[f"{gau}.{name}_scaleoffset.weight"] for name in "qk"]
        ours[f"layers.{index}.gamma"] = torch.stack(gammas)
    return ours


def make_batch(lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return token ids, those of padding random too, and the mask."""
    torch.manual_seed(seed)
    input_ids = torch.randint(0, VOCAB_SIZE, (len(lengths), max(lengths)))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return input_ids, mask


def compare(actual: Tensor, expected: Tensor) -> None:
    scale = expected.abs().max().item()
    assert 0 < scale < 1e6
    assert actual.dtype == expected.dtype == torch.float64
    torch.testing.assert_close(actual, expected, rtol=0, atol=RELATIVE_TOLERANCE * scale)


@settings(deadline=None, max_examples=40)
@given(
    sizes=sizes,
    lengths=st.lists(st.sampled_from((1, 2, 3, 15, 40)), min_size=1, max_size=3),
    seed=st.integers(0, 2**31),
)
def test_model_equals_gau_alpha_with_its_own_mask(
    gau_alpha: Any, sizes: dict[str, Any], lengths: list[int], seed: int
) -> None:
    theirs, ours = build(gau_alpha, sizes, seed, "gau_alpha")
    input_ids, mask = make_batch(lengths, seed)
    compare(ours(input_ids, mask), theirs(input_ids, mask).logits)


@settings(deadline=None, max_examples=20)
@given(
    sizes=sizes,
    lengths=st.lists(st.sampled_from((1, 2, 3, 15, 40)), min_size=1, max_size=3),
    seed=st.integers(0, 2**31),
)
def test_every_row_of_a_padded_batch_equals_gau_alpha_alone(
    gau_alpha: Any, sizes: dict[str, Any], lengths: list[int], seed: int
) -> None:
    theirs, ours = build(gau_alpha, sizes, seed, "exact")
    input_ids, mask = make_batch(lengths, seed)
    logits = ours(input_ids, mask)
    for row, length in enumerate(lengths):
        alone = input_ids[row : row + 1, :length]
        compare(logits[row : row + 1, :length], theirs(alone, torch.ones_like(alone)).logits)


@pytest.mark.parametrize("seq_len", [1, 511, 512])
def test_published_widths_equal_gau_alpha_up_to_its_last_position(gau_alpha: Any, seq_len: int) -> None:
    sizes = {"dim": 768, "depth": 2, "hidden_dim": 1536, "qk_dim": 128}
    theirs, ours = build(gau_alpha, sizes, 0, "exact")
    input_ids, mask = make_batch([seq_len])
    compare(ours(input_ids), theirs(input_ids, mask).logits)


def test_token_of_a_row_of_one_attends_to_padding_in_gau_alpha(gau_alpha: Any) -> None:
    """The scale of a single token is 0, and with it what hides the padding: the reason for a dialect of ours."""
    theirs, ours = build(gau_alpha, {"dim": 24, "depth": 1, "hidden_dim": 48, "qk_dim": 6}, 0, "exact")
    input_ids, mask = make_batch([9, 1, 2])
    difference = (theirs(input_ids, mask).logits - ours(input_ids, mask)).abs()
    assert difference[1, 0].max() > 0.01
    assert difference[[0, 2]].max() < 1e-12


def test_without_a_mask_gau_alpha_takes_token_0_for_padding(gau_alpha: Any) -> None:
    """Ours does not: what is padding, the mask says."""
    theirs, ours = build(gau_alpha, {"dim": 24, "depth": 1, "hidden_dim": 48, "qk_dim": 6}, 0, "exact")
    input_ids = torch.tensor([[3, 4, 5, 0, 0]])
    compare(ours(input_ids, (input_ids != 0).long()), theirs(input_ids).logits)
    assert (ours(input_ids) - theirs(input_ids).logits).abs().max() > 0.01
