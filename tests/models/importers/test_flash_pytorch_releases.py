"""Every release of flash-pytorch that has a dialect of its own, against the code of that release, in float64."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from flash_export.errors import ConfigError
from flash_export.models.importers.arguments import GivenArguments
from flash_export.models.importers.flash_pytorch import FLASH_ARGUMENTS, import_gau
from flash_export.models.importers.flash_pytorch_releases import DEFAULTS, RELEASES
from flash_export.models.registry import get_family
from flash_export.originals.flash_pytorch import GauStack

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor

pytestmark = pytest.mark.peer

ORACLES = Path(sys.prefix) / "oracles"
VERSIONS = [release.version for release in RELEASES]
WITHOUT_MASK = ("0.1.0", "0.1.1")  # their mask broadcasts against the channels, and fails
LENGTHS = (1, 15, 16, 17, 50)
VOCAB_SIZE = 13


def import_release(version: str) -> ModuleType:
    """Import the module of a release under a name of its own."""
    if version == VERSIONS[-1]:
        return pytest.importorskip("flash_pytorch.flash_pytorch", reason="flash-pytorch is not installed")
    if not ORACLES.is_dir():
        pytest.skip(f"{ORACLES} does not exist; 'make test' fills it")
    path = ORACLES / f"flash-pytorch=={version}" / "flash_pytorch" / "flash_pytorch.py"
    spec = importlib.util.spec_from_file_location(f"flash_pytorch_{version.replace('.', '_')}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(library: ModuleType, family: str, arguments: dict[str, Any]) -> nn.Module:
    """Build a model of a release with random float64 weights, none of them left at 0 or 1."""
    torch.manual_seed(0)
    if family == "flash":
        model: nn.Module = library.FLASHTransformer(num_tokens=VOCAB_SIZE, depth=2, **arguments)
    else:
        model = GauStack(library, num_tokens=VOCAB_SIZE, **arguments)
    model.double().eval().requires_grad_(requires_grad=False)
    for name, parameter in model.named_parameters():
        if not name.endswith("rotary_pos_emb.freqs"):
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def read(theirs: nn.Module, family: str, given: GivenArguments) -> Any:
    """Import the weights and build our model of them."""
    kind = get_family(family)
    imported = kind.import_weights(theirs.state_dict(), given)
    model = kind.model_class(imported.config)
    model.double().eval().requires_grad_(requires_grad=False)
    model.load_state_dict(imported.tensors)
    return model


def list_arguments(library: ModuleType, family: str, causal: bool) -> list[dict[str, Any]]:
    """Return arguments that reach every branch of a release's dialect: with its defaults, and away from them."""
    common: dict[str, Any] = {"dim": 10, "query_key_dim": 20, "causal": causal}
    layer = library.FLASHTransformer if family == "flash" else library.GAU
    common |= {"group_size": 16} if family == "flash" else {}
    known = inspect.signature(layer).parameters
    changed = {"laplace_attn_fn": True, "shift_tokens": False, "reduce_group_non_causal_attn": False}
    options = [{name: value} for name, value in changed.items() if name in known]
    return [common, *({**common, **option} for option in options)]


def compare(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == expected.dtype == torch.float64
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9 * expected.abs().max().item())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("family", ["flash", "gau"])
@pytest.mark.parametrize("causal", [False, True])
def test_named_release_is_reproduced(version: str, family: str, causal: bool) -> None:
    library = import_release(version)
    for arguments in list_arguments(library, family, causal):
        theirs = build(library, family, arguments)
        ours = read(theirs, family, GivenArguments(arguments, version, assume_defaults=True))
        for seq_len in LENGTHS:
            input_ids = torch.randint(VOCAB_SIZE, (2, seq_len))
            compare(ours(input_ids), theirs(input_ids))


@pytest.mark.parametrize("version", [version for version in VERSIONS if version not in WITHOUT_MASK])
@pytest.mark.parametrize("family", ["flash", "gau"])
@pytest.mark.parametrize("causal", [False, True])
def test_mask_of_a_release_is_reproduced_with_the_padded_divisor(version: str, family: str, causal: bool) -> None:
    library = import_release(version)
    lengths = torch.tensor([40, 23, 1])
    mask = torch.arange(40) < lengths[:, None]
    input_ids = torch.randint(VOCAB_SIZE, mask.shape)
    for arguments in list_arguments(library, family, causal):
        theirs = build(library, family, arguments)
        given = GivenArguments({**arguments, "mask_divisor": "padded"}, version, assume_defaults=True)
        compare(read(theirs, family, given)(input_ids, mask.long()), theirs(input_ids, mask=mask))


@pytest.mark.parametrize("version", WITHOUT_MASK)
def test_first_releases_take_no_mask(version: str) -> None:
    theirs = build(import_release(version), "flash", {"dim": 10, "query_key_dim": 20, "group_size": 16})
    with pytest.raises(RuntimeError, match="must match"):
        theirs(torch.zeros(2, 7, dtype=torch.long), mask=torch.ones(2, 7, dtype=torch.bool))


@pytest.mark.parametrize("version", VERSIONS)
def test_table_has_the_arguments_of_each_release(version: str) -> None:
    parameters = inspect.signature(import_release(version).FLASHTransformer).parameters
    release = next(release for release in RELEASES if release.version == version)
    assert {name for name in FLASH_ARGUMENTS if name not in parameters} == set(release.fixed)
    for name in FLASH_ARGUMENTS:
        if name in parameters:
            assert parameters[name].default == DEFAULTS[name], name


@pytest.mark.parametrize(
    ("version", "family", "arguments"),
    [
        ("0.1.0", "flash", {}),
        ("0.1.4", "flash", {}),
        ("0.1.6", "flash", {"laplace_attn_fn": True}),
        ("0.1.6", "gau", {"laplace_attn_fn": True}),
    ],
)
def test_newest_dialect_is_another_model_and_is_called_an_assumption(
    version: str, family: str, arguments: dict[str, Any]
) -> None:
    arguments = {"dim": 10, "query_key_dim": 20, "causal": False, **arguments}
    arguments |= {"group_size": 16} if family == "flash" else {}
    theirs = build(import_release(version), family, arguments)
    given = GivenArguments(arguments, assume_defaults=True)
    imported = get_family(family).import_weights(theirs.state_dict(), given)
    assert imported.assumed["library_version"] == ("0.1.9" if family == "flash" else "0.1.7")
    input_ids = torch.randint(VOCAB_SIZE, (1, 50))
    expected = theirs(input_ids)
    assert (read(theirs, family, given)(input_ids) - expected).abs().max() > 1e-4 * expected.abs().max()
    named = replace(given, library_version=version)
    compare(read(theirs, family, named)(input_ids), expected)


def test_gau_tells_by_its_bias_whether_it_is_of_0_1_8() -> None:
    arguments = {"dim": 10, "query_key_dim": 20, "causal": True, "laplace_attn_fn": False}
    old = build(import_release("0.1.2"), "gau", {name: arguments[name] for name in ("dim", "query_key_dim", "causal")})
    new = build(import_release("0.1.8"), "gau", arguments)
    assert import_gau(old.state_dict(), GivenArguments(arguments)).assumed == {}
    assert import_gau(new.state_dict(), GivenArguments(arguments)).assumed == {}
    with pytest.raises(
        ConfigError, match=r"the GAU of flash-pytorch 0\.1\.9 has a relative bias, but the weights hold no"
    ):
        import_gau(old.state_dict(), GivenArguments(arguments, "0.1.9"))
    with pytest.raises(
        ConfigError, match=r"the GAU of flash-pytorch 0\.1\.7 has no relative bias, but the weights hold o"
    ):
        import_gau(new.state_dict(), GivenArguments(arguments, "0.1.7"))
