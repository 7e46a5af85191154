"""The bundles of a comparison: whether they are the same model, what they are called, how large they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flash_export.config import CONFIG_FILE, WEIGHTS_FILE
from flash_export.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle
    from flash_export.runtime.runner import Runner

_MAX_NAMED = 5


@dataclass
class Candidate:
    """A bundle that is being compared.

    Attributes:
        bundle: The bundle.
        name: Short name.
        runner: Runs its forward graph; None if that cannot be opened.
        reason: Why it is not run, or not any more; None while it is.
    """

    bundle: Bundle
    name: str
    runner: Runner | None = None
    reason: str | None = None


def order_bundles(bundles: Sequence[Bundle], reference: Bundle | None) -> list[Bundle]:
    """Return the bundles with the reference in front.

    Raises:
        ConfigError: There is none, or one was given twice.
    """
    paths = [bundle.path.resolve() for bundle in bundles]
    if twice := [bundle for bundle, path in zip(bundles, paths, strict=True) if paths.count(path) > 1]:
        raise ConfigError(f"{twice[0].path} was given twice; give each bundle once")
    if reference is not None:
        first = reference.path.resolve()
        bundles = [reference, *(bundle for bundle, path in zip(bundles, paths, strict=True) if path != first)]
    if not bundles:
        raise ConfigError("no bundle was given; give at least one")
    return list(bundles)


def check_same_model(bundles: Sequence[Bundle]) -> None:
    """Check that all bundles have the config and the reference weights of the first.

    Raises:
        ConfigError: One has not; a comparison would tell models apart, not exports.
    """
    first = bundles[0]
    config, weights = first.read_config(), _get_weights_hash(first)
    for other in bundles[1:]:
        own = other.read_config()
        if differing := sorted(name for name in config.keys() | own.keys() if config.get(name) != own.get(name)):
            shown = ", ".join(
                f"{name}={own.get(name)!r} in place of {config.get(name)!r}" for name in differing[:_MAX_NAMED]
            )
            raise ConfigError(
                f"{other.path} is another model than {first.path}: its {CONFIG_FILE} has {shown}; compare bundles "
                "of one checkpoint"
            )
        if (found := _get_weights_hash(other)) != weights:
            raise ConfigError(
                f"{other.path} is another model than {first.path}: its {WEIGHTS_FILE} has sha256 {found[:12]}..., "
                f"not {weights[:12]}...; compare bundles of one checkpoint"
            )


def name_bundles(paths: Sequence[Path]) -> list[str]:
    """Return a short name of each folder: its last parts, as many as tell it from the others.

    >>> from pathlib import Path
    >>> name_bundles([Path("out/fp32"), Path("out/int8")])
    ['fp32', 'int8']
    >>> name_bundles([Path("a/int8"), Path("b/int8"), Path("fp32")])
    ['a/int8', 'b/int8', 'fp32']
    """
    names = []
    for path in paths:
        parts = path.resolve().parts
        others = [other.resolve().parts for other in paths if other is not path]
        count = next(
            (size for size in range(1, len(parts)) if all(other[-size:] != parts[-size:] for other in others)),
            len(parts),
        )
        names.append("/".join(parts[-count:]))
    return names


def measure_graph_bytes(bundle: Bundle) -> dict[str, int]:
    """Return the size of each graph in bytes: its file, and what it reads of external data.

    The graphs of a bundle share their external data, so that the sizes do not add up to that of the bundle.
    """
    return {name: _measure_file(bundle.get_graph_path(name)) for name in bundle.manifest.graphs}


def _measure_file(path: Path) -> int:
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    from flash_export.graph_files import read_graph

    size = path.stat().st_size
    pieces: dict[tuple[str, int], int] = {}  # two weights of a graph may be the same piece of the file
    for tensor in read_graph(path).graph.initializer:
        if uses_external_data(tensor):
            try:
                info = ExternalDataInfo(tensor)
                offset = int(info.offset or 0)
                length = int(info.length) if info.length else (path.parent / info.location).stat().st_size - offset
            except (OSError, ValueError, TypeError) as error:
                raise BundleError(f"{path} names weights that are not there ({error}); export it again") from error
            pieces[info.location, offset] = max(length, pieces.get((info.location, offset), 0))
    return size + sum(pieces.values())


def _get_weights_hash(bundle: Bundle) -> str:
    try:
        return bundle.manifest.files[WEIGHTS_FILE]
    except KeyError:
        raise ConfigError(
            f"{bundle.path} has no {WEIGHTS_FILE}, the weights of the model that it is compared with; export it again"
        ) from None
