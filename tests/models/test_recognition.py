"""The family of a file is told by the names of its tensors where these can mean no other; what told it is recorded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from flash_export.errors import ConfigError
from flash_export.models.checkpoint import load_checkpoint
from flash_export.models.flash import FlashConfig, FlashModel
from flash_export.models.gau import GauConfig, GauModel
from flash_export.models.gau_alpha import GauAlphaConfig, GauAlphaModel
from flash_export.models.registry import FAMILIES, recognise_family
from tests.models.clearvoice_release import import_clearvoice
from tests.models.gau_alpha_release import import_gau_alpha
from tests.models.junnyu_names import FLASH, QUAD, make_flash, make_flash_quad, name_flash, name_flash_quad
from tests.models.mmpose_release import import_mmpose

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

SIZES: dict[str, Any] = {"vocab_size": 11, "dim": 8, "depth": 1, "hidden_dim": 16, "qk_dim": 4}
NAMES = {
    "flash": "layers.3.qk_offset_scale.gamma",
    "gau": "layers.0.offsetscale.gamma",
    "rtmpose_gau": "head.gau.uv.weight",
    "gau_alpha": "gau_alpha.encoder.layer.0.gau.i_dense.weight",
    "flash_quad": "flash_quad.encoder.layer.11.uv.weight",
    "mossformer2": "mask_net.mdl.intra_mdl.mossformerM.layers.0.to_hidden.mdl.0.g",
}


@pytest.mark.parametrize("family", [name for name, one in FAMILIES.items() if one.told_by])
@pytest.mark.parametrize("prefix", ["", "module.", "state_dict.module."])
def test_a_name_tells_its_family_and_no_other(family: str, prefix: str) -> None:
    name = f"{prefix}{NAMES[family]}"
    assert recognise_family(["epoch", name, "optimizer.state.0"]) == (family, name)


def test_names_of_layouts_that_differ() -> None:
    assert recognise_family(["encoderLayer.0.gau.i_dense.weight"]) == (
        "gau_alpha",
        "encoderLayer.0.gau.i_dense.weight",
    )
    assert recognise_family(["ln.g", "uv.weight"]) == ("rtmpose_gau", "ln.g")


@pytest.mark.peer
def test_all_that_a_library_saves_tells_one_family() -> None:
    """Names of parts may be those of another library's: MossFormer2's attention is a FLASH inside."""
    clearvoice, mmpose, gau_alpha = import_clearvoice(), import_mmpose(), import_gau_alpha()
    flash_pytorch = pytest.importorskip("flash_pytorch", reason="flash-pytorch is not installed")
    sizes = {"dim": 8, "depth": 1, "qk_dim": 4, "fsmn_dim": 4}
    config = gau_alpha.GAUAlphaConfig(vocab_size=5, hidden_size=8, intermediate_size=8, num_hidden_layers=1)
    saved = [
        ("mossformer2", clearvoice.build_enhancement(6, out_channels=5, **sizes).state_dict()),
        ("mossformer2", clearvoice.build_separation(kernel_size=4, **sizes).state_dict()),
        ("gau_alpha", gau_alpha.GAUAlphaForMaskedLM(config).state_dict()),
        ("rtmpose_gau", mmpose.block(3, 8, 8, s=4).state_dict()),
        ("flash", flash_pytorch.FLASHTransformer(num_tokens=5, dim=8, depth=1, query_key_dim=4).state_dict()),
        ("gau", {f"layers.0.{name}": x for name, x in flash_pytorch.GAU(dim=8, query_key_dim=4).state_dict().items()}),
        ("flash_quad", name_flash_quad(make_flash_quad(QUAD))),
        ("flash", name_flash(make_flash(FLASH))),
    ]
    for family, tensors in saved:
        found = recognise_family(tensors)
        assert found is not None, family
        assert found[0] == family


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["encoder.layer.0.attention.self.query.weight"],
        ["xlayers.0.offsetscale.gamma", "layers.x.offsetscale.gamma", "layers.0.offsetscale.gamma.more"],
        [NAMES["flash"], NAMES["gau_alpha"]],
    ],
)
def test_no_name_or_those_of_two_families_tell_none(names: list[str]) -> None:
    assert recognise_family(names) is None


def test_what_told_it_is_in_the_record(tmp_path: Path) -> None:
    torch.save({"model": FlashModel(FlashConfig(**SIZES, chunk_size=8)).state_dict()}, tmp_path / "model.pt")
    found = load_checkpoint(tmp_path / "model.pt", config={"group_size": 8}, assume_defaults=True)
    assert found.model.config.model_type == "flash"
    name = "model.layers.0.qk_offset_scale.gamma"
    assert found.imported.notes[0] == f"taken for family flash, which alone has a {name}; --family names another"
    named = load_checkpoint(tmp_path / "model.pt", family="flash", config={"group_size": 8}, assume_defaults=True)
    assert not any("taken for" in note for note in named.imported.notes)


def test_a_file_of_two_families_asks(tmp_path: Path) -> None:
    both = {"a": FlashModel(FlashConfig(**SIZES)).state_dict(), "b": GauModel(GauConfig(**SIZES)).state_dict()}
    torch.save(both, tmp_path / "model.pt")
    with pytest.raises(ConfigError, match=r"model\.pt does not tell its model family; add --family, one of flash, gau"):
        load_checkpoint(tmp_path / "model.pt")
    found = load_checkpoint(tmp_path / "model.pt", family="gau", weights_key="b", assume_defaults=True)
    assert found.model.config.model_type == "gau"


def save_as_transformers_does(folder: Path, **changes: Any) -> None:
    """Write weights of a GAU-alpha and its config.json."""
    model = GauAlphaModel(GauAlphaConfig(**SIZES))
    names = {
        "token_emb.weight": "gau_alpha.embeddings.word_embeddings.weight",
        "token_type_emb.weight": "gau_alpha.embeddings.token_type_embeddings.weight",
    }
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        layer = "gau_alpha.encoder.layer.0.gau."
        if name == "layers.0.gamma":
            state |= {f"{layer}{head}_scaleoffset.weight": row for head, row in zip("qk", tensor, strict=True)}
        else:
            state[names.get(name, name.replace("layers.0.", layer))] = tensor
    torch.save(state, folder / "pytorch_model.bin")
    config = {
        "model_type": "gau_alpha",
        "architectures": ["GAUAlphaForMaskedLM"],
        "hidden_size": 8,
        "hidden_act": "swish",
        "normalization": "softmax_plus",
        "attention_scale": True,
        "transformers_version": "4.18.0",
    }
    (folder / "config.json").write_text(json.dumps(config | changes))


def test_a_folder_of_transformers_needs_nothing_more(tmp_path: Path) -> None:
    save_as_transformers_does(tmp_path)
    found = load_checkpoint(tmp_path)
    assert found.model.config == GauAlphaConfig(**SIZES)
    assert found.provenance["format"] == "gau-alpha"
    assert found.imported.assumed == {}
    assert found.imported.arguments["hidden_size"] == 8


def test_what_is_given_wins_over_the_config_of_the_folder(tmp_path: Path) -> None:
    save_as_transformers_does(tmp_path, hidden_size=9)
    with pytest.raises(ConfigError, match="hidden_size=9, but the weights say 8"):
        load_checkpoint(tmp_path)
    assert load_checkpoint(tmp_path, config={"hidden_size": 8}).model.config == GauAlphaConfig(**SIZES)
