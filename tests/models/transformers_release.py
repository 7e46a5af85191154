"""transformers 5.24.0's own files of Longformer and BigBird, without the rest of the package."""

from __future__ import annotations

import types
from typing import Any

from torch import nn

from flash_export.originals.installed import ModelFiles
from tests.models.oracles import import_oracle

RELEASE = "transformers==5.24.0"


class _Base:
    """Stands in for classes to inherit from, to be made or to be subscripted in a signature."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __class_getitem__(cls, item: Any) -> type[_Base]:
        return cls


def _decorate(*args: Any, **kwargs: Any) -> Any:
    """Stand in for a decorator, with arguments or without."""
    return args[0] if len(args) == 1 and callable(args[0]) and not kwargs else lambda decorated: decorated


_OUTPUTS = (
    *("BaseModelOutputWithPastAndCrossAttentions", "BaseModelOutputWithPoolingAndCrossAttentions"),
    *("CausalLMOutputWithCrossAttentions", "MaskedLMOutput", "MultipleChoiceModelOutput"),
    *("SequenceClassifierOutput", "TokenClassifierOutput"),
)
FILES = ModelFiles(
    "transformers",
    ("models.longformer.modeling_longformer", "models.big_bird.modeling_big_bird"),
    folders=("models", "models.longformer", "models.big_bird"),
    stand_ins={
        "transformers.activations": {"ACT2FN": {}, "gelu": None},
        "transformers.cache_utils": {"Cache": _Base, "DynamicCache": _Base},
        "transformers.generation": {"GenerationMixin": _Base},
        "transformers.initialization": {},
        "transformers.masking_utils": dict.fromkeys(("create_bidirectional_mask", "create_causal_mask")),
        "transformers.modeling_layers": {"GradientCheckpointingLayer": nn.Module},
        "transformers.modeling_outputs": dict.fromkeys(_OUTPUTS, _Base),
        "transformers.modeling_utils": {"PreTrainedModel": nn.Module, "slice_logits_to_keep": None},
        "transformers.models.big_bird.configuration_big_bird": {"BigBirdConfig": _Base},
        "transformers.models.longformer.configuration_longformer": {"LongformerConfig": _Base},
        "transformers.processing_utils": {"Unpack": _Base},
        "transformers.pytorch_utils": {"apply_chunking_to_forward": None},
        "transformers.utils": {
            "ModelOutput": _Base,
            "TransformersKwargs": _Base,
            "auto_docstring": _decorate,
            "can_return_tuple": _decorate,
            "logging": types.SimpleNamespace(get_logger=lambda name: None),
        },
        "transformers.utils.deprecation": {"deprecate_kwarg": _decorate},
        "transformers.utils.generic": {"merge_with_config_defaults": _decorate},
        "transformers.utils.output_capturing": {"OutputRecorder": _Base, "capture_outputs": _decorate},
    },
)


def import_transformers() -> tuple[Any, Any]:
    """Import the modules of Longformer and BigBird, and leave none behind; skips where no oracle was installed."""
    longformer, bigbird = import_oracle(RELEASE, FILES)
    return longformer, bigbird
