"""Checkpoints of the Hugging Face Hub: ``hf://ORG/NAME``, ``hf://ORG/NAME@REVISION``, ``hf://ORG/NAME/FILE``.

What is fetched is kept in the cache of ``huggingface_hub``, whose settings hold: ``HF_HOME``, ``HF_TOKEN``,
``HF_ENDPOINT``, ``HF_HUB_OFFLINE``. Files that may be data, or tell of the weights, and the weights: no other is.
"""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flash_export.config import CONFIG_FILE
from flash_export.errors import CheckpointError, ConfigError
from flash_export.install import get_install_command
from flash_export.models.tensor_files import FOLDER_FILES, INDEX_SUFFIX, POINTER_FILE, find_weights_file, read_index

if TYPE_CHECKING:
    from collections.abc import Iterable

PREFIX = "hf://"
# A pathlib.Path has one slash left of two. What else people write for it is told what to write.
_PREFIX = re.compile(r"hf:/{1,2}")
_ALMOST = re.compile(r"(hf:|https?:/{1,2}(www\.)?(huggingface\.co|hf\.co)/)/*", re.IGNORECASE)
_NAME = re.compile(PREFIX + r"(?P<name>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[^@/\s]+))?(/(?P<file>[^@\s]*))?")
_SMALL_FILES = (CONFIG_FILE, POINTER_FILE, "heldout.*")


@dataclass(frozen=True)
class HubCheckpoint:
    """A checkpoint that was fetched.

    Attributes:
        name: Repository and commit, ``hf://ORG/NAME@COMMIT``.
        path: The folder of that commit in the cache, or the file in it that was asked for.
    """

    name: str
    path: Path


def is_on_hub(checkpoint: str | Path) -> bool:
    """Tell whether a checkpoint is named as one of the Hub."""
    return _ALMOST.match(str(checkpoint)) is not None


def fetch_checkpoint(checkpoint: str | Path) -> HubCheckpoint:
    """Fetch what the cache has not yet.

    Args:
        checkpoint: ``hf://ORG/NAME``, with ``@REVISION`` for a branch, tag or commit, with ``/FILE`` for weights that
            have another name than a folder's.

    Raises:
        ConfigError: The name is none, or ``huggingface_hub`` is not installed.
        CheckpointError: There is no such repository, revision or file, or it cannot be reached and is not in the cache.
    """
    match = _NAME.fullmatch(asked := _PREFIX.sub(PREFIX, str(checkpoint), count=1))
    if match is None:
        meant = _ALMOST.sub(PREFIX, asked, count=1)
        remark = f" (did you mean {meant}?)" if _NAME.fullmatch(meant) else ""
        raise ConfigError(f"{asked} names no checkpoint of the Hub; write {PREFIX}ORG/NAME[@REVISION][/FILE]{remark}")
    name, file = match["name"], match["file"]
    folder = _fetch(name, match["revision"], [*_SMALL_FILES, *([glob.escape(file)] if file else [])])
    commit = folder.name
    for one in () if file else FOLDER_FILES:
        _fetch(name, commit, [one])
        if (folder / one).is_file():
            break
    weights = folder / file if file else find_weights_file(folder)
    if weights.name.endswith(INDEX_SUFFIX) and weights.is_file():
        parts = sorted(set(read_index(weights).values()))
        _fetch(name, commit, [glob.escape(str((weights.parent / part).relative_to(folder))) for part in parts])
    elif not file and not weights.is_file():
        _fetch(name, commit, [glob.escape(weights.name)])  # what the pointer names
    if not weights.is_file():
        wanted = file or f"{', '.join(FOLDER_FILES)}, or what {POINTER_FILE} names"
        raise CheckpointError(f"{PREFIX}{name}@{commit} has no weights, wanted {wanted}; name one: {PREFIX}{name}/FILE")
    return HubCheckpoint(f"{PREFIX}{name}@{commit}", folder / file if file else folder)


def _fetch(name: str, revision: str | None, patterns: Iterable[str]) -> Path:
    """Return the folder of a commit, with the files that the patterns match and the repository has."""
    try:
        from huggingface_hub import snapshot_download
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ConfigError(
            f"{PREFIX} needs huggingface_hub, which is not installed; run {get_install_command('hub')}"
        ) from error

    class Bar(tqdm):  # type: ignore[misc]
        """Shown on a terminal alone, as those of the files are."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": None})

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns), tqdm_class=Bar))
    except (OSError, ValueError) as error:  # of whatever kind: no connection, no such repository, no access
        what = f"{PREFIX}{name}" + (f"@{revision}" if revision else "")
        reason = " ".join(str(error).split("\n\n")[-1].split())
        raise CheckpointError(f"{what} cannot be fetched ({reason}); check name, connection and access") from error
