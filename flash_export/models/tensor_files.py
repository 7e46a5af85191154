"""Reading weights from files that may be truncated, hostile or wrapped, without running anything in them."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from flash_export.errors import CheckpointError
from flash_export.files import check_utf8

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
WRAPPER_KEYS = ("state_dict", "model_state_dict", "model")
WRAPPER_PREFIXES = ("module.", "_orig_mod.", "net.")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the state dict in a file, without the wrappers that training leaves around it.

    ``module.`` (DataParallel), ``_orig_mod.`` (torch.compile) and ``net.`` (flash-pytorch's AutoregressiveWrapper)
    are removed where every name carries them; a dictionary under ``state_dict``, ``model_state_dict`` or ``model`` is
    unwrapped.

    Raises:
        CheckpointError: The file is missing, damaged, of an unknown kind, or holds more than tensors.
        ConfigError: Its path is no UTF-8.
    """
    check_utf8(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; give a checkpoint folder or a weights file")
    if path.suffix == ".safetensors":
        values: Any = _read_safetensors(path)
    elif path.suffix in PICKLE_SUFFIXES:
        values = _read_pickle(path)
    else:
        known = ", ".join((".safetensors", *PICKLE_SUFFIXES))
        raise CheckpointError(f"{path} has the suffix {path.suffix!r}; weights are read from {known}")
    for key in WRAPPER_KEYS:
        if isinstance(values, Mapping) and isinstance(values.get(key), Mapping):
            values = values[key]
    if not isinstance(values, Mapping) or not values:
        raise CheckpointError(f"{path} holds {type(values).__name__}, not a state dict; save model.state_dict()")
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"{path}: entry {name!r} is {type(value).__name__}, not a tensor; save model.state_dict() alone"
            )
    return _strip_prefixes(dict(values))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); copy or save it again") from error


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocol of damaged files
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is damaged, or holds Python objects beside tensors, which are never loaded because they can run "
            "code; save model.state_dict() again"
        ) from error
    except Exception as error:  # damaged bytes make the unpickler fail in any way: AssertionError, struct.error, ...
        first_line = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{path} is not a whole PyTorch file ({first_line}); copy or save it again") from error


def _strip_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in WRAPPER_PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            return _strip_prefixes({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
    return tensors
