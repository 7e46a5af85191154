"""Files of weights: checksums, several parts, shared memory."""

from __future__ import annotations

import json
import zipfile
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file, save_model

from flash_export.errors import CheckpointError, ConfigError
from flash_export.models.checkpoint import load_checkpoint, load_pretrained
from flash_export.models.flash import FlashConfig, FlashModel
from flash_export.models.tensor_files import read_weights

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

CONFIG = FlashConfig(17, 12, 2, 18, chunk_size=16, qk_dim=20, causal=True)
ARGUMENTS = {"group_size": 16, "causal": True, "shift_tokens": True, "laplace_attn_fn": False}


@pytest.fixture(scope="module")
def model() -> FlashModel:
    torch.manual_seed(0)
    return FlashModel(CONFIG)


@pytest.fixture(scope="module")
def state(model: FlashModel) -> dict[str, Tensor]:
    """The state dict that flash-pytorch would save."""
    tensors = dict(model.state_dict())
    freqs = tensors.pop("rotary_pos_emb.freqs")
    return {**tensors, **{f"layers.{index}.rotary_pos_emb.freqs": freqs for index in range(CONFIG.depth)}}


def check_loaded(path: Path, expected: FlashModel, **options: Any) -> tuple[str, ...]:
    """Check that foreign weights give the expected tensors, and return the notes."""
    loaded = load_checkpoint(path, family="flash", config=ARGUMENTS, **options)
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name]), name
        assert tensor.is_contiguous()
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return loaded.imported.notes


def check_error(path: Path, *fragments: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_weights(path)
    message = str(caught.value)
    assert [fragment for fragment in fragments if fragment not in message] == [], message
    assert "\n" not in message


# --- checksums


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_one_changed_bit_of_a_weight_is_noticed(tmp_path: Path, state: dict[str, Tensor], place: str) -> None:
    path = tmp_path / "model.pt"
    torch.save(state, path)
    data = bytearray(path.read_bytes())
    values = state["layers.1.to_hidden.0.weight"].numpy().tobytes()
    start = data.find(values)
    data[start + {"first": 0, "middle": len(values) // 2, "last": len(values) - 1}[place]] ^= 1
    path.write_bytes(data)
    torch.load(path, weights_only=True)  # does not notice
    check_error(path, "model.pt is damaged: the checksum of 'model/data/", "copy or save it again")


def test_files_without_checksums_are_read_with_a_note(
    tmp_path: Path, state: dict[str, Tensor], model: FlashModel
) -> None:
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert check_loaded(tmp_path / "old.pt", model) == (
        "old.pt has PyTorch's old format, without checksums: damage to values cannot be noticed",
    )
    torch.serialization.set_crc32_options(compute_crc32=False)
    try:
        torch.save(state, tmp_path / "none.pt")
    finally:
        torch.serialization.set_crc32_options(compute_crc32=True)
    assert check_loaded(tmp_path / "none.pt", model) == (
        "none.pt was saved without checksums: damage to values cannot be noticed",
    )


def test_compressed_archive_is_refused(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "model.pt") as source, zipfile.ZipFile(tmp_path / "small.pt", "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name), zipfile.ZIP_DEFLATED)
    check_error(tmp_path / "small.pt", "small.pt is compressed inside")


# --- several parts


def write_parts(folder: Path, state: dict[str, Tensor], suffix: str) -> Path:
    """Write weights in two parts with their index, as Hugging Face's libraries do."""
    folder.mkdir(exist_ok=True)
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    names = [f"{stem}-{index + 1:05}-of-00002.{suffix}" for index in range(2)]
    places = {name: names[index % 2] for index, name in enumerate(state)}
    for part in names:
        tensors = {name: tensor.clone() for name, tensor in state.items() if places[name] == part}
        save_file(tensors, folder / part) if suffix == "safetensors" else torch.save(tensors, folder / part)
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


def change_index(index: Path, changes: dict[str, Any]) -> None:
    values = json.loads(index.read_text())
    index.write_text(json.dumps({**values, "weight_map": {**values["weight_map"], **changes}}))


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_parts_are_read_by_index_and_by_folder(
    tmp_path: Path, state: dict[str, Tensor], model: FlashModel, suffix: str
) -> None:
    index = write_parts(tmp_path / "parts", state, suffix)
    assert check_loaded(index, model) == ()
    assert check_loaded(index.parent, model) == ()
    loaded = load_checkpoint(index, family="flash", config=ARGUMENTS)
    files = [index, *sorted(path for path in index.parent.iterdir() if path.suffix == f".{suffix}")]
    hashes = [sha256(path.read_bytes()).hexdigest() for path in files]
    assert loaded.provenance["source"] == index.name
    assert loaded.provenance["sha256"] == sha256("\n".join(hashes).encode()).hexdigest()


def test_parts_of_our_own_folder(tmp_path: Path, model: FlashModel) -> None:
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    write_parts(tmp_path, dict(model.state_dict()), "safetensors")
    loaded = load_pretrained(tmp_path)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_folder_without_config_needs_a_family(tmp_path: Path, state: dict[str, Tensor], model: FlashModel) -> None:
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert check_loaded(tmp_path, model) == ()
    with pytest.raises(CheckpointError, match=r"has no readable config\.json"):
        load_checkpoint(tmp_path)


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"token_emb.weight": "../x.safetensors"}, ["names '../x.safetensors', which is no file of its folder"]),
        ({"token_emb.weight": "/etc/passwd"}, ["names '/etc/passwd', which is no file of its folder"]),
        ({"token_emb.weight": ".."}, ["names '..', which is no file of its folder"]),
        ({"token_emb.weight": ""}, ["names '', which is no file of its folder"]),
        ({"token_emb.weight": "a\x00b"}, ["which is no file of its folder"]),
        ({"token_emb.weight": 3}, ["has no weight_map of tensors and files"]),
        ({"token_emb.weight": "gone.safetensors"}, ["names 'gone.safetensors', which does not exist"]),
        ({"token_emb.weight": "model.safetensors.index.json"}, ["another index"]),
        ({"token_emb.weight": SECOND}, [f"{FIRST} holds 'token_emb.weight', but", f"puts it into '{SECOND}'"]),
        ({"more.weight": FIRST}, [f"{FIRST} lacks 'more.weight', which model.safetensors.index.json puts there"]),
    ],
)
def test_index_that_does_not_fit(
    tmp_path: Path, state: dict[str, Tensor], changes: dict[str, Any], fragments: list[str]
) -> None:
    index = write_parts(tmp_path, state, "safetensors")
    change_index(index, changes)
    check_error(index, *fragments)


def test_tensor_in_two_parts_or_in_none(tmp_path: Path, state: dict[str, Tensor]) -> None:
    index = write_parts(tmp_path, state, "bin")
    part = tmp_path / "pytorch_model-00002-of-00002.bin"
    torch.save({**torch.load(part), "token_emb.weight": torch.ones(1)}, part)
    check_error(index, "holds 'token_emb.weight', but", "puts it into 'pytorch_model-00001-of-00002.bin'")
    torch.save({**torch.load(part), "token_emb.weight": torch.ones(1), "x": torch.ones(1)}, part)
    values = json.loads(index.read_text())
    values["weight_map"]["token_emb.weight"] = part.name
    (tmp_path / "pytorch_model-00001-of-00002.bin").unlink()
    index.write_text(json.dumps({"weight_map": {n: p for n, p in values["weight_map"].items() if p == part.name}}))
    check_error(index, "holds 'x', but pytorch_model.bin.index.json does not name it")


@pytest.mark.parametrize("content", [b"", b"[1]", b"{}", b'{"weight_map": {}}', b"\xff", b"[" * 100_000])
def test_index_that_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    check_error(tmp_path / "model.safetensors.index.json", "; save the checkpoint again")


@pytest.mark.parametrize("text", ["weights.pt", "weights.pt\n", "\n  weights.pt \r\n\n"])
def test_folder_names_its_weights(tmp_path: Path, state: dict[str, Tensor], model: FlashModel, text: str) -> None:
    torch.save({"model": state}, tmp_path / "weights.pt")
    torch.save({}, tmp_path / "older.pt")
    (tmp_path / "last_best_checkpoint").write_text(text)
    assert check_loaded(tmp_path, model) == ("names are under model in the file",)
    loaded = load_checkpoint(tmp_path, family="flash", config=ARGUMENTS)
    assert loaded.provenance["sha256"] == sha256((tmp_path / "weights.pt").read_bytes()).hexdigest()
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, tmp_path / "model.safetensors")
    (tmp_path / "last_best_checkpoint").write_text("older.pt")
    check_loaded(tmp_path, model)  # what has a name of its own needs none


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"", "names 0 files, wanted the one"),
        (b"a.pt\nb.pt\n", "names 2 files, wanted the one"),
        (b"../weights.pt", "names '../weights.pt', which is no file of its folder"),
        (b"/etc/passwd", "names '/etc/passwd', which is no file of its folder"),
        (b"..", "names '..', which is no file of its folder"),
        (b"\xff\xfe", "is no text"),
        (b"gone.pt", "gone.pt does not exist"),
    ],
)
def test_folder_that_names_no_weights(tmp_path: Path, content: bytes, fragment: str) -> None:
    (tmp_path / "last_best_checkpoint").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path, family="flash", config=ARGUMENTS)
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def test_name_of_weights_that_is_a_link_out_of_the_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("weights.pt")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "last_best_checkpoint").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="is a link out of its folder"):
        load_checkpoint(tmp_path / "folder", family="flash", config=ARGUMENTS)


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path, state: dict[str, Tensor], model: FlashModel) -> None:
    index = write_parts(tmp_path / "parts", state, "safetensors")
    (index.parent / FIRST).rename(tmp_path / FIRST)
    (index.parent / FIRST).symlink_to(tmp_path / FIRST)
    check_error(index, f"{FIRST} is a link out of its folder, which is not followed; copy the file in its place")
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "w.safetensors")
    (tmp_path / "model" / "model.safetensors").symlink_to(tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="is a link out of its folder"):
        load_pretrained(tmp_path / "model")


# --- shared memory


def test_views_of_one_buffer_are_separated(tmp_path: Path, state: dict[str, Tensor], model: FlashModel) -> None:
    buffer = torch.cat([tensor.flatten() for tensor in state.values()])
    views, start = {}, 0
    for name, tensor in state.items():
        views[name] = buffer[start : start + tensor.numel()].view(tensor.shape)
        start += tensor.numel()
    views["token_emb.weight"] = state["token_emb.weight"].T.contiguous().T  # not contiguous
    torch.save(views, tmp_path / "model.pt")
    check_loaded(tmp_path / "model.pt", model)


def test_expanded_tensor_is_filled(tmp_path: Path, state: dict[str, Tensor]) -> None:
    torch.save({**state, "to_logits.1.bias": torch.ones(1).expand(17)}, tmp_path / "model.pt")
    loaded = load_checkpoint(tmp_path / "model.pt", family="flash", config=ARGUMENTS).model
    assert torch.equal(loaded.state_dict()["to_logits.1.bias"], torch.ones(17))
    loaded.save_pretrained(tmp_path / "saved")


def tie(model: FlashModel) -> FlashModel:
    """Return a model whose head and embedding are one parameter."""
    tied = FlashModel(CONFIG)
    tied.load_state_dict(model.state_dict())
    tied.to_logits[1].weight = tied.token_emb.weight
    return tied


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_tied_model_is_saved_and_read(tmp_path: Path, model: FlashModel, dtype: torch.dtype | None) -> None:
    tied = tie(model)
    tied.save_pretrained(tmp_path, dtype)
    loaded = load_pretrained(tmp_path).state_dict()
    expected = tied.token_emb.weight.detach().to(dtype or torch.float32).float()
    assert torch.equal(loaded["token_emb.weight"], expected)
    assert torch.equal(loaded["to_logits.1.weight"], expected)


def test_tied_state_dict_is_exported_separately(tmp_path: Path, model: FlashModel, state: dict[str, Tensor]) -> None:
    weight = state["token_emb.weight"]
    torch.save({**state, "to_logits.1.weight": weight}, tmp_path / "model.pt")
    notes = check_loaded(tmp_path / "model.pt", tie(model))
    assert notes == ()


def test_tied_weights_that_safetensors_left_out(tmp_path: Path, model: FlashModel) -> None:
    model.save_pretrained(tmp_path)
    save_model(tie(model), str(tmp_path / "model.safetensors"))
    loaded = load_pretrained(tmp_path).state_dict()
    assert torch.equal(loaded["to_logits.1.weight"], model.state_dict()["token_emb.weight"])


# --- options that belong to foreign files


def test_options_that_a_folder_answers_itself(tmp_path: Path, model: FlashModel) -> None:
    model.save_pretrained(tmp_path)
    for options in ({"library_version": "0.1.0"}, {"assume_defaults": True}):
        with pytest.raises(ConfigError, match="leave --library-version and --assume-defaults out"):
            load_checkpoint(tmp_path, **options)
