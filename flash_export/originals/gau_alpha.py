"""gau-alpha's own masked language model."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from flash_export.originals.installed import ModelFiles, Original, load_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

DISTRIBUTION = "gau-alpha"
_ENCODER, _EMBEDDING, _DECODER = "gau_alpha.", "embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
_SIZES = {
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "depth": "num_hidden_layers",
    "hidden_dim": "intermediate_size",
    "qk_dim": "attention_key_size",
    "num_token_types": "type_vocab_size",
}
_NOT_ITS_OWN = ("mask_dialect", "model_type")


class _Config:
    output_attentions = output_hidden_states = False
    use_return_dict = True

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


class _Model(nn.Module):
    base_model_prefix: str

    def __init__(self, config: _Config) -> None:
        super().__init__()
        self.config = config

    def post_init(self) -> None:
        """Tie the decoder to the embedding, as transformers does unless the config says otherwise."""
        if hasattr(self, "get_output_embeddings"):
            base = getattr(self, self.base_model_prefix)
            decoder: Any = getattr(self, "get_output_embeddings")()  # noqa: B009
            decoder.weight = base.get_input_embeddings().weight


class _Output:
    def __init__(self, **values: Any) -> None:
        vars(self).update(values)

    def __getitem__(self, index: int) -> Any:
        return [value for value in vars(self).values() if value is not None][index]


_OUTPUTS = (
    *("BaseModelOutput", "MaskedLMOutput", "MultipleChoiceModelOutput", "QuestionAnsweringModelOutput"),
    *("SequenceClassifierOutput", "TokenClassifierOutput"),
)
FILES = ModelFiles(
    "gau_alpha",
    ("modeling_gau_alpha",),
    stand_ins={
        "transformers": {},
        "transformers.activations": {"get_activation": lambda name: {"swish": nn.SiLU()}[name]},
        "transformers.configuration_utils": {"PretrainedConfig": _Config},
        "transformers.modeling_outputs": dict.fromkeys(_OUTPUTS, _Output),
        "transformers.modeling_utils": {"PreTrainedModel": _Model, "SequenceSummary": nn.Identity},
        "transformers.utils": {"logging": types.SimpleNamespace(get_logger=lambda name: None)},
    },
)


def build(config: Mapping[str, Any], arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Original:
    """Build the library's model.

    Args:
        config: ``config.json`` of a bundle of family ``gau_alpha``, for sizes alone.
        arguments: What the user told: the ``config.json`` of the library; for all else its own defaults hold.
        tensors: The state dict by gau-alpha's names, with a head or of the encoder alone.

    Raises:
        ValueError: The weights do not fit, or are named as another library does.
    """
    if any(name.startswith("encoderLayer.") for name in tensors):
        raise ValueError("the weights have the names of bert4torch, and gau-alpha cannot read them")
    (library,), stand_ins = FILES.load()
    sizes = {theirs: config[ours] for ours, theirs in _SIZES.items()}
    told = {name: value for name, value in arguments.items() if name not in _NOT_ITS_OWN}
    module = library.GAUAlphaForMaskedLM(library.GAUAlphaConfig(**{**told, **sizes}))
    named = {name if name.startswith((_ENCODER, "cls.")) else f"{_ENCODER}{name}": x for name, x in tensors.items()}
    named.setdefault(_DECODER, named[f"{_ENCODER}{_EMBEDDING}"])
    load_weights(module, named, DISTRIBUTION)

    def call(inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        ids = inputs["input_ids"]  # without a mask, the package takes token 0 for padding
        mask = inputs.get("attention_mask", torch.ones_like(ids))
        return (module(input_ids=ids, attention_mask=mask).logits,)

    return Original(module, call, stand_ins)
