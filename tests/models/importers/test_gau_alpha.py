"""Importing GAU-alpha: the names of both libraries, what weights do not tell, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from flash_export.errors import CheckpointError, ConfigError
from flash_export.models.checkpoint import load_checkpoint
from flash_export.models.gau_alpha import GauAlphaConfig
from flash_export.models.importers.arguments import GivenArguments
from flash_export.models.importers.gau_alpha import import_gau_alpha
from tests.models.gau_alpha_release import import_gau_alpha as import_release

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from flash_export.models.importers.arguments import ImportedModel

    Tensors = dict[str, Tensor]

pytestmark = pytest.mark.peer

# The config.json of the published model, in small.
CONFIG: dict[str, Any] = {
    "architectures": ["GAUAlphaForMaskedLM"],
    "attention_key_size": 6,
    "attention_probs_dropout_prob": 0.1,
    "attention_scale": True,
    "classifier_dropout": 0.1,
    "embedding_size": 8,
    "gradient_checkpointing": False,
    "hidden_act": "swish",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 8,
    "initializer_range": 0.02,
    "intermediate_size": 12,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "gau_alpha",
    "normalization": "softmax_plus",
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "torch_dtype": "float32",
    "transformers_version": "4.17.0",
    "type_vocab_size": 2,
    "use_bias": False,
    "vocab_size": 17,
}
ASKED = {"hidden_act": "swish", "normalization": "softmax_plus", "attention_scale": True}
OURS = GauAlphaConfig(17, 8, 2, 12, 6)
NAMES = {"token_emb.weight", "token_type_emb.weight"} | {
    f"layers.{index}.{name}" for index in range(2) for name in ("i_dense.weight", "o_dense.weight", "gamma")
}


@pytest.fixture(scope="module")
def theirs() -> Any:
    torch.manual_seed(0)
    gau_alpha = import_release()
    model = gau_alpha.GAUAlphaForMaskedLM(gau_alpha.GAUAlphaConfig(**CONFIG)).eval().requires_grad_(requires_grad=False)
    for parameter in model.parameters():
        parameter.copy_(torch.randn_like(parameter))
    return model


@pytest.fixture
def masked_lm(theirs: Any) -> Tensors:
    return dict(theirs.state_dict())


def to_encoder(masked_lm: Tensors) -> Tensors:
    """Return what the library saves of its encoder alone."""
    prefix = "gau_alpha."
    return {name.removeprefix(prefix): tensor for name, tensor in masked_lm.items() if name.startswith(prefix)}


def drop_tied(masked_lm: Tensors) -> Tensors:
    """Return what transformers saves as safetensors, which holds shared memory once."""
    return {name: tensor for name, tensor in masked_lm.items() if not name.startswith("cls.")}


def to_bert4torch(masked_lm: Tensors) -> Tensors:
    """Return what bert4torch's script ``convert_GAU_alpha.py`` makes of the published weights."""
    encoder = to_encoder(masked_lm)
    tensors = {
        "embeddings.word_embeddings.weight": encoder["embeddings.word_embeddings.weight"],
        "mlmDecoder.weight": encoder["embeddings.word_embeddings.weight"],
        "embeddings.segment_embeddings.weight": encoder["embeddings.token_type_embeddings.weight"],
    }
    for index in range(2):
        gau, theirs = f"encoder.layer.{index}.gau", f"encoderLayer.{index}.gau"
        tensors[f"{theirs}.i_dense.weight"] = encoder[f"{gau}.i_dense.weight"]
        tensors[f"{theirs}.o_dense.weight"] = encoder[f"{gau}.o_dense.weight"]
        pair = (encoder[f"{gau}.q_scaleoffset.weight"], encoder[f"{gau}.k_scaleoffset.weight"])
        tensors[f"{theirs}.offsetscale.gamma"] = torch.stack(pair)
    return tensors


def add_gains(masked_lm: Tensors) -> Tensors:
    """Return what later releases of bert4torch save: gains of the norms that are never trained."""
    gains = ["embeddings.layerNorm.weight", *(f"encoderLayer.{index}.layerNorm1.weight" for index in range(2))]
    return {**to_bert4torch(masked_lm), **{name: torch.ones(8) for name in gains}}


LAYOUTS = {
    "masked language model": lambda tensors: tensors,
    "without the tied decoder": drop_tied,
    "encoder alone": to_encoder,
    "bert4torch": to_bert4torch,
    "bert4torch with gains": add_gains,
}


def read(tensors: Tensors, arguments: dict[str, Any], **given: Any) -> ImportedModel:
    return import_gau_alpha(tensors, GivenArguments(arguments, **given))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("wrapper", ["", "module."])
def test_every_layout_is_the_library_s_model(
    theirs: Any, masked_lm: Tensors, layout: str, wrapper: str, tmp_path: Path
) -> None:
    tensors = {f"{wrapper}{name}": tensor for name, tensor in LAYOUTS[layout](masked_lm).items()}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    loaded = load_checkpoint(tmp_path / "pytorch_model.bin", family="gau_alpha", config=CONFIG)
    assert loaded.model.config == OURS
    assert set(loaded.model.state_dict()) == NAMES
    assert loaded.provenance["format"] == ("bert4torch" if layout.startswith("bert4torch") else "gau-alpha")
    assert loaded.imported.assumed == {}
    assert loaded.imported.notes == (("names are under module in the file",) if wrapper else ())
    input_ids = torch.tensor([[3, 1, 4, 1, 5]])
    expected = theirs(input_ids, torch.ones_like(input_ids)).logits
    torch.testing.assert_close(loaded.model(input_ids), expected, rtol=1e-5, atol=1e-5)


def test_arguments_that_weights_do_not_tell_are_asked_for_or_assumed(masked_lm: Tensors) -> None:
    assert read(masked_lm, ASKED).assumed == {}
    assert read(masked_lm, {}, assume_defaults=True).assumed == ASKED
    with pytest.raises(
        ConfigError, match=r"weights do not tell hidden_act, normalization, attention_scale; give the con"
    ):
        read(masked_lm, {})
    with pytest.raises(ConfigError, match=r"weights do not tell hidden_act; give the config\.json"):
        read(to_bert4torch(masked_lm), {"num_attention_heads": 1})
    assert read(to_bert4torch(masked_lm), {"hidden_act": "swish", "num_attention_heads": 1}).config == OURS


def test_mask_dialect_is_an_argument_of_ours(masked_lm: Tensors) -> None:
    config = read(masked_lm, {**CONFIG, "mask_dialect": "bert4keras"}).config
    assert config == GauAlphaConfig(17, 8, 2, 12, 6, mask_dialect="bert4keras")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"normalization": "squared_relu"}, "normalization='squared_relu' is not supported; only .* softmax_plus are"),
        ({"hidden_act": "relu"}, "hidden_act='relu' is not supported; only models of hidden_act swish or silu are"),
        ({"attention_scale": False}, "attention_scale=False is not supported"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps=1e-06 is not supported; only models of layer_norm_eps 1e-12 are"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False is not supported"),
        ({"hidden_size": 9}, "hidden_size=9, but the weights say 8; correct it or leave it out"),
        ({"num_hidden_layers": 24}, "num_hidden_layers=24, but the weights say 2"),
        (
            {"hiden_act": "swish"},
            "unknown argument 'hiden_act'; GAU-alpha's are .*hidden_act.*; and ours is mask_dialect",
        ),
        ({"mask_dialect": "keras"}, "mask_dialect='keras' is unknown; use one of"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(masked_lm: Tensors, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read(masked_lm, {**CONFIG, **arguments})


def test_a_release_is_not_asked_for(masked_lm: Tensors) -> None:
    with pytest.raises(ConfigError, match=r"library_version=0.0.2, .* leave --library-version out"):
        read(masked_lm, CONFIG, library_version="0.0.2")


def test_weights_of_another_kind_of_model_are_refused(masked_lm: Tensors) -> None:
    untied = {**masked_lm, "cls.predictions.decoder.weight": masked_lm["cls.predictions.decoder.weight"] + 1}
    with pytest.raises(CheckpointError, match="the decoder differs from the word embeddings; GAU-alpha has one matrix"):
        read(untied, CONFIG)
    learned = {**add_gains(masked_lm), "encoderLayer.1.layerNorm1.weight": torch.full((8,), 1.1)}
    with pytest.raises(CheckpointError, match=r"encoderLayer\.1\.layerNorm1\.weight is not 1 everywhere"):
        read(learned, CONFIG)
    with pytest.raises(CheckpointError, match=r"no matrix for 'token_emb\.weight' in the checkpoint \(found nothing\)"):
        read({}, CONFIG)
    with pytest.raises(
        CheckpointError, match=r"no matrix for 'layers\.0\.gamma' .* as gau-alpha or bert4torch saves it"
    ):
        read({name: x for name, x in masked_lm.items() if "k_scaleoffset" not in name}, CONFIG)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classifier.weight": torch.ones(2, 8)}, r"1 unexpected \(classifier.weight\)"),
        ({"gau_alpha.encoder.layer.1.gau.i_dense.bias": torch.ones(30)}, r"1 unexpected \(gau_alpha.*i_dense.bias\)"),
        ({"gau_alpha.encoder.layer.1.gau.o_dense.weight": None}, r"1 missing \(layers.1.o_dense.weight\)"),
        ({"gau_alpha.encoder.layer.1.gau.q_scaleoffset.weight": None}, r"1 missing \(layers.1.gamma\); 1 unexpected"),
        (
            {"gau_alpha.encoder.layer.1.gau.i_dense.weight": torch.ones(29, 8)},
            r"1 misshapen .*\(29, 8\) instead of \(30, 8",
        ),
        (
            {"gau_alpha.encoder.layer.2.gau.o_dense.weight": torch.ones(8, 12)},
            r"2 missing \(layers.2.gamma, layers.2.i_dense.weight",
        ),
    ],
)
def test_names_are_matched_strictly(
    masked_lm: Tensors, change: dict[str, Tensor | None], message: str, tmp_path: Path
) -> None:
    tensors = {name: tensor for name, tensor in {**masked_lm, **change}.items() if tensor is not None}
    torch.save(tensors, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path / "model.pt", family="gau_alpha", config=ASKED)
