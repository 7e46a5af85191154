"""Writing models into a Triton model repository: each in one step, older versions staying where they are.

A server that runs finds the new version when it polls or is told to load it, and ends with the old one what it began.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from flash_export.bundle.bundle import reads_bundles
from flash_export.bundle.output_folder import check_folder
from flash_export.config import FORWARD
from flash_export.errors import BundleError, ConfigError
from flash_export.files import hash_file, hash_files, link_folder, replace_folder
from flash_export.locks import lock_folder
from flash_export.reading import read_record
from flash_export.serving.forward import describe_forward
from flash_export.serving.generate import describe_generate
from flash_export.serving.model_config import CONFIG_FILE, format_config
from flash_export.serving.options import GENERATE, RAGGED, SEQUENCE, TritonOptions
from flash_export.serving.ragged import describe_ragged
from flash_export.serving.sequence import describe_sequence
from flash_export.strict_json import format_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from flash_export.bundle.bundle import Bundle
    from flash_export.serving.folder import ModelFolder

RECORD_FILE = "flash-export.json"
_FORMS: dict[str, Callable[[Bundle, str, TritonOptions], ModelFolder]] = {
    FORWARD: describe_forward,
    RAGGED: describe_ragged,
    SEQUENCE: describe_sequence,
    GENERATE: describe_generate,
}
_WRITE_ELSEWHERE = "choose another --name"


@dataclass(frozen=True)
class ModelRecord:
    """``flash-export.json`` of a model in a repository: what was written there.

    Attributes:
        form: What the model is.
        config_sha256: Hash of ``config.pbtxt``.
        versions: sha256 of the files of each version, by its number and their paths in it.
    """

    form: str
    config_sha256: str
    versions: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that versions are numbers, and that their files lie in them."""
        if odd := [name for name in self.versions if not re.fullmatch(r"[1-9][0-9]{0,9}", name)]:
            raise ValueError(f"version {odd[0]!r} is no number")
        names = [name for files in self.versions.values() for name in files]
        if odd := [name for name in names if PurePath(name).is_absolute() or ".." in PurePath(name).parts]:
            raise ValueError(f"{odd[0]!r} is no file of a version")


@dataclass(frozen=True)
class ServedModel:
    """A model that was written.

    Attributes:
        name: What clients call it.
        form: ``forward``, ``ragged``, ``sequence`` or ``generate``.
        version: Its number, which is served.
        kept: Older versions that stay on disk.
        backend: What of Triton runs it.
        max_batch_size: Most rows of a run; 0: Triton does not batch its requests.
        files: sha256 of its files, by their path in the version's folder.
    """

    name: str
    form: str
    version: int
    kept: tuple[int, ...]
    backend: str
    max_batch_size: int
    files: dict[str, str]


@dataclass(frozen=True)
class Repository:
    """What was written.

    Attributes:
        path: The model repository.
        models: The models, in the order of their forms.
    """

    path: Path
    models: tuple[ServedModel, ...]

    def to_json(self) -> str:
        """Return strict JSON."""
        return format_json(self)


@reads_bundles
def write_repository(bundle: Bundle, repository: str | Path, options: TritonOptions | None = None) -> Repository:
    """Write a bundle as models of a Triton model repository.

    All are described and checked before the first is written.

    Args:
        bundle: What is served.
        repository: Folder of the models, which may have others.
        options: Which forms, and how.

    Raises:
        BundleError: A form cannot serve this model, the folder is a file or a bundle, or holds something else under a
            name, a version is there already, or nothing can be written.
        ConfigError: The name is none that Triton takes.
        BackendUnavailableError: ``tritonclient`` is not installed.
    """
    options = options or TritonOptions()
    base = options.name if options.name is not None else bundle.path.resolve().name
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}", base):
        raise ConfigError(f"name {base!r} is not usable; give --name letters, digits, and . _ - between them")
    folders = [_FORMS[form](bundle, base if form == FORWARD else f"{base}-{form}", options) for form in options.forms]
    texts = [format_config({**one.config, "version_policy": {"latest": {"num_versions": 1}}}) for one in folders]
    target = Path(repository)
    check_folder(target)
    target.mkdir(parents=True, exist_ok=True)
    with lock_folder(target):
        records = [_check_place(target / one.name, one, options) for one in folders]
        models = [
            _write_model(target / one.name, one, text, record, options)
            for one, text, record in zip(folders, texts, records, strict=True)
        ]
    return Repository(target, tuple(models))


def _check_place(path: Path, model: ModelFolder, options: TritonOptions) -> ModelRecord | None:
    """Return what is there under the name of a model; None: nothing.

    Raises:
        BundleError: It is not ours, of another form, was changed by hand, or has the version already.
    """
    if not path.exists():
        return None
    if not (path / RECORD_FILE).is_file():
        raise BundleError(
            f"{path} is there and has no {RECORD_FILE}, so flash-export did not write it; {_WRITE_ELSEWHERE}"
        )
    record = read_record(path / RECORD_FILE, ModelRecord, BundleError, f"remove {path}, or {_WRITE_ELSEWHERE}")
    if record.form != model.form:
        raise BundleError(f"{path} is of the form {record.form}, this one is {model.form}; {_WRITE_ELSEWHERE}")
    newest = max(map(int, record.versions), default=0)
    if options.version is not None and options.version < newest:
        raise BundleError(
            f"{path} has version {newest}, and the newest is served, not {options.version}; leave --version out"
        )
    if options.force:
        return record
    if options.version is not None and str(options.version) in record.versions:
        raise BundleError(
            f"{path} has version {options.version} already; leave --version out for the next one, or write over it "
            "with --force"
        )
    if hash_file(path / CONFIG_FILE) != record.config_sha256:
        raise BundleError(
            f"{path / CONFIG_FILE} was changed by hand, and would be written again; keep a copy, and write over it "
            "with --force"
        )
    return record


def _write_model(
    path: Path, model: ModelFolder, text: str, record: ModelRecord | None, options: TritonOptions
) -> ServedModel:
    """Exchange the folder of a model for one that has a version more."""
    there = record.versions if record else {}
    version = options.version or max(map(int, there), default=0) + 1
    others = sorted(int(name) for name in there if int(name) != version)
    kept = others[len(others) - min(options.keep - 1, len(others)) :]
    files = {name: sha256 for name, (_, sha256) in model.copied.items()}
    with replace_folder(path) as staging:
        for one in kept:
            _check_files(path / str(one), there[str(one)])
            (staging / str(one)).mkdir()
            link_folder(path / str(one), staging / str(one), ())
        folder = staging / str(version)
        folder.mkdir()
        for name, (source, _) in model.copied.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / name)  # no link: who reads the bundle with ONNX takes one for an attack
        for name, content in model.texts.items():
            (folder / name).write_text(content, encoding="utf-8")
            files[name] = hash_file(folder / name)
        (staging / CONFIG_FILE).write_text(text, encoding="utf-8")
        versions = {**{str(one): there[str(one)] for one in kept}, str(version): files}
        new = ModelRecord(model.form, hash_file(staging / CONFIG_FILE), versions)
        (staging / RECORD_FILE).write_text(format_json(new), encoding="utf-8")
    backend = str(model.config.get("platform") or model.config["backend"])
    batch = int(model.config["max_batch_size"])
    return ServedModel(path.name, model.form, version, tuple(kept), backend, batch, files)


def _check_files(folder: Path, files: dict[str, str]) -> None:
    """Check the files of a version that stays.

    Raises:
        BundleError: One is missing or was changed.
    """
    try:
        actual = hash_files([folder / name for name in files])
    except OSError as error:
        raise BundleError(f"{error.filename} is missing; remove {folder.parent}, and write the model again") from error
    for (name, expected), found in zip(files.items(), actual, strict=True):
        if found != expected:
            raise BundleError(
                f"{folder / name} was changed since it was written; remove {folder.parent}, and write the model again"
            )
