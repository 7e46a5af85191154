"""The reference models against the library whose weights they load: flash-pytorch 0.1.9, in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import nn

from flash_export.models.flash import FlashModel
from flash_export.models.gau import GauModel
from flash_export.models.importers.arguments import GivenArguments
from flash_export.models.importers.flash_pytorch import import_flash, import_gau
from flash_export.originals.flash_pytorch import GauStack

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from flash_export.models.flash import FlashConfig
    from flash_export.models.gau import GauConfig

    Builder = Callable[[dict[str, Any]], tuple[nn.Module, Any]]

flash_pytorch = pytest.importorskip("flash_pytorch.flash_pytorch", reason="flash-pytorch is not installed")
pytestmark = pytest.mark.peer

RELATIVE_TOLERANCE = 1e-9
VOCAB_SIZE = 13

# Not among the widths: odd ones below 32, and 2, at which flash-pytorch itself crashes (its rotary embedding rotates
# one dimension too many, or divides by zero).
QK_DIMS = (4, 20, 33, 37, 128)

flash_arguments = st.fixed_dictionaries(
    {
        "dim": st.integers(1, 12).map(lambda half: 2 * half),
        "depth": st.integers(1, 3),
        "group_size": st.integers(16, 256),
        "query_key_dim": st.sampled_from(QK_DIMS),
        "expansion_factor": st.sampled_from((1.5, 2.0, 3.0)),
        "causal": st.booleans(),
        "norm_type": st.sampled_from(("scalenorm", "layernorm")),
        "shift_tokens": st.booleans(),
        "laplace_attn_fn": st.booleans(),
        "reduce_group_non_causal_attn": st.booleans(),
    }
)
gau_arguments = st.fixed_dictionaries(
    {
        "dim": st.integers(1, 12).map(lambda half: 2 * half),
        "depth": st.integers(1, 3),
        "query_key_dim": st.sampled_from((1, 7, *QK_DIMS)),
        "expansion_factor": st.sampled_from((1.5, 2.0, 3.0)),
        "causal": st.booleans(),
        "norm_type": st.sampled_from(("scalenorm", "layernorm")),
        "laplace_attn_fn": st.booleans(),
    }
)


def build_flash(arguments: dict[str, Any]) -> tuple[nn.Module, FlashModel]:
    """Build the library's model and ours with the same random float64 weights."""
    theirs = randomise(flash_pytorch.FLASHTransformer(num_tokens=VOCAB_SIZE, **arguments))
    ours = import_flash(theirs.state_dict(), GivenArguments(arguments, assume_defaults=True))
    return theirs, load(FlashModel(cast("FlashConfig", ours.config)), ours.tensors)


def build_gau(arguments: dict[str, Any]) -> tuple[nn.Module, GauModel]:
    """Build a stack of the library's layers and our model with the same random float64 weights."""
    theirs = randomise(GauStack(flash_pytorch, num_tokens=VOCAB_SIZE, **arguments))
    ours = import_gau(theirs.state_dict(), GivenArguments(arguments, assume_defaults=True))
    return theirs, load(GauModel(cast("GauConfig", ours.config)), ours.tensors)


def randomise(model: nn.Module) -> nn.Module:
    """Move every weight by a normal number of deviation 0.3, so that none is left at 0 or 1."""
    model.double().eval().requires_grad_(requires_grad=False)
    for name, parameter in model.named_parameters():
        if not name.endswith("rotary_pos_emb.freqs"):
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def load(model: Any, tensors: dict[str, Tensor]) -> Any:
    """Give our model the library's float64 tensors, strictly."""
    model.double().eval().requires_grad_(requires_grad=False)
    model.load_state_dict(tensors)
    return model


def draw_lengths(data: st.DataObject, *, limit: int) -> list[int]:
    """Draw the true lengths of a ragged batch."""
    longest = data.draw(st.integers(1, limit), label="longest")
    return [longest, *data.draw(st.lists(st.integers(1, longest), max_size=2), label="shorter rows")]


def make_batch(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Make random tokens, in the padding too, and the mask of a right-padded batch."""
    input_ids = torch.randint(VOCAB_SIZE, (len(lengths), max(lengths)))
    return input_ids, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def compare(actual: Tensor, expected: Tensor) -> None:
    """Check two tensors to 1e-9 of the expected one's largest magnitude."""
    scale = expected.abs().max().item()
    assert 0 < scale < 1e6
    assert actual.dtype == expected.dtype == torch.float64
    torch.testing.assert_close(actual, expected, rtol=0, atol=RELATIVE_TOLERANCE * scale)


def check_equal_to_library(build: Builder, arguments: dict[str, Any], lengths: list[int], seed: int) -> None:
    """Compare with the library: without a mask, then with one in the library's own masked behaviour."""
    torch.manual_seed(seed)
    theirs, ours = build(arguments)
    input_ids, mask = make_batch(lengths)
    expected = theirs(input_ids)
    compare(ours(input_ids), expected)
    compare(ours(input_ids, torch.ones_like(input_ids)), expected)
    padded = load(type(ours)(replace(ours.config, mask_divisor="padded")), ours.state_dict())
    compare(padded(input_ids, mask.long()), theirs(input_ids, mask=mask))


def check_rows_unchanged_by_padding(build: Builder, arguments: dict[str, Any], lengths: list[int], seed: int) -> None:
    """Compare every row of a padded batch with what the library gives for that row alone."""
    torch.manual_seed(seed)
    theirs, ours = build(arguments)
    input_ids, mask = make_batch(lengths)
    assert ours.config.mask_divisor == "valid"
    logits = ours(input_ids, mask.long())
    for row, length in enumerate(lengths):
        compare(logits[row : row + 1, :length], theirs(input_ids[row : row + 1, :length]))


@settings(deadline=None, max_examples=60)
@given(arguments=flash_arguments, data=st.data(), seed=st.integers(0, 2**31))
def test_flash_equals_the_library(arguments: dict[str, Any], data: st.DataObject, seed: int) -> None:
    lengths = draw_lengths(data, limit=3 * arguments["group_size"])
    event(f"causal={arguments['causal']}")
    event(f"whole chunks={max(lengths) % arguments['group_size'] == 0}")
    check_equal_to_library(build_flash, arguments, lengths, seed)


@pytest.mark.parametrize("chunks", [1, 2, 3])
@pytest.mark.parametrize("offset", [-1, 0, 1])
@pytest.mark.parametrize("causal", [False, True])
def test_flash_equals_the_library_around_whole_chunks(causal: bool, chunks: int, offset: int) -> None:
    arguments = {"dim": 10, "depth": 2, "group_size": 16, "query_key_dim": 37, "causal": causal}
    longest = 16 * chunks + offset
    check_equal_to_library(build_flash, arguments, [longest, (longest + 1) // 2, 1], seed=chunks)


@settings(deadline=None, max_examples=30)
@given(arguments=flash_arguments, data=st.data(), seed=st.integers(0, 2**31))
def test_flash_rows_are_unchanged_by_padding(arguments: dict[str, Any], data: st.DataObject, seed: int) -> None:
    lengths = draw_lengths(data, limit=3 * arguments["group_size"])
    check_rows_unchanged_by_padding(build_flash, arguments, lengths, seed)


@settings(deadline=None, max_examples=40)
@given(arguments=gau_arguments, data=st.data(), seed=st.integers(0, 2**31))
def test_gau_equals_the_library(arguments: dict[str, Any], data: st.DataObject, seed: int) -> None:
    check_equal_to_library(build_gau, arguments, draw_lengths(data, limit=300), seed)


@settings(deadline=None, max_examples=30)
@given(arguments=gau_arguments, data=st.data(), seed=st.integers(0, 2**31))
def test_gau_rows_are_unchanged_by_padding(arguments: dict[str, Any], data: st.DataObject, seed: int) -> None:
    check_rows_unchanged_by_padding(build_gau, arguments, draw_lengths(data, limit=300), seed)


def test_padded_divisor_differs_where_rows_are_ragged() -> None:
    """The two masked behaviours are different functions, so that the tests above can tell them apart."""
    torch.manual_seed(0)
    models: tuple[Any, ...] = (
        build_flash({"dim": 8, "depth": 1, "group_size": 16, "query_key_dim": 20})[1],
        build_gau({"dim": 8, "depth": 1, "query_key_dim": 20, "norm_type": "layernorm"})[1],
    )
    for ours in models:
        input_ids, mask = make_batch([20, 5])
        padded = load(type(ours)(replace(ours.config, mask_divisor="padded")), ours.state_dict())
        difference = (padded(input_ids, mask) - ours(input_ids, mask)).abs().amax(dim=(1, 2))
        assert difference[0] == 0
        assert difference[1] > 1e-4
