"""From files to a reference model whose every weight is accounted for."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flash_export.config import CONFIG_FILE, WEIGHTS_FILE
from flash_export.errors import CheckpointError, ConfigError
from flash_export.models.base import separate_tensors
from flash_export.models.frequencies import restore_frequencies
from flash_export.models.hub import fetch_checkpoint, is_on_hub
from flash_export.models.import_record import ImportRecord
from flash_export.models.importers.arguments import GivenArguments, ImportedModel
from flash_export.models.registry import FAMILIES, get_family, recognise_family
from flash_export.models.tensor_files import check_inside, find_weights_file, read_weights
from flash_export.models.weight_sets import check_plain, name_tensors, select_weight_set
from flash_export.names import list_names, show_name
from flash_export.typed_json import name_type

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from flash_export.models.base import ModelConfig, ReferenceModel
    from flash_export.models.family import Family
    from flash_export.models.weight_sets import WeightSet


# What transformers writes into the config of every model that it saves.
TRANSFORMERS_MARK = "transformers_version"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model and where its weights came from.

    Attributes:
        model: The reference model, in evaluation mode and fp32.
        provenance: Source file name, format and sha256 of the weights.
        imported: What was assumed, chosen and repaired on the way.
        folder: The checkpoint folder; None for a single foreign file.
    """

    model: ReferenceModel
    provenance: dict[str, str]
    imported: ImportRecord
    folder: Path | None


def load_pretrained(folder: str | Path) -> ReferenceModel:
    """Load the reference model from a folder with ``config.json`` and ``model.safetensors``."""
    return load_checkpoint(folder).model


def load_checkpoint(
    path: str | Path,
    *,
    family: str | None = None,
    config: Mapping[str, Any] | None = None,
    library_version: str | None = None,
    weights_key: str | None = None,
    assume_defaults: bool = False,
) -> Checkpoint:
    """Load a checkpoint folder, or foreign weights.

    Args:
        path: A folder with ``config.json`` and ``model.safetensors``; or weights of the library that the family was
            first written in: a ``.pt``, ``.pth``, ``.bin``, ``.ckpt`` or ``.safetensors`` file, the ``.index.json`` of
            weights in several files; or a folder that holds one of these and no ``config.json``, or transformers' one;
            or ``hf://ORG/NAME``, see :func:`fetch_checkpoint`.
        family: Model family; None: what ``config.json`` or, for foreign weights, the names of the tensors tell.
        config: For foreign weights, that library's constructor arguments, which win over transformers' ``config.json``.
            For a folder of ours, config fields to replace.
        library_version: For foreign weights, the release of that library that they were trained with.
        weights_key: Where in the file the weights are, if it holds several sets of them; dotted for nested ones.
        assume_defaults: For foreign weights, take that library's defaults for arguments that nobody told.

    Raises:
        CheckpointError: A file is missing or damaged; tensors are missing, unexpected, misshapen or not finite.
        ConfigError: The family or a config value is unknown, or contradicts the weights; or an argument is missing.
    """
    fetched = fetch_checkpoint(path) if is_on_hub(path) else None
    source = fetched.path if fetched else Path(path)
    folder = source if source.is_dir() else None
    file = find_weights_file(folder) if folder else source
    if folder:
        check_inside(file, folder)
    told = None if folder is None else _read_library_config(folder / CONFIG_FILE)
    has_no_config = folder is None or not (folder / CONFIG_FILE).exists()
    # A folder of ours that lost its config would be asked for all that was in it.
    is_foreign = told is not None or (has_no_config and (family is not None or file.name != WEIGHTS_FILE))
    notes: list[str] = []
    if is_foreign:
        weights = read_weights(file)
        if family is None:
            family, notes = _recognise(weights.values, file)
        config = {**(told or {}), **(config or {})}
        kind = get_family(family)
    else:
        if library_version is not None or assume_defaults:
            raise ConfigError(
                f"{source} has a {CONFIG_FILE}, which tells all; leave --library-version and --assume-defaults out"
            )
        model_config, kind = _read_config(source, family, config or {})
        weights = read_weights(file)
    chosen = select_weight_set(weights.values, kind.anchors, file, weights_key)
    check_plain(chosen.tensors, file, kind.indices)
    if is_foreign:
        arguments = GivenArguments(config or {}, library_version, assume_defaults)
        imported = kind.import_weights(chosen.tensors, arguments)
    else:
        imported = ImportedModel(model_config, chosen.tensors, {})
    library = imported.library or kind.source
    model, repairs = _build_model(kind, imported.config, imported.tensors, file)
    return Checkpoint(
        model,
        {
            "source": f"{fetched.name}/{file.name}" if fetched else file.name,
            "format": library if is_foreign else "flash-export",
            "sha256": weights.sha256,
        },
        ImportRecord(
            library_version=library_version,
            assumed=imported.assumed,
            arguments=dict(config or {}) if is_foreign else {},
            weights_key=chosen.key,
            weight_sets=chosen.keys,
            notes=(*notes, *weights.notes, *_describe_choice(chosen), *repairs),
        ),
        folder,
    )


def read_foreign_weights(path: Path, family: str, weights_key: str, provenance: Mapping[str, str]) -> dict[str, Tensor]:
    """Read the weights that a bundle was made of, by the names of the library that they come from.

    Args:
        path: What was given to :func:`load_checkpoint`.
        family: Model family.
        weights_key: Where in the file they are, as the record of the import says.
        provenance: Name and hash of the file, as the manifest says.

    Raises:
        CheckpointError: The file is missing, damaged, or another one.
    """
    path = fetch_checkpoint(path).path if is_on_hub(path) else path
    file = find_weights_file(path) if path.is_dir() else path
    weights, kind = read_weights(file), get_family(family)
    if weights.sha256 != provenance["sha256"]:
        raise CheckpointError(
            f"{file} has sha256 {weights.sha256[:12]}..., the bundle was made of {provenance['source']} with "
            f"{provenance['sha256'][:12]}...; give that file"
        )
    chosen = select_weight_set(weights.values, kind.anchors, file, weights_key)
    check_plain(chosen.tensors, file, kind.indices)
    return chosen.tensors


def _recognise(values: object, file: Path) -> tuple[str, list[str]]:
    """Return the family that the names of tensors tell, and a sentence about it.

    Raises:
        ConfigError: They tell none, or several.
    """
    found = recognise_family(name_tensors(values, file))
    if found is None:
        known = ", ".join(name for name, one in FAMILIES.items() if one.told_by)
        raise ConfigError(f"{file.name} does not tell its model family; add --family, one of {known}")
    family, name = found
    return family, [f"taken for family {family}, which alone has a {show_name(name)}; --family names another"]


def _read_library_config(path: Path) -> dict[str, Any] | None:
    """Return a ``config.json`` that transformers wrote; None if there is none, it is ours, or it cannot be read."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        values = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(values, dict) and TRANSFORMERS_MARK in values:
            return values
    return None


def _describe_choice(chosen: WeightSet) -> list[str]:
    """Say what was taken off the names, and what of the file is not the model."""
    notes = [f"names are under {show_name(chosen.key)} in the file"] if chosen.key and len(chosen.keys) == 1 else []
    if chosen.left_out:
        parts = [f"{name} ({count} {'tensor' if count == 1 else 'tensors'})" for name, count in chosen.left_out.items()]
        notes.append(f"left out, beside the model in the file: {list_names(parts)}")
    return notes


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
        raise CheckpointError(f"{path} holds {name_type(type(values))}, not a JSON object; correct it")
    if family is not None and family != values.get("model_type"):
        raise ConfigError(f"--family {family}, but {path} says {values.get('model_type')!r}; leave --family out")
    kind = get_family(values.get("model_type"))
    if replaced.get("model_type", values["model_type"]) != values["model_type"]:
        raise ConfigError(
            f"model_type={replaced['model_type']!r}, but {path} says {values['model_type']!r}; "
            "weights cannot change their family, leave it out"
        )
    return kind.config_class.from_dict({**values, **replaced}), kind


def _build_model(
    kind: Family, config: ModelConfig, tensors: Mapping[str, Tensor], weights: Path
) -> tuple[ReferenceModel, tuple[str, ...]]:
    """Build the module without allocating weights, then hand it the tensors, strictly.

    Returns:
        The model, and a sentence about each repair.
    """
    depth = config.num_blocks
    if depth > len(tensors):  # before a module of that many layers is built
        raise CheckpointError(
            f"{weights}: {len(tensors)} tensors cannot be those of {depth} layers; "
            "correct the config or give the right file"
        )
    with torch.device("meta"):
        model = kind.model_class(config)
    _match_tensors(model.state_dict(), tensors, config, weights)
    frequencies, notes = restore_frequencies(tensors, model.compute_frequencies())
    in_fp32 = separate_tensors({name: tensor.detach().float() for name, tensor in {**tensors, **frequencies}.items()})
    for name, tensor in in_fp32.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{weights}: {name} holds NaN or infinite values in fp32; such a model cannot be exported"
            )
    model.load_state_dict(in_fp32, assign=True)
    return model.requires_grad_(requires_grad=False).eval(), notes


def _match_tensors(
    expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], config: ModelConfig, weights: Path
) -> None:
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    misshapen = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in tensors and tensors[name].shape != expected[name].shape
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
    problems = [f"{len(names)} {kind} ({list_names(names)})" for kind, names in kinds if names]
    if problems:
        raise CheckpointError(
            f"{weights}: the weights do not fit the config of this {config.model_type} model: {'; '.join(problems)}; "
            "correct the config or give the right file"
        )
