"""What weights of flash-pytorch do not tell: asked for in one line, or taken from its defaults and said so."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flash_export.errors import ConfigError
from flash_export.models.flash import FlashConfig, FlashModel
from flash_export.models.gau import GauConfig, GauModel
from flash_export.models.importers.arguments import GivenArguments
from flash_export.models.registry import get_family

FLASH_ARGUMENTS: dict[str, Any] = {
    "group_size": 16,
    "causal": False,
    "shift_tokens": True,
    "laplace_attn_fn": False,
    "reduce_group_non_causal_attn": True,
}
WHOLE_CALL: dict[str, Any] = {"dim": 12, "num_tokens": 17, "depth": 2}
MODELS = {
    "flash": FlashModel(FlashConfig(17, 12, 2, 18, chunk_size=16, qk_dim=20)).state_dict(),
    "gau": GauModel(GauConfig(17, 12, 2, 18, qk_dim=20)).state_dict(),
}


def read(values: dict[str, Any], version: str | None = None, family: str = "flash", **options: bool) -> Any:
    return get_family(family).import_weights(MODELS[family], GivenArguments(values, version, **options))


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in FLASH_ARGUMENTS.items() if name not in names}


def test_nothing_is_assumed_where_all_is_said() -> None:
    assert read(FLASH_ARGUMENTS).assumed == {}
    assert read({"causal": True, "laplace_attn_fn": False}, family="gau").assumed == {}


@pytest.mark.parametrize("name", FLASH_ARGUMENTS)
def test_each_argument_is_asked_for(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(without(name))
    message = str(caught.value)
    assert message.startswith(f"weights do not tell {name}; give flash-pytorch's constructor arguments")
    assert f"(--set {name}=" in message
    assert "--assume-defaults" in message


def test_all_are_asked_for_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"weights do not tell causal, laplace_attn_fn; .* \(--set causal=false\)"):
        read({}, family="gau")
    with pytest.raises(ConfigError, match="weights do not tell shift_tokens, laplace_attn_fn; "):
        read(without("shift_tokens", "laplace_attn_fn"))


def test_what_changes_nothing_is_not_asked_for() -> None:
    imported = read({**without("reduce_group_non_causal_attn"), "causal": True})
    assert imported.assumed == {}


def test_named_release_answers_what_it_has_no_argument_for() -> None:
    imported = read({"group_size": 16, "causal": False}, "0.1.0")
    assert imported.assumed == {}
    assert not imported.config.shift_tokens
    with pytest.raises(ConfigError, match="weights do not tell shift_tokens; "):
        read({"group_size": 16, "causal": False}, "0.1.4")


@pytest.mark.parametrize("values", [{"causal": True}, {**WHOLE_CALL, "causal": True}])
def test_defaults_are_taken_and_listed(values: dict[str, Any]) -> None:
    """By choice, or because the arguments are a whole call, for which Python takes the defaults."""
    imported = read(values, assume_defaults="dim" not in values)
    assert imported.assumed == {
        "group_size": 256,
        "shift_tokens": True,
        "laplace_attn_fn": False,
        "library_version": "0.1.9",
    }
    assert imported.config == FlashConfig(17, 12, 2, 18, chunk_size=256, qk_dim=20, causal=True)


@pytest.mark.parametrize("name", WHOLE_CALL)
def test_call_that_is_not_whole(name: str) -> None:
    values = {argument: value for argument, value in WHOLE_CALL.items() if argument != name}
    with pytest.raises(ConfigError, match="weights do not tell group_size, "):
        read(values)


@pytest.mark.parametrize(
    ("values", "assumed"),
    [
        (FLASH_ARGUMENTS, {}),
        ({**FLASH_ARGUMENTS, "laplace_attn_fn": True}, {"library_version": "0.1.9"}),  # 0.1.6 has another
        ({**FLASH_ARGUMENTS, "shift_tokens": False}, {}),
        ({**FLASH_ARGUMENTS, "reduce_group_non_causal_attn": False}, {}),
    ],
)
def test_release_is_assumed_where_it_makes_a_difference(values: dict[str, Any], assumed: dict[str, Any]) -> None:
    assert read(values).assumed == assumed
    assert read(values, "0.1.9").assumed == {}


@pytest.mark.parametrize(
    ("version", "values", "message"),
    [
        ("0.0.15", {}, "flash-pytorch 0.0.15 is not a release whose models are known; they are 0.1.0, 0.1.1, 0.1.2, "),
        ("0.1.3", {}, "flash-pytorch 0.1.3 is not a release"),
        ("0.1.10", {}, "flash-pytorch 0.1.10 is not a release"),
        ("0.1.0", {"shift_tokens": True}, "shift_tokens=true, but flash-pytorch 0.1.0 has no such argument and always"),
        ("0.1.4", {"reduce_group_non_causal_attn": True}, "always works as with false; correct it or the version"),
        ("0.1.5", {"laplace_attn_fn": True}, "laplace_attn_fn=true, but flash-pytorch 0.1.5 has no such argument"),
    ],
)
def test_release_that_cannot_be(version: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read({**WHOLE_CALL, **values}, version)
    assert message in str(caught.value)


@pytest.mark.parametrize("family", ["flash", "gau"])
def test_mask_divisor_is_a_choice_at_import(family: str) -> None:
    assert read({}, family=family, assume_defaults=True).config.mask_divisor == "valid"
    assert read({"mask_divisor": "padded"}, family=family, assume_defaults=True).config.mask_divisor == "padded"
    with pytest.raises(ConfigError, match="mask_divisor='half' is unknown; use one of valid, padded"):
        read({"mask_divisor": "half"}, family=family, assume_defaults=True)


def test_bias_of_a_gau_without_one_is_zero() -> None:
    tensors = {name: tensor for name, tensor in MODELS["gau"].items() if "rel_pos_bias" not in name}
    imported = get_family("gau").import_weights(tensors, GivenArguments({"causal": True, "laplace_attn_fn": False}))
    added = imported.tensors.keys() - tensors.keys()
    assert added == MODELS["gau"].keys() - tensors.keys()
    assert all(torch.equal(imported.tensors[name], torch.zeros(32, 1)) for name in added)
