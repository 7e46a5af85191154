"""FLASH with one branch alone against flash-pytorch 0.1.9, the other branch of which its weights make nothing of."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch

from flash_export.errors import ConfigError
from flash_export.models.flash import GLOBAL, HEADS, LOCAL, FlashConfig, FlashModel
from flash_export.models.importers.arguments import GivenArguments
from flash_export.models.importers.flash_pytorch import import_flash
from tests.models.macs import count_weight_macs

if TYPE_CHECKING:
    from torch import Tensor, nn

RELATIVE_TOLERANCE = 1e-9
VOCAB_SIZE, GROUP_SIZE = 13, 16
LENGTHS = (1, 3, 7, 15, 17, 31, 33, 47, 63, 65)
HIDDEN_BIAS = -1e4  # whatever score is added, relu² and Laplace of it are 0
KEPT = {LOCAL: ("quad_q", "quad_k"), GLOBAL: ("lin_q", "lin_k")}
ARGUMENTS: dict[str, Any] = {"dim": 10, "depth": 2, "group_size": GROUP_SIZE, "query_key_dim": 36}


def silence_branch(model: nn.Module, branch: str) -> None:
    """Give a model of the library weights by which the other branch is 0."""
    silent = HEADS.index("lin_q" if branch == LOCAL else "quad_q")
    for name, parameter in model.named_parameters():
        if "qk_offset_scale" in name:
            parameter[silent] = 0
        elif branch == GLOBAL and "relative_attention_bias" in name:
            parameter.fill_(HIDDEN_BIAS)


def build(branch: str, **arguments: Any) -> tuple[nn.Module, FlashModel]:
    """Build the library's model and ours with the same random float64 weights."""
    library = pytest.importorskip("flash_pytorch.flash_pytorch", reason="flash-pytorch is not installed")
    torch.manual_seed(0)
    given = {**ARGUMENTS, **arguments}
    theirs = (
        library.FLASHTransformer(num_tokens=VOCAB_SIZE, **given).double().eval().requires_grad_(requires_grad=False)
    )
    for name, parameter in theirs.named_parameters():
        if not name.endswith("rotary_pos_emb.freqs"):
            parameter.add_(0.3 * torch.randn_like(parameter))
    silence_branch(theirs, branch)
    imported = import_flash(theirs.state_dict(), GivenArguments(given, assume_defaults=True))
    ours = FlashModel(replace(cast("FlashConfig", imported.config), branches=branch)).double().eval()
    ours.requires_grad_(requires_grad=False).load_state_dict(keep_branch(imported.tensors, branch))
    return theirs, ours


def keep_branch(tensors: dict[str, Tensor], branch: str) -> dict[str, Tensor]:
    """Return the tensors of a model that has this branch alone."""
    rows = [HEADS.index(name) for name in KEPT[branch]]
    kept = {name: one[rows] if "qk_offset_scale" in name else one for name, one in tensors.items()}
    return {name: one for name, one in kept.items() if branch == LOCAL or "rel_pos_bias" not in name}


def compute_error(expected: Tensor, actual: Tensor) -> float:
    assert expected.abs().max() > 0.01
    return float((expected - actual).abs().max() / expected.abs().max())


@pytest.mark.peer
@pytest.mark.parametrize("branch", KEPT)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("laplace_attn_fn", [False, True])
def test_one_branch_equals_the_library_without_the_other(branch: str, causal: bool, laplace_attn_fn: bool) -> None:
    theirs, ours = build(branch, causal=causal, laplace_attn_fn=laplace_attn_fn)
    for length in LENGTHS:
        input_ids = torch.randint(VOCAB_SIZE, (2, length))
        assert compute_error(theirs(input_ids), ours(input_ids)) <= RELATIVE_TOLERANCE
    lengths = [33, 16, 1]
    input_ids = torch.randint(VOCAB_SIZE, (3, 33))
    logits = ours(input_ids, (torch.arange(33) < torch.tensor(lengths)[:, None]).long())
    for row, length in enumerate(lengths):
        alone = theirs(input_ids[row : row + 1, :length])
        assert compute_error(alone, logits[row : row + 1, :length]) <= RELATIVE_TOLERANCE


CONFIG = FlashConfig(VOCAB_SIZE, dim=8, depth=2, hidden_dim=12, chunk_size=4, qk_dim=6)


@pytest.mark.parametrize("branch", KEPT)
@pytest.mark.parametrize("causal", [False, True])
def test_one_branch_has_its_own_quantities_parameters_and_macs(branch: str, causal: bool) -> None:
    config = replace(CONFIG, branches=branch, causal=causal)
    model = FlashModel(config)
    names: list[str] = []
    with model.read_probes(lambda name, _: names.append(name)):
        model(torch.zeros(1, 9, dtype=torch.long))
    first, *inner = config.quantities
    assert names == [first, *(f"layers.{index}.{name}" for index in range(2) for name in inner)]
    gone = {LOCAL: {"lin_q", "lin_k", "kv", "linear"}, GLOBAL: {"quad_q", "quad_k", "weights", "quadratic"}}[branch]
    assert set(CONFIG.quantities) - set(inner) == gone | {first}
    assert {len(one) for name, one in model.state_dict().items() if "qk_offset_scale" in name} == {2}
    counted = count_weight_macs(model, torch.zeros(1, 9, dtype=torch.long))
    padding = 3 * 2 * (3 * config.dim * config.hidden_dim + config.dim * config.qk_dim)  # to 12 tokens, in 2 blocks
    between = 2 * 12 * (4 * (6 + 12) if branch == LOCAL else 2 * 6 * 12)
    assert config.count_macs(9) == counted + padding + between
    assert not causal or f"it has the {branch} branch alone" in (config.state_refusal or "")


def test_unknown_branch_is_refused() -> None:
    with pytest.raises(ConfigError, match="branches='linear' is unknown; use one of both, local, global"):
        replace(CONFIG, branches="linear")
