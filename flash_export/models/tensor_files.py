"""Reading weights from files that may be truncated, hostile or in several parts, without running anything in them."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from flash_export.errors import CheckpointError
from flash_export.files import check_utf8, hash_file

SAFETENSORS_SUFFIX = ".safetensors"
PICKLE_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
INDEX_SUFFIX = ".index.json"
# In the order in which a folder is searched.
FOLDER_FILES = tuple(
    f"{stem}{suffix}" for stem in ("model.safetensors", "pytorch_model.bin") for suffix in ("", INDEX_SUFFIX)
)
# Names the weights of a folder without any of these, as clearvoice leaves it beside a ``.pt`` of any name.
POINTER_FILE = "last_best_checkpoint"
MAX_INDEX_BYTES, MAX_POINTER_BYTES = 64 << 20, 4096
_ZIP_MAGIC = b"PK\x03\x04"


@dataclass(frozen=True)
class WeightsFile:
    """What a file of weights holds.

    Attributes:
        path: The file; the index of a file in several parts.
        values: Tensors by name, or whatever a training run has put around them.
        sha256: Hash of the file; of the hashes of index and parts, each on a line of its own, where it has several.
        notes: What could not be checked, a sentence each.
    """

    path: Path
    values: object
    sha256: str
    notes: tuple[str, ...] = ()


def find_weights_file(folder: Path) -> Path:
    """Return the weights in a checkpoint folder, or where they should be.

    Raises:
        CheckpointError: The file that names them names no file of the folder.
    """
    found = next((folder / name for name in FOLDER_FILES if (folder / name).is_file()), None)
    if found is None and (folder / POINTER_FILE).is_file():
        return folder / _read_pointer(folder / POINTER_FILE)
    return found or folder / FOLDER_FILES[0]


def _read_pointer(path: Path) -> str:
    """Return the one file name that a text file holds."""
    check_inside(path, path.parent)
    try:
        with path.open("rb") as stream:
            lines = stream.read(MAX_POINTER_BYTES).decode("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no text ({error}); give the weights file itself") from error
    names = [line.strip() for line in lines if line.strip()]
    if len(names) != 1:
        raise CheckpointError(
            f"{path} names {len(names)} files, wanted the one that holds the weights; give the weights file itself"
        )
    if not _is_file_name(names[0]):
        raise CheckpointError(
            f"{path} names {names[0]!r}, which is no file of its folder; give the weights file itself"
        )
    return names[0]


def _is_file_name(name: str) -> bool:
    """Tell whether a name stays in its folder."""
    return bool(name) and name not in (".", "..") and not set(name) & {"/", "\\", "\0"}


def read_weights(path: Path) -> WeightsFile:
    """Read ``.safetensors``, files of ``torch.save``, or the index of either in several parts (``.index.json``).

    Raises:
        CheckpointError: The file is missing, damaged, of an unknown kind, or holds what could run code.
        ConfigError: Its path is no UTF-8.
    """
    check_utf8(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; give a checkpoint folder or a weights file")
    if path.name.endswith(INDEX_SUFFIX):
        return _read_parts(path)
    values, notes = _read_file(path)
    return WeightsFile(path, values, hash_file(path), notes)


def _read_file(path: Path) -> tuple[Any, tuple[str, ...]]:
    """Return what one file holds, and what could not be checked of it."""
    if path.suffix == SAFETENSORS_SUFFIX:
        return _read_safetensors(path), ()
    if path.suffix in PICKLE_SUFFIXES:
        notes = _check_archive(path)
        return _read_pickle(path), notes
    known = ", ".join((SAFETENSORS_SUFFIX, *PICKLE_SUFFIXES, INDEX_SUFFIX))
    raise CheckpointError(f"{path} has the suffix {path.suffix!r}; weights are read from {known}")


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors, and again those that ``safetensors.torch.save_model`` left out because they share memory."""
    try:
        with safe_open(path, "pt") as stream:
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            left_out = stream.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); copy or save it again") from error
    shared = {name: tensors[kept] for name, kept in left_out.items() if name not in tensors and kept in tensors}
    return {**tensors, **shared}


def _check_archive(path: Path) -> tuple[str, ...]:
    """Compare the contents with the checksums that ``torch.save`` writes and ``torch.load`` does not read.

    Returns:
        A note where there are none.

    Raises:
        CheckpointError: The file is no whole archive, or a byte in it was changed.
    """
    with path.open("rb") as stream:
        if stream.read(len(_ZIP_MAGIC)) != _ZIP_MAGIC:
            return (f"{path.name} has PyTorch's old format, without checksums: damage to values cannot be noticed",)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            is_packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
            is_checked = any(member.CRC for member in members)
            damaged = archive.testzip() if is_checked and not is_packed else None
    except Exception as error:  # damaged bytes: BadZipFile, NotImplementedError, OSError, RuntimeError, ...
        raise CheckpointError(f"{path} is not a whole PyTorch file ({_cut(error)}); copy or save it again") from error
    if is_packed:
        raise CheckpointError(f"{path} is compressed inside, which torch.save never does; copy or save it again")
    if damaged is not None:
        raise CheckpointError(
            f"{path} is damaged: the checksum of {damaged!r} does not fit its content; copy or save it again"
        )
    return () if is_checked else (f"{path.name} was saved without checksums: damage to values cannot be noticed",)


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
        raise CheckpointError(f"{path} is not a whole PyTorch file ({_cut(error)}); copy or save it again") from error


def _cut(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _read_parts(path: Path) -> WeightsFile:
    """Read the parts that an index names, and see that each tensor is in its own part and nowhere else."""
    places = read_index(path)
    tensors: dict[str, torch.Tensor] = {}
    notes: list[str] = []
    digests = [hash_file(path)]
    for part in sorted(set(places.values())):
        file = path.parent / part
        check_inside(file, path.parent)
        if not file.is_file():
            raise CheckpointError(f"{path} names {part!r}, which does not exist; copy the whole folder")
        values, part_notes = _read_file(file)
        if not isinstance(values, Mapping):
            raise CheckpointError(f"{file} holds {type(values).__name__}, not tensors by name; save it again")
        for name, tensor in values.items():
            if places.get(name) != part:
                place = f"puts it into {places[name]!r}" if name in places else "does not name it"
                raise CheckpointError(f"{file} holds {str(name)!r}, but {path.name} {place}; save the checkpoint again")
            tensors[name] = tensor
        notes.extend(part_notes)
        digests.append(hash_file(file))
    if missing := [name for name in places if name not in tensors]:
        raise CheckpointError(
            f"{path.parent / places[missing[0]]} lacks {missing[0]!r}, which {path.name} puts there; "
            "save the checkpoint again"
        )
    digest = hashlib.sha256("\n".join(digests).encode()).hexdigest()
    return WeightsFile(path, tensors, digest, tuple(notes))


def read_index(path: Path) -> dict[str, str]:
    """Return the file of each tensor.

    Raises:
        CheckpointError: The index is none, or names what is no file of its folder.
    """
    try:
        if path.stat().st_size > MAX_INDEX_BYTES:
            raise CheckpointError(f"{path} has more than {MAX_INDEX_BYTES} bytes; it is no index of weights")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}); save the checkpoint again") from error
    places = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(part, str) for part in places.values()):
        raise CheckpointError(f"{path} has no weight_map of tensors and files; save the checkpoint again")
    for part in places.values():
        if not _is_file_name(part):
            raise CheckpointError(f"{path} names {part!r}, which is no file of its folder; save the checkpoint again")
        if part.endswith(INDEX_SUFFIX):
            raise CheckpointError(f"{path} names {part!r}, another index; save the checkpoint again")
    return places


def check_inside(file: Path, folder: Path) -> None:
    """Refuse a file of a folder that is a link out of it, unless both are of one repository in the cache of the Hub.

    Raises:
        CheckpointError: The file lies elsewhere.
    """
    home = os.path.dirname(os.path.realpath(file))
    if home not in (os.path.realpath(folder), _find_blobs(Path(os.path.realpath(folder)))):
        raise CheckpointError(f"{file} is a link out of its folder, which is not followed; copy the file in its place")


def _find_blobs(folder: Path) -> str | None:
    """Return where the files of ``snapshots/COMMIT``, or of a folder in it, are kept, by their hashes.

    Source: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
    """
    snapshots = next((parent for parent in folder.parents if parent.name == "snapshots"), None)
    return str(snapshots.parent / "blobs") if snapshots and snapshots.parent.name.startswith("models--") else None
