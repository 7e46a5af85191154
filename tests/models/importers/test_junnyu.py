"""Importing JunnYu's models: their names, what weights do not tell, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from flash_export.errors import CheckpointError, ConfigError
from flash_export.models.checkpoint import load_checkpoint
from flash_export.models.importers.arguments import GivenArguments
from flash_export.models.importers.junnyu import import_flash_quad, import_junnyu_flash
from tests.models.junnyu_names import FLASH, QUAD, make_flash, make_flash_quad, name_flash, name_flash_quad

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from flash_export.models.importers.arguments import ImportedModel

    Tensors = dict[str, Tensor]

# The config.json that transformers 4.46 writes for the library's FLASHQuadConfig, in small.
CONFIG: dict[str, Any] = {
    "_attn_implementation_autoset": True,
    "architectures": ["FLASHQuadForMaskedLM"],
    "classifier_dropout": 0.1,
    "dropout": 0.0,
    "expansion_factor": 1.5,
    "gradient_checkpointing": False,
    "hidden_act": "silu",
    "hidden_size": 8,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 16,
    "model_type": "flash_quad",
    "norm_type": "scale_norm",
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "s": 6,
    "torch_dtype": "float32",
    "transformers_version": "4.46.3",
    "type_vocab_size": 2,
    "vocab_size": 17,
}
ASKED = {"hidden_act": "silu", "layer_norm_eps": 1e-5}


@pytest.fixture
def masked_lm() -> Tensors:
    return name_flash_quad(make_flash_quad(QUAD))


def drop_shared(tensors: Tensors) -> Tensors:
    """Return what is left where shared memory is stored once."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("cls.predictions.decoder.")}


def drop_buffers(tensors: Tensors) -> Tensors:
    """Return the parameters alone."""
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(("position_ids", "_embeddings"))}


LAYOUTS: dict[str, Callable[[Tensors], Tensors]] = {
    "whole": lambda tensors: tensors,
    "without what is shared": drop_shared,
    "without buffers": drop_buffers,
}


def read(tensors: Tensors, arguments: dict[str, Any], **given: Any) -> ImportedModel:
    return import_flash_quad(tensors, GivenArguments(arguments, **given))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("wrapper", ["", "module."])
@pytest.mark.parametrize("norm_type", ["scale_norm", "layer_norm"])
def test_every_layout_is_the_model(layout: str, wrapper: str, norm_type: str, tmp_path: Path) -> None:
    model = make_flash_quad(replace(QUAD, norm_type=norm_type.replace("_", ""), norm_eps=0.1))
    tensors = LAYOUTS[layout](name_flash_quad(model))
    torch.save({f"{wrapper}{name}": tensor for name, tensor in tensors.items()}, tmp_path / "pytorch_model.bin")
    config = {**CONFIG, "norm_type": norm_type, "layer_norm_eps": 0.1}
    loaded = load_checkpoint(tmp_path / "pytorch_model.bin", family="flash_quad", config=config)
    assert loaded.model.config == model.config
    assert loaded.provenance["format"] == "FLASHQuad_pytorch"
    assert loaded.imported.assumed == {}
    assert loaded.imported.notes == (("names are under module in the file",) if wrapper else ())
    expected = model.state_dict()
    assert loaded.model.state_dict().keys() == expected.keys()
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounded_buffers_are_still_those_of_their_formula(masked_lm: Tensors, dtype: torch.dtype) -> None:
    rounded = {name: x.to(dtype) if x.is_floating_point() else x for name, x in masked_lm.items()}
    assert read(rounded, ASKED).config == QUAD


def test_arguments_that_weights_do_not_tell_are_asked_for_or_assumed(masked_lm: Tensors) -> None:
    assert read(masked_lm, ASKED).assumed == {}
    assert read(masked_lm, {"layer_norm_eps": 0.5}, assume_defaults=True).assumed == {"hidden_act": "silu"}
    imported = read(masked_lm, {}, assume_defaults=True)
    assert (imported.assumed, imported.config) == (ASKED, QUAD)
    with pytest.raises(ConfigError, match=r"weights do not tell hidden_act, layer_norm_eps; give the config\.json"):
        read(masked_lm, {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act='relu' is not supported; only models of hidden_act silu or swish are"),
        ({"model_type": "flash"}, "model_type='flash' is not supported; only models of model_type flash_quad are"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False is not supported"),
        ({"hidden_size": 9}, "hidden_size=9, but the weights say 8; correct it or leave it out"),
        ({"max_position_embeddings": 512}, "max_position_embeddings=512, but the weights say 16"),
        ({"norm_type": "layer_norm"}, "norm_type='layer_norm', but the weights say 'scale_norm'"),
        ({"expansion_factor": 2}, "expansion_factor=2 means 16 hidden channels, the weights have 12; correct it"),
        ({"expansion_factor": "2"}, "expansion_factor='2' is not a number"),
        ({"layer_norm_eps": "1e-5"}, "layer_norm_eps='1e-5' is not a number"),
        ({"layer_norm_eps": 0.0}, "norm_eps=0.0 is not usable; use a number above 0"),
        ({"hiden_act": "silu"}, r"unknown argument 'hiden_act'; FLASHQuad's are .*\(did you mean hidden_act\?\)"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(masked_lm: Tensors, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(masked_lm, {**CONFIG, **arguments})


def test_a_release_is_not_asked_for(masked_lm: Tensors) -> None:
    with pytest.raises(ConfigError, match=r"library_version=1, but the weights of FLASHQuad are .*without a release"):
        read(masked_lm, CONFIG, library_version="1")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "cls.predictions.decoder.weight",
            lambda x: x + 1,
            "the decoder differs from the word embeddings; FLASHQ",
        ),
        ("cls.predictions.decoder.bias", lambda x: x + 1, "cls.predictions.bias differs from cls.*decoder.bias"),
        ("flash_quad.embeddings.position_ids", lambda x: x + 1, "position_ids are not 0 to 15; only models that count"),
        ("flash_quad.embeddings.scaledsin_embeddings", lambda x: x + 0.01, "are not the sines and cosines that"),
        ("flash_quad.embeddings.scaledsin_embeddings", lambda x: x[1:], "are not the sines and cosines that"),
        ("flash_quad.embeddings.scaledsin_embeddings", lambda x: x * torch.nan, "are not the sines and cosines that"),
        ("flash_quad.encoder.layer.0.w", lambda _: torch.ones(1025), "the weights have 513 positions; .* 2 to 512"),
        ("flash_quad.encoder.layer.0.w", lambda _: torch.ones(1), "the weights have 1 positions; .* 2 to 512"),
        ("flash_quad.encoder.layer.0.w", lambda x: x[None], r"no vector for 'layers\.0\.w' in the checkpoint \(found "),
        ("flash_quad.encoder.layer.0.o.weight", lambda x: x[0], "no matrix for 'layers.0.o.weight' in the"),
    ],
)
def test_weights_of_another_kind_of_model_are_refused(masked_lm: Tensors, name: str, change: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read({**masked_lm, name: change(masked_lm[name])}, ASKED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classifier.weight": torch.ones(2, 8)}, r"1 unexpected \(classifier.weight\)"),
        ({"layers.1.w": torch.ones(31)}, r"layers\.1\.w is there twice, by two names; save the state dict"),
        ({"flash_quad.encoder.layer.1.c": torch.ones(1, 6)}, r"1 unexpected \(flash_quad.encoder.layer.1.c\)"),
        ({"cls.predictions.bias": None, "cls.predictions.decoder.bias": None}, r"1 missing \(logit_bias\)"),
        ({"cls.predictions.transform.dense.weight": None}, r"1 missing \(transform.weight\)"),
        ({"flash_quad.encoder.layer.1.LayerNorm.scala": None}, r"1 missing \(layers.1.norm.g\)"),
        ({"flash_quad.encoder.layer.1.w": torch.ones(30)}, r"1 misshapen \(layers.1.w \(30,\) instead of \(31,\)\)"),
        ({"flash_quad.encoder.layer.2.o.bias": torch.ones(8)}, r"7 missing \(layers.2.gamma, layers.2.beta"),
        (
            {"flash_quad.encoder.layer.1.o.bias": torch.ones(8).long()},
            "o.bias is torch.int64; weights must be float",
        ),
    ],
)
def test_names_are_matched_strictly(
    masked_lm: Tensors, change: dict[str, Tensor | None], message: str, tmp_path: Path
) -> None:
    tensors = {name: tensor for name, tensor in {**masked_lm, **change}.items() if tensor is not None}
    torch.save(tensors, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "model.pt", family="flash_quad", config=ASKED)


# The config.json that transformers 4.46 writes for the library's FLASHConfig, in small.
FLASH_CONFIG: dict[str, Any] = {
    "_attn_implementation_autoset": True,
    "architectures": ["FLASHForMaskedLM"],
    "classifier_dropout": 0.1,
    "dropout": 0.0,
    "expansion_factor": 1.5,
    "gradient_checkpointing": False,
    "group_size": 4,
    "hidden_size": 8,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 512,
    "model_type": "flash",
    "norm_type": "scalenorm",
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "query_key_dim": 6,
    "torch_dtype": "float32",
    "transformers_version": "4.46.3",
    "vocab_size": 17,
}
FLASH_ASKED = {"group_size": 4, "layer_norm_eps": 1e-5}


@pytest.fixture
def flash_masked_lm() -> Tensors:
    return name_flash(make_flash(FLASH))


def read_flash(tensors: Tensors, arguments: dict[str, Any], **given: Any) -> ImportedModel:
    return import_junnyu_flash(tensors, GivenArguments(arguments, **given))


@pytest.mark.parametrize("wrapper", ["", "module."])
@pytest.mark.parametrize("norm_type", ["scalenorm", "layernorm"])
@pytest.mark.parametrize("is_tied_twice", [True, False])
def test_flash_is_a_model_of_family_flash(wrapper: str, norm_type: str, is_tied_twice: bool, tmp_path: Path) -> None:
    model = make_flash(replace(FLASH, norm_type=norm_type))
    tensors = {f"{wrapper}{name}": tensor for name, tensor in name_flash(model).items()}
    if not is_tied_twice:
        del tensors[f"{wrapper}cls.predictions.decoder.weight"]
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    config = {**FLASH_CONFIG, "norm_type": norm_type}
    loaded = load_checkpoint(tmp_path / "pytorch_model.bin", family="flash", config=config)
    assert loaded.model.config == model.config
    assert loaded.provenance["format"] == "FLASHQuad_pytorch"
    assert loaded.imported.assumed == {}
    expected = model.state_dict()
    assert loaded.model.state_dict().keys() == expected.keys()
    for name, tensor in loaded.model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=2e-7 if name.endswith("inv_freq") else 0, atol=0)


def test_flash_divides_as_the_library_does_unless_told_otherwise(flash_masked_lm: Tensors) -> None:
    assert read_flash(flash_masked_lm, FLASH_ASKED).config == FLASH
    valid = read_flash(flash_masked_lm, {**FLASH_ASKED, "mask_divisor": "valid"}).config
    assert valid == replace(FLASH, mask_divisor="valid")


def test_flash_asks_for_what_weights_do_not_tell(flash_masked_lm: Tensors) -> None:
    imported = read_flash(flash_masked_lm, {}, assume_defaults=True)
    assert imported.assumed == {"group_size": 256, "layer_norm_eps": 1e-5}
    assert imported.config == replace(FLASH, chunk_size=256)
    with pytest.raises(ConfigError, match=r"weights do not tell group_size, layer_norm_eps; give the config\.json"):
        read_flash(flash_masked_lm, {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer_norm_eps": 1e-12}, "layer_norm_eps=1e-12 is not supported; only models of layer_norm_eps 1e-05 are"),
        ({"model_type": "flash_quad"}, "model_type='flash_quad' is not supported; only models of model_type flash are"),
        ({"query_key_dim": 7}, "query_key_dim=7, but the weights say 6; correct it or leave it out"),
        ({"norm_type": "layernorm"}, "norm_type='layernorm', but the weights say 'scalenorm'"),
        ({"expansion_factor": 2}, "expansion_factor=2 means 16 hidden channels, the weights have 12"),
        ({"mask_divisor": "512"}, "mask_divisor='512' is unknown; use one of valid, padded"),
        ({"causal": True}, "unknown argument 'causal'; FLASH's are .*; and ours is mask_divisor"),
    ],
)
def test_arguments_that_do_not_fit_flash_are_refused(
    flash_masked_lm: Tensors, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        read_flash(flash_masked_lm, {**FLASH_CONFIG, **arguments})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"cls.predictions.decoder.weight": torch.ones(17, 8)},
            "the decoder differs from the word embeddings; FLASH",
        ),
        ({"flash.encoder.layers.1.rotary_pos_emb.freqs": torch.ones(3)}, "FLASH shares one table between all layers"),
        (
            {"flash.encoder.layers.0.to_out.weight": None},
            r"no matrix for 'layers\.0\.to_out\.weight' in the",
        ),
        ({"classifier.weight": torch.ones(2, 8)}, r"1 unexpected \(classifier.weight\)"),
        ({"flash.encoder.layers.1.qk_offset_scale.bias": None}, r"1 missing \(layers.1.qk_offset_scale.beta\)"),
        ({"flash.encoder.layers.1.to_out.bias": torch.ones(7)}, r"1 misshapen .*\(7,\) instead of \(8,\)"),
        ({"cls.predictions.decoder.bias": None}, r"1 missing \(to_logits.1.bias\)"),
    ],
)
def test_names_of_flash_are_matched_strictly(
    flash_masked_lm: Tensors, change: dict[str, Tensor | None], message: str, tmp_path: Path
) -> None:
    tensors = {name: tensor for name, tensor in {**flash_masked_lm, **change}.items() if tensor is not None}
    torch.save(tensors, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "model.pt", family="flash", config=FLASH_ASKED)
