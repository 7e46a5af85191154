"""From files to a reference model whose every weight is accounted for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flash_export.errors import CheckpointError, ConfigError
from flash_export.files import hash_file
from flash_export.models.base import CONFIG_FILE, WEIGHTS_FILE, ReferenceModel
from flash_export.models.registry import get_family
from flash_export.models.tensor_files import read_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from flash_export.models.base import ModelConfig
    from flash_export.models.registry import Family

MAX_NAMES_IN_MESSAGE = 6


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model and where its weights came from.

    Attributes:
        model: The reference model, in evaluation mode and fp32.
        provenance: Source file name, format and sha256 of the weights.
        folder: The checkpoint folder; None for a single foreign file.
    """

    model: ReferenceModel
    provenance: dict[str, str]
    folder: Path | None


def load_pretrained(folder: str | Path) -> ReferenceModel:
    """Load the reference model from a folder with ``config.json`` and ``model.safetensors``."""
    return load_checkpoint(folder).model


def load_checkpoint(
    path: str | Path, *, family: str | None = None, config: Mapping[str, Any] | None = None
) -> Checkpoint:
    """Load a checkpoint folder, or a foreign weights file.

    Args:
        path: A folder with ``config.json`` and ``model.safetensors``, or a ``.pt``, ``.pth``, ``.bin``, ``.ckpt`` or
            ``.safetensors`` file of the library that the family was first written in.
        family: Model family; needed for a file, told by ``config.json`` for a folder.
        config: For a file, that library's constructor arguments. For a folder, config fields to replace.

    Raises:
        CheckpointError: A file is missing or damaged; tensors are missing, unexpected, misshapen or not finite.
        ConfigError: The family or a config value is unknown, or contradicts the weights.
    """
    source = Path(path)
    if source.is_dir():
        weights = source / WEIGHTS_FILE
        model_config, kind = _read_config(source, family, config or {})
        tensors, source_format = read_tensors(weights), "flash-export"
    else:
        weights = source
        tensors = read_tensors(weights)
        if family is None:
            raise ConfigError(f"{source.name} does not tell its model family; add --family flash or --family gau")
        kind = get_family(family)
        if config is None:
            raise ConfigError(
                f"weights do not tell {', '.join(kind.hidden_arguments)}; give {kind.source}'s constructor arguments "
                "with --config FILE.json or --set NAME=VALUE (--config with {} takes that library's defaults)"
            )
        model_config, tensors = kind.import_weights(tensors, config)
        source_format = kind.source
    model = _build_model(kind, model_config, tensors, weights)
    provenance = {"source": weights.name, "format": source_format, "sha256": hash_file(weights)}
    return Checkpoint(model, provenance, source if source.is_dir() else None)


def _read_config(folder: Path, family: str | None, replaced: Mapping[str, Any]) -> tuple[ModelConfig, Family]:
    path = folder / CONFIG_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"{folder} has no readable {CONFIG_FILE} ({error.strerror}); "
            f"give a folder with {CONFIG_FILE} and {WEIGHTS_FILE}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}); correct it") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds {type(values).__name__}, not a JSON object; correct it")
    if family is not None and family != values.get("model_type"):
        raise ConfigError(f"--family {family}, but {path} says {values.get('model_type')!r}; leave --family out")
    kind = get_family(values.get("model_type"))
    if replaced.get("model_type", values["model_type"]) != values["model_type"]:
        raise ConfigError(
            f"model_type={replaced['model_type']!r}, but {path} says {values['model_type']!r}; "
            "weights cannot change their family, leave it out"
        )
    return kind.config_class.from_dict({**values, **replaced}), kind


def _build_model(kind: Family, config: ModelConfig, tensors: Mapping[str, Tensor], weights: Path) -> ReferenceModel:
    """Build the module without allocating weights, then hand it the tensors, strictly."""
    depth = config.num_blocks
    if depth > len(tensors):  # before a module of that many layers is built
        raise CheckpointError(
            f"{weights}: {len(tensors)} tensors cannot be those of {depth} layers; "
            "correct the config or give the right file"
        )
    with torch.device("meta"):
        model = kind.model_class(config)
    expected = model.state_dict()
    problems = [
        *_describe("missing", [name for name in expected if name not in tensors]),
        *_describe("unexpected", [name for name in tensors if name not in expected]),
        *_describe(
            "misshapen",
            [
                f"{name} {tuple(tensors[name].shape)} instead of {tuple(expected[name].shape)}"
                for name in expected
                if name in tensors and tensors[name].shape != expected[name].shape
            ],
        ),
    ]
    if problems:
        raise CheckpointError(
            f"{weights}: the weights do not fit the config of this {config.model_type} model: {'; '.join(problems)}; "
            "correct the config or give the right file"
        )
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise CheckpointError(f"{weights}: {name} is {tensor.dtype}; weights must be floating point")
        if tensor.is_meta or tensor.layout is not torch.strided:
            raise CheckpointError(
                f"{weights}: {name} holds no plain values ({tensor.device} device, {tensor.layout}); "
                "save it as a dense tensor with data"
            )
    in_fp32 = {name: tensor.float() for name, tensor in tensors.items()}
    for name, tensor in in_fp32.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{weights}: {name} holds NaN or infinite values in fp32; such a model cannot be exported"
            )
    model.load_state_dict(in_fp32, assign=True)
    return model.requires_grad_(requires_grad=False).eval()


def _describe(kind: str, names: list[str]) -> list[str]:
    if not names:
        return []
    shown = ", ".join(names[:MAX_NAMES_IN_MESSAGE])
    more = f" and {len(names) - MAX_NAMES_IN_MESSAGE} more" if len(names) > MAX_NAMES_IN_MESSAGE else ""
    return [f"{len(names)} {kind} ({shown}{more})"]
