"""Loading checkpoints: flash-pytorch's own files give its own outputs, and bad files are named."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from flash_export.errors import CheckpointError, ConfigError, FlashExportError
from flash_export.models.checkpoint import load_checkpoint, load_pretrained
from flash_export.models.flash import FlashConfig, FlashModel
from flash_export.models.gau import GauConfig, GauModel

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor, nn

    StateDict = dict[str, Tensor]

SIZES: dict[str, Any] = {"dim": 12, "num_tokens": 17, "depth": 2, "query_key_dim": 20, "expansion_factor": 1.5}
HIDDEN: dict[str, Any] = {"group_size": 16, "causal": True, "laplace_attn_fn": True, "shift_tokens": False}
CONFIG = FlashConfig(17, 12, 2, 18, chunk_size=16, qk_dim=20, causal=True, attention_fn="laplace", shift_tokens=False)
GAU_CONFIG = GauConfig(17, 12, 2, 18, qk_dim=20)


@pytest.fixture(scope="module")
def library() -> nn.Module:
    """A model of flash-pytorch with random weights."""
    flash_pytorch = pytest.importorskip("flash_pytorch", reason="flash-pytorch is not installed")
    torch.manual_seed(0)
    model: nn.Module = flash_pytorch.FLASHTransformer(**SIZES, **HIDDEN)
    return model.eval().requires_grad_(requires_grad=False)


@pytest.fixture(scope="module")
def state() -> StateDict:
    """The state dict that flash-pytorch would save of a model with CONFIG."""
    torch.manual_seed(0)
    tensors = FlashModel(CONFIG).state_dict()
    freqs = tensors.pop("rotary_pos_emb.freqs")
    return {**tensors, **{f"layers.{index}.rotary_pos_emb.freqs": freqs for index in range(CONFIG.depth)}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Save a checkpoint folder."""
    torch.manual_seed(0)
    FlashModel(CONFIG).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def load_foreign(path: Path, config: dict[str, Any] | None = None) -> FlashModel:
    model = load_checkpoint(path, family="flash", config=HIDDEN if config is None else config).model
    assert isinstance(model, FlashModel)
    return model


def check_same_outputs(actual: nn.Module, expected: nn.Module) -> None:
    torch.manual_seed(1)
    for seq_len in (1, 16, 40):
        input_ids = torch.randint(17, (2, seq_len))
        logits = expected(input_ids)
        torch.testing.assert_close(actual(input_ids), logits, rtol=0, atol=1e-5 * logits.abs().max().item())


def check_error(action: Callable[[], object], error: type[FlashExportError], *fragments: str) -> None:
    """Check the kind of the error, that its message has every fragment, and that it is one line."""
    with pytest.raises(error) as caught:
        action()
    assert caught.type is error
    message = str(caught.value)
    assert [fragment for fragment in fragments if fragment not in message] == [], message
    assert "\n" not in message


def save(state: Any, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: tensor.clone() for name, tensor in state.items()}, path)
    else:
        torch.save(state, path)
    return path


def change_config(folder: Path, changes: dict[str, Any]) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **changes}))


# --- flash-pytorch's own files


@pytest.mark.peer
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "net.", "module._orig_mod.net."])
def test_library_checkpoint_gives_the_library_outputs(
    library: nn.Module, tmp_path: Path, prefix: str, suffix: str
) -> None:
    tensors = {prefix + name: tensor for name, tensor in library.state_dict().items()}
    path = save(tensors, tmp_path / f"model{suffix}")
    checkpoint = load_checkpoint(path, family="flash", config=HIDDEN)
    assert checkpoint.model.config == CONFIG
    assert checkpoint.folder is None
    assert checkpoint.provenance == {
        "source": path.name,
        "format": "flash-pytorch",
        "sha256": sha256(path.read_bytes()).hexdigest(),
    }
    check_same_outputs(checkpoint.model, library)


@pytest.mark.peer
def test_autoregressive_wrapper_is_unwrapped(library: nn.Module, tmp_path: Path) -> None:
    wrappers = pytest.importorskip("flash_pytorch.autoregressive_wrapper", reason="flash-pytorch is not installed")
    wrapper = torch.nn.DataParallel(wrappers.AutoregressiveWrapper(library))
    assert all(name.startswith("module.net.") for name in wrapper.state_dict())
    check_same_outputs(load_foreign(save(wrapper.state_dict(), tmp_path / "model.pt")), library)


@pytest.mark.peer
@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_training_checkpoint_is_unwrapped(library: nn.Module, tmp_path: Path, key: str) -> None:
    values = {"epoch": 3, key: library.state_dict(), "optimizer": {"lr": 1e-3}}
    check_same_outputs(load_foreign(save(values, tmp_path / "model.pt")), library)


@pytest.mark.peer
def test_old_pickle_format_is_read(library: nn.Module, tmp_path: Path) -> None:
    torch.save(library.state_dict(), tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    check_same_outputs(load_foreign(tmp_path / "model.pt"), library)


@pytest.mark.peer
def test_left_out_arguments_have_the_library_defaults(tmp_path: Path) -> None:
    flash_pytorch = pytest.importorskip("flash_pytorch", reason="flash-pytorch is not installed")
    theirs = flash_pytorch.FLASHTransformer(dim=8, num_tokens=17, depth=1).eval()
    path = save(theirs.state_dict(), tmp_path / "model.pt")
    checkpoint = load_checkpoint(path, family="flash", assume_defaults=True)
    ours = checkpoint.model
    assert checkpoint.imported.assumed == {
        "group_size": 256,
        "causal": False,
        "shift_tokens": True,
        "laplace_attn_fn": False,
        "reduce_group_non_causal_attn": True,
        "library_version": "0.1.9",
    }
    check_same_outputs(ours, theirs)
    input_ids = torch.randint(17, (1, 300))  # more than one of the default chunks
    torch.testing.assert_close(ours(input_ids), theirs(input_ids))


def test_arguments_that_agree_with_the_weights_are_accepted(state: StateDict, tmp_path: Path) -> None:
    path = save(state, tmp_path / "model.pt")
    arguments = {**SIZES, **HIDDEN, "norm_type": "scalenorm", "attn_dropout": 0.1, "add_residual": True}
    assert load_foreign(path, arguments).config == CONFIG


def test_gau_stack_is_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GauModel(GAU_CONFIG)
    path = save(model.state_dict(), tmp_path / "model.pt")
    loaded = load_checkpoint(path, family="gau", assume_defaults=True).model
    assert loaded.config == GAU_CONFIG
    check_same_outputs(loaded, model)


# --- our own folders


@pytest.mark.parametrize("model", [FlashModel(CONFIG), GauModel(GAU_CONFIG)], ids=lambda model: model.config.model_type)
def test_saved_model_is_loaded_unchanged(model: FlashModel | GauModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "a" / "b")
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == ["config.json", "model.safetensors"]
    loaded = load_pretrained(tmp_path / "a" / "b")
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    expected = model.state_dict()
    assert list(loaded.state_dict()) == list(expected)
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_storage_keeps_the_frequencies(tmp_path: Path, dtype: torch.dtype) -> None:
    model = FlashModel(CONFIG)
    model.save_pretrained(tmp_path, dtype)
    buffers = dict(model.named_buffers())
    assert sorted(buffers) == ["abs_pos_emb.inv_freq", "rotary_pos_emb.freqs"]
    stored = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for name, tensor in stored.items() if name not in buffers} == {dtype}
    loaded = load_pretrained(tmp_path).state_dict()
    for name, tensor in model.state_dict().items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], tensor if name in buffers else tensor.to(dtype).float()), name
    assert any(not torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


def test_fields_of_a_folder_are_replaced(folder: Path) -> None:
    loaded = load_checkpoint(folder, config={"chunk_size": 64, "shift_tokens": True})
    assert loaded.folder == folder
    assert loaded.model.config.to_dict() == {**CONFIG.to_dict(), "chunk_size": 64, "shift_tokens": True}


def test_full_disk_while_saving(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("flash_export.models.base.save_file", fail)
    check_error(
        lambda: FlashModel(CONFIG).save_pretrained(tmp_path), CheckpointError, "cannot write", "No space left on device"
    )


# --- files that cannot be read


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_missing_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    check_error(lambda: load_foreign(path), CheckpointError, f"model{suffix} does not exist; give a checkpoint folder")


def test_unknown_suffix(tmp_path: Path) -> None:
    (tmp_path / "model.h5").write_bytes(b"x")
    check_error(lambda: load_foreign(tmp_path / "model.h5"), CheckpointError, "suffix '.h5'", ".safetensors, .pt")


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_pickle(state: StateDict, tmp_path: Path, legacy: bool, fraction: float) -> None:
    path = tmp_path / "model.pt"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    check_error(lambda: load_foreign(path), CheckpointError, "model.pt is ", "save ", " again")


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.01, 0.3, 0.9, 0.9999])
def test_truncated_safetensors(state: StateDict, tmp_path: Path, fraction: float) -> None:
    path = save(state, tmp_path / "model.safetensors")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    check_error(lambda: load_foreign(path), CheckpointError, "is not a whole safetensors file", "copy or save it again")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 100, 10_000])
def test_random_bytes(tmp_path: Path, suffix: str, size: int) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(random.Random(size).randbytes(size))
    check_error(lambda: load_foreign(path), CheckpointError, f"model{suffix} is ", " again")


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    form=st.sampled_from(("zip.pt", "legacy.pt", "model.safetensors")),
    changes=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_damaged_bytes_are_a_checkpoint_error_or_harmless(
    state: StateDict, tmp_path: Path, form: str, changes: list[tuple[int, int]]
) -> None:
    path = tmp_path / form
    if form == "legacy.pt":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    else:
        save(state, path)
    data = bytearray(path.read_bytes())
    for position, value in changes:
        data[position] = value
    path.write_bytes(data)
    with contextlib.suppress(FlashExportError):
        load_foreign(path)


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("write", [torch.save, lambda values, path: path.write_bytes(pickle.dumps(values))])
@pytest.mark.parametrize("place", ["alone", "beside the weights", "as a name"])
def test_pickle_that_would_run_code_does_not(
    state: StateDict, tmp_path: Path, place: str, write: Callable[[object, Path], object]
) -> None:
    bomb = Bomb(tmp_path / "exploded")
    write({"alone": bomb, "beside the weights": {**state, "x": bomb}, "as a name": {bomb: 1}}[place], tmp_path / "m.pt")
    check_error(lambda: load_foreign(tmp_path / "m.pt"), CheckpointError, "never loaded because they can run code")
    assert not (tmp_path / "exploded").exists()
    pickle.loads(pickle.dumps(bomb)).close()
    assert (tmp_path / "exploded").exists(), "the bomb is a dud, so this test shows nothing"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "holds dict, not a state dict; save model.state_dict()"),
        ([torch.ones(1)], "holds list, not a state dict"),
        (torch.ones(1), "holds Tensor, not a state dict"),
        ({"a": 1}, "holds no tensors; save model.state_dict()"),
        ({"a": {"b": torch.ones(1)}}, "no matrix 'token_emb.weight' in the checkpoint (found a.b)"),
        ({3: [torch.ones(1)]}, "no matrix 'token_emb.weight' in the checkpoint (found 3.0)"),
        ({"a": torch.ones(1)}, "no matrix 'token_emb.weight' in the checkpoint (found a)"),
    ],
)
def test_pickle_of_something_else(tmp_path: Path, values: object, message: str) -> None:
    path = save(values, tmp_path / "model.pt")
    check_error(lambda: load_foreign(path), CheckpointError, message)


# --- tensors that do not fit


def test_missing_and_extra_and_misshapen_tensors_are_named(state: StateDict, tmp_path: Path) -> None:
    changed = dict(state)
    del changed["layers.1.to_out.bias"], changed["to_logits.1.weight"]
    changed["layers.1.extra"] = torch.ones(2)
    changed["layers.0.to_qk.0.bias"] = torch.ones(3)
    path = save(changed, tmp_path / "model.safetensors")
    check_error(
        lambda: load_foreign(path),
        CheckpointError,
        "2 missing (layers.1.to_out.bias, to_logits.1.weight)",
        "1 unexpected (layers.1.extra)",
        "1 misshapen (layers.0.to_qk.0.bias (3,) instead of (20,))",
        "correct the config or give the right file",
    )


def test_long_lists_of_names_are_cut(state: StateDict, tmp_path: Path) -> None:
    changed = {**state, **{f"extra.{index}": torch.ones(1) for index in range(10)}}
    path = save(changed, tmp_path / "model.safetensors")
    check_error(lambda: load_foreign(path), CheckpointError, "10 unexpected (extra.0, ", "extra.5 and 4 more)")


@pytest.mark.parametrize("name", ["token_emb.weight", "layers.0.to_hidden.0.weight", "layers.0.to_qk.0.weight"])
def test_tensors_that_tell_the_sizes_are_missing_or_of_another_rank(
    state: StateDict, tmp_path: Path, name: str
) -> None:
    for tensors in (
        {other: tensor for other, tensor in state.items() if other != name},
        {**state, name: torch.ones(3)},
    ):
        path = save(tensors, tmp_path / "model.safetensors")
        check_error(lambda path=path: load_foreign(path), CheckpointError, f"no matrix '{name}' in the checkpoint")  # type: ignore[misc]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(state: StateDict, tmp_path: Path, value: float) -> None:
    weight = state["layers.1.to_out.weight"].clone()
    weight[3, 5] = value
    path = save({**state, "layers.1.to_out.weight": weight}, tmp_path / "model.pt")
    check_error(lambda: load_foreign(path), CheckpointError, "layers.1.to_out.weight holds NaN or infinite values")


def test_float64_weights_too_large_for_fp32(state: StateDict, tmp_path: Path) -> None:
    weight = state["layers.1.to_out.weight"].double() + 1e300
    path = save({**state, "layers.1.to_out.weight": weight}, tmp_path / "model.pt")
    check_error(lambda: load_foreign(path), CheckpointError, "layers.1.to_out.weight holds NaN or infinite values")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64])
def test_weights_that_are_not_floating_point(state: StateDict, tmp_path: Path, dtype: torch.dtype) -> None:
    changed = {**state, "layers.0.to_out.bias": torch.ones(12, dtype=dtype)}
    path = save(changed, tmp_path / "model.pt")
    check_error(
        lambda: load_foreign(path), CheckpointError, f"layers.0.to_out.bias is {dtype}; weights must be floating point"
    )


@pytest.mark.parametrize(("place", "layout"), [("meta", "strided"), ("cpu", "sparse_coo")])
def test_weights_without_plain_values(state: StateDict, tmp_path: Path, place: str, layout: str) -> None:
    weight = state["layers.0.to_out.weight"].to(place)
    weight = weight if layout == "strided" else weight.to_sparse()
    path = save({**state, "layers.0.to_out.weight": weight}, tmp_path / "model.pt")
    check_error(
        lambda: load_foreign(path),
        CheckpointError,
        f"layers.0.to_out.weight holds no plain values ({place} device, torch.{layout})",
    )


def test_rotary_tables_that_differ(state: StateDict, tmp_path: Path) -> None:
    name = "layers.1.rotary_pos_emb.freqs"
    path = save({**state, name: state[name] * 2}, tmp_path / "model.pt")
    check_error(
        lambda: load_foreign(path), CheckpointError, f"{name} differs from layers.0.rotary_pos_emb.freqs", "shares one"
    )


# --- arguments of a foreign file


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 16}, "dim=16, but the weights say 12; correct it or leave it out"),
        ({"depth": 3}, "depth=3, but the weights say 2"),
        ({"num_tokens": 18}, "num_tokens=18, but the weights say 17"),
        ({"query_key_dim": 128}, "query_key_dim=128, but the weights say 20"),
        ({"norm_type": "layernorm"}, "norm_type='layernorm', but the weights say 'scalenorm'"),
        ({"expansion_factor": 2}, "expansion_factor=2 means 24 hidden channels, the weights have 18"),
        ({"expansion_factor": "two"}, "expansion_factor='two' is not a number"),
        ({"expansion_factor": float("inf")}, "expansion_factor=inf is not a number"),
        ({"expansion_factor": float("nan")}, "expansion_factor=nan is not a number"),
        ({"chunk_size": 16}, "unknown argument 'chunk_size'; flash-pytorch's arguments are group_size, causal"),
        ({"causal": 1}, "causal=1 is not a boolean; use true or false"),
        ({"shift_tokens": "yes"}, "shift_tokens='yes' is not a boolean"),
        ({"group_size": 0}, "group_size=0 is not usable; use a whole number from 1"),
        ({"group_size": -3}, "group_size=-3 is not usable"),
        ({"group_size": 1.5}, "group_size=1.5 is not usable"),
        ({"group_size": True}, "group_size=True is not usable"),
        ({"group_size": "a=b"}, "group_size='a=b' is not usable"),
        ({"laplace_attn_fn": "laplace"}, "laplace_attn_fn='laplace' is not a boolean"),
        ({"reduce_group_non_causal_attn": 0}, "reduce_group_non_causal_attn=0 is not a boolean"),
        ({"add_residual": False}, "add_residual=False is not supported"),
    ],
)
def test_arguments_that_cannot_be(state: StateDict, tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    path = save(state, tmp_path / "model.pt")
    check_error(lambda: load_foreign(path, {**HIDDEN, **arguments}), ConfigError, message)


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("layers.0.to_qk.0.weight", 1, "query_key_dim=1 is too narrow"),
        ("layers.0.to_qk.0.weight", 0, "query_key_dim=0 is not usable"),
        ("token_emb.weight", 0, "num_tokens=0 is not usable"),
    ],
)
def test_weights_of_an_impossible_width_are_named_as_the_argument(
    state: StateDict, tmp_path: Path, name: str, rows: int, message: str
) -> None:
    path = save({**state, name: torch.ones(rows, 12)}, tmp_path / "model.pt")
    check_error(lambda: load_foreign(path), ConfigError, message)


def test_group_size_belongs_to_flash_alone(tmp_path: Path) -> None:
    path = save(GauModel(GAU_CONFIG).state_dict(), tmp_path / "model.pt")
    check_error(
        lambda: load_checkpoint(path, family="gau", config={"group_size": 16}, assume_defaults=True),
        ConfigError,
        "unknown argument 'group_size'",
    )


def test_foreign_file_needs_a_config(state: StateDict, tmp_path: Path) -> None:
    path = save(state, tmp_path / "model.pt")
    check_error(
        lambda: load_checkpoint(path),
        ConfigError,
        "weights do not tell group_size, causal, shift_tokens, laplace_attn_fn, reduce_group_non_causal_attn",
        "--config FILE.json or --set NAME=VALUE (--set group_size=256)",
        "--assume-defaults",
    )
    check_error(
        lambda: load_checkpoint(path, family="mamba", config={}),
        ConfigError,
        "unknown model family 'mamba'; this version knows flash, gau",
    )


@pytest.mark.parametrize(("family", "wrong"), [("flash", "gau"), ("gau", "flash")])
def test_weights_of_the_other_family(tmp_path: Path, family: str, wrong: str) -> None:
    model = FlashModel(CONFIG) if family == "flash" else GauModel(GAU_CONFIG)
    path = save(model.state_dict(), tmp_path / "model.pt")
    check_error(
        lambda: load_checkpoint(path, family=wrong, assume_defaults=True), CheckpointError, "missing (", "unexpected ("
    )


def test_absurd_layer_number_is_refused_before_layers_are_built(state: StateDict, tmp_path: Path) -> None:
    path = save({**state, "layers.999999999.norm.g": torch.ones(1)}, tmp_path / "model.pt")
    check_error(lambda: load_foreign(path), CheckpointError, "tensors cannot be those of 1000000000 layers")


# --- config.json of a folder


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "config.json is not JSON"),
        (b"{", "config.json is not JSON"),
        (b"\xff", "config.json is not JSON"),
        (b"[" * 100_000, "config.json is not JSON"),
        (b"[]", "config.json holds a list, not a JSON object; correct it"),
        (b'"flash"', "config.json holds text, not a JSON object"),
    ],
)
def test_config_that_is_no_json_object(folder: Path, content: bytes, message: str) -> None:
    (folder / "config.json").write_bytes(content)
    check_error(lambda: load_pretrained(folder), CheckpointError, message)


def test_files_missing_from_a_folder(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    check_error(lambda: load_pretrained(folder), CheckpointError, "model.safetensors does not exist")
    (folder / "config.json").unlink()
    check_error(lambda: load_pretrained(folder), CheckpointError, "has no readable config.json (No such file")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "unknown model family 'mamba'; this version knows flash, gau"),
        ({"model_type": None}, "unknown model family None"),
        ({"model_type": ["flash"]}, "unknown model family ['flash']"),
        ({"heads": 8}, "unknown config field heads for model_type 'flash'; known fields: vocab_size, dim"),
        ({"dim": 0}, "dim=0 is not usable; use a whole number from 1"),
        ({"dim": 13}, "dim=13 is odd"),
        ({"dim": 12.0}, "dim=12.0 is not usable"),
        ({"dim": "12"}, "dim='12' is not usable"),
        ({"dim": True}, "dim=True is not usable"),
        ({"dim": 10**30}, "dim=1000000000000000000000000000000 is not usable"),
        ({"causal": "true"}, "causal='true' is not a boolean; use true or false"),
        ({"norm_type": "rmsnorm"}, "norm_type='rmsnorm' is unknown; use one of scalenorm, layernorm"),
        ({"attention_fn": ["relu2"]}, "attention_fn=['relu2'] is unknown"),
        ({"mask_divisor": None}, "mask_divisor=None is unknown; use one of valid, padded"),
    ],
)
def test_config_with_a_bad_value(folder: Path, changes: dict[str, Any], message: str) -> None:
    change_config(folder, changes)
    check_error(lambda: load_pretrained(folder), ConfigError, message)


@pytest.mark.parametrize("name", ["vocab_size", "dim", "depth", "hidden_dim"])
def test_config_that_lacks_a_field(folder: Path, name: str) -> None:
    values = json.loads((folder / "config.json").read_text())
    del values[name]
    (folder / "config.json").write_text(json.dumps(values))
    check_error(lambda: load_pretrained(folder), ConfigError, f"lacks {name}; add it to config.json")


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"dim": 14}, ["misshapen (token_emb.weight (17, 12) instead of (17, 14)"]),
        ({"depth": 3}, ["10 missing (layers.2.norm.g, ", "and 4 more)"]),
        ({"depth": 1}, ["10 unexpected (layers.1.norm.g, "]),
        ({"depth": 2**31 - 1}, ["tensors cannot be those of 2147483647 layers"]),
        ({"norm_type": "layernorm"}, ["4 missing (layers.0.norm.weight, ", "2 unexpected (layers.0.norm.g, "]),
        ({"qk_dim": 16}, ["rotary_pos_emb.freqs (10,) instead of (8,)", "layers.0.to_qk.0.weight (20, 12)"]),
    ],
)
def test_config_that_contradicts_the_weights(folder: Path, changes: dict[str, Any], fragments: list[str]) -> None:
    change_config(folder, changes)
    check_error(lambda: load_pretrained(folder), CheckpointError, *fragments)


def test_family_that_contradicts_the_folder(folder: Path) -> None:
    check_error(
        lambda: load_checkpoint(folder, family="gau"), ConfigError, "--family gau, but", "config.json says 'flash'"
    )
    check_error(
        lambda: load_checkpoint(folder, config={"model_type": "gau"}),
        ConfigError,
        "model_type='gau', but",
        "config.json says 'flash'",
    )
