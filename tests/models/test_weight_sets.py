"""Finding the model in what training frameworks leave in a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from flash_export.errors import CheckpointError, ConfigError
from flash_export.models.weight_sets import MAX_DEPTH, MAX_SETS, check_plain, select_weight_set

if TYPE_CHECKING:
    from collections.abc import Callable

ANCHOR = "token_emb.weight"
FILE = Path("m.pt")


def make_model(value: float = 1.0, prefix: str = "") -> dict[str, torch.Tensor]:
    names = (ANCHOR, "layers.0.norm.g", "layers.0.module.bias")
    return {f"{prefix}{name}": torch.full((2,), value) for name in names}


def check_set(values: object, key: str, value: float = 1.0, wanted: str | None = None) -> dict[str, int]:
    """Check which set is selected, by key and by content, and return what else was in the file."""
    chosen = select_weight_set(values, (ANCHOR,), FILE, wanted)
    assert chosen.key == key
    assert chosen.tensors.keys() == make_model().keys()
    assert all(torch.equal(chosen.tensors[name], tensor) for name, tensor in make_model(value).items())
    return chosen.left_out


@pytest.mark.parametrize(
    ("values", "key", "left_out"),
    [
        (make_model(), "", {}),
        ({**make_model(), "epoch": 3}, "", {}),
        (make_model(prefix="module."), "module", {}),
        (make_model(prefix="_orig_mod."), "", {}),
        (make_model(prefix="module._orig_mod.net."), "module.net", {}),
        ({"state_dict": make_model(prefix="model."), "hyper_parameters": {"lr": 1e-3}}, "state_dict.model", {}),
        (
            {"state_dict": {**make_model(prefix="model.net."), "model.loss.weight": torch.ones(1)}},
            "state_dict.model.net",
            {"state_dict.model.loss": 1},
        ),
        (make_model(prefix="any.name.at.all."), "any.name.at.all", {}),
        ({"module": make_model(), "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}, "module", {"optimizer": 1}),
        ({"model": make_model(), "ema": {"shadow_params": [torch.ones(1)] * 3}}, "model", {"ema": 3}),
        ({**make_model(prefix="module."), "n_averaged": torch.tensor(5)}, "module", {"n_averaged": 1}),
        ({"ema_model": make_model()}, "ema_model", {}),
    ],
)
def test_the_only_set_is_found_under_any_prefix(values: object, key: str, left_out: dict[str, int]) -> None:
    assert check_set(values, key) == left_out


@pytest.mark.parametrize("inserted", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_names_that_wrappers_insert_are_taken_out_anywhere(inserted: str) -> None:
    tensors = {name.replace("layers.0.", f"layers.0.{inserted}."): tensor for name, tensor in make_model().items()}
    check_set({"model": tensors}, "model")


@pytest.mark.parametrize(
    ("values", "default", "other", "wanted"),
    [
        ({"model": make_model(), "model_ema": make_model(2)}, "model", "model_ema", "model_ema"),
        ({"model_ema": make_model(2), "model": make_model()}, "model", "model_ema", "model_ema"),
        (
            {"state_dict": make_model(), "state_dict_ema": make_model(2)},
            "state_dict",
            "state_dict_ema",
            "state_dict_ema",
        ),
        (
            {"state_dict": {**make_model(prefix="model."), **make_model(2, prefix="ema.module.")}},
            "state_dict.model",
            "state_dict.ema.module",
            "state_dict.ema",
        ),
        ({**make_model(), **make_model(2, prefix="teacher.")}, "", "teacher", "teacher"),
        ({"model": {**make_model(), "ema": make_model(2)}}, "model", "model.ema", "model.ema"),
    ],
)
def test_the_plain_set_is_the_default_and_a_key_takes_another(
    values: object, default: str, other: str, wanted: str
) -> None:
    assert check_set(values, default) == {}
    assert set(select_weight_set(values, (ANCHOR,), FILE).keys) == {default, other}
    check_set(values, default, wanted=default)
    check_set(values, other, 2.0, wanted)
    check_set(values, other, 2.0, other)


def test_long_lists_of_numbers_are_no_entries() -> None:
    values = {"model": make_model(), "losses": [0.5] * 300_000}
    assert check_set(values, "model") == {}


def test_first_name_that_the_file_has_tells_where_the_model_is() -> None:
    """A longer name claims what lies beside the shorter one that it ends in."""
    values = {"model": {"gau.token_emb.weight": torch.ones(2, 2), "cls.weight": torch.ones(2)}}
    chosen = select_weight_set(values, ("gau.token_emb.weight", ANCHOR), FILE)
    assert (chosen.key, set(chosen.tensors), chosen.left_out) == ("model", {"gau.token_emb.weight", "cls.weight"}, {})
    chosen = select_weight_set(values, ("absent", ANCHOR), FILE)
    assert (chosen.key, set(chosen.tensors)) == ("model.gau", {ANCHOR})
    with pytest.raises(ConfigError, match=r"has no absent or other under any key; leave --weights-key out"):
        select_weight_set(values, ("absent", "other"), FILE, "model")


@pytest.mark.parametrize(
    ("values", "key", "message"),
    [
        (
            {"teacher": make_model(), "student": make_model(2)},
            None,
            "m.pt holds 2 sets of weights; choose with --weights-key one of student, teacher",
        ),
        ({"model": make_model(), "net": make_model(2)}, None, "holds 2 sets of weights; choose with --weights-key one"),
        (
            {"model": make_model(), "ema": {"a": make_model(), "b": make_model()}},
            "ema",
            "m.pt holds 2 sets of weights under 'ema'; choose with --weights-key one of ema.a, ema.b",
        ),
        ({"model": make_model()}, "mod", "m.pt holds no weights under 'mod'; choose with --weights-key one of model"),
        (make_model(), "model", "holds no weights under 'model'; choose with --weights-key one of '' (the top level)"),
        ({"a": torch.ones(1)}, "model", "has no token_emb.weight under any key; leave --weights-key out"),
    ],
)
def test_what_is_ambiguous_or_absent_is_asked_for(values: object, key: str | None, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        select_weight_set(values, (ANCHOR,), FILE, key)
    assert message in str(caught.value)


def make_cycle() -> dict[str, Any]:
    values: dict[str, Any] = {"a": torch.ones(1)}
    values["x"] = values
    return values


def make_deep() -> dict[str, Any]:
    values: dict[str, Any] = {}
    for _ in range(MAX_DEPTH + 1):
        values = {"a": values}
    return values


def make_doubling() -> list[Any]:
    """Make a few small lists that hold each other 2 ** 40 times."""
    values: list[Any] = [torch.ones(1)]
    for _ in range(40):
        values = [values, values]
    return values


@pytest.mark.parametrize("values", [make_cycle(), make_deep(), {"a": make_doubling()}], ids=["cycle", "deep", "double"])
def test_nesting_has_a_limit(values: object) -> None:
    with pytest.raises(CheckpointError, match=r"m\.pt is nested more than 64 deep, or has more than 200,000 entries"):
        select_weight_set(values, (ANCHOR,), FILE)


def test_number_of_sets_has_a_limit() -> None:
    values = {str(index): make_model() for index in range(MAX_SETS + 1)}
    with pytest.raises(CheckpointError, match="holds 101 sets of weights, more than 100"):
        select_weight_set(values, (ANCHOR,), FILE)


def test_two_tensors_of_one_name() -> None:
    values = {**make_model(), "token_emb": {"weight": torch.ones(2)}}
    with pytest.raises(CheckpointError, match=r"has two tensors token_emb\.weight"):
        select_weight_set(values, (ANCHOR,), FILE)


def test_names_in_messages_are_escaped_and_cut() -> None:
    values = {"a\x1b[31m\n" + "x" * 1000: make_model(), "b": make_model()}
    with pytest.raises(ConfigError) as caught:
        select_weight_set(values, (ANCHOR,), FILE)
    message = str(caught.value)
    assert message.isprintable()
    assert r"a\x1b[31m\nxxx" in message
    assert len(message) < 250


@pytest.mark.parametrize(
    ("build", "kind"),
    [
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "a nested tensor"),
        (lambda: torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged), "a nested tensor"),
        (lambda: torch.ones(2).to_sparse(), "cpu device, torch.sparse_coo"),
        (lambda: torch.eye(2).to_sparse_csr(), "cpu device, torch.sparse_csr"),
        (lambda: torch.ones(2, device="meta"), "meta device, torch.strided"),
        (lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8), "quantized, torch.qint8"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # these kinds of tensors are beta or deprecated
def test_tensors_without_plain_values(build: Callable[[], torch.Tensor], kind: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        check_plain({"a.b": build()}, FILE)
    assert str(caught.value) == f"m.pt: a.b holds no plain values ({kind}); save it as a dense tensor with data"


def test_whole_numbers_are_for_indices_alone() -> None:
    tensors = {"positions": torch.arange(3), "weight": torch.ones(3)}
    check_plain(tensors, FILE, indices={"positions"})
    with pytest.raises(CheckpointError, match=r"positions is torch.int64; weights must be floating point"):
        check_plain(tensors, FILE, indices={"weight"})


def test_views_that_would_fill_the_memory() -> None:
    check_plain({"a": torch.ones(1).expand(1000, 1000)}, FILE)
    with pytest.raises(
        CheckpointError, match="views that repeat its numbers, 3,999,999,996 bytes beyond what is stored"
    ):
        check_plain({"a": torch.ones(1).expand(10**9)}, FILE)
