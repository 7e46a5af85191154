"""Engines that were built before, in the user's cache folder, each under a key of all that it depends on.

An entry is a folder with an engine and its manifest, which has the engine's sha256. Whoever makes or reads an entry
holds its lock: of two processes that want one engine, one builds it and the other waits. What a killed build leaves is
an entry without an engine, which the next one fills.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flash_export.bundle.manifest import EngineManifest
from flash_export.errors import BundleError, ConfigError, describe_reason
from flash_export.files import write_file
from flash_export.locks import lock_folder
from flash_export.reading import read_record
from flash_export.user_cache import open_user_cache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LIMIT_VARIABLE = "FLASH_EXPORT_CACHE_GIB"
DEFAULT_LIMIT_GIB = 10
MAX_WAIT_S = 6 * 3600.0  # for another process that builds the same engine
_ENGINE, _MANIFEST = "engine", "engine.json"
_KEY = re.compile(r"[0-9a-f]{64}")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineCache:
    """A folder of built engines.

    Attributes:
        folder: Where it is.
        limit_bytes: What all engines in it may take; those that were not used for longest go first.
    """

    folder: Path
    limit_bytes: int

    @classmethod
    def open(cls) -> EngineCache | None:
        """Open the user's cache; None, with a warning, where it cannot be made.

        Raises:
            ConfigError: Others can write there, or the environment names no size.
        """
        limit_bytes = _read_limit()
        folder = open_user_cache("engines")
        return None if folder is None else cls(folder, limit_bytes)

    def fetch(self, key: str, build: Callable[[], tuple[EngineManifest, bytes]]) -> tuple[EngineManifest, bytes, bool]:
        """Return the engine of a key, from the cache or else built now and kept; the last tells whether it was there.

        Args:
            key: A sha256, in hex, of all that the engine depends on.
            build: Builds it; whatever it raises leaves nothing behind.

        Raises:
            BundleError: Another process has been building it for six hours.
        """
        with self._lock(key) as entry:
            if (found := _read(entry)) is not None:
                os.utime(entry)
                return *found, True
            engine, content = build()
            self._store(entry, engine, content)
        self._shrink(entry)
        return engine, content, False

    @contextmanager
    def _lock(self, key: str) -> Iterator[Path]:
        """Hold the lock of an entry, which is made if it is not there."""
        entry = self.folder / key
        with ExitStack() as stack:
            while True:
                entry.mkdir(mode=0o700, exist_ok=True)
                try:
                    stack.enter_context(lock_folder(entry, timeout_s=MAX_WAIT_S))
                    break
                except FileNotFoundError:  # removed as too old in the meantime
                    continue
            try:
                yield entry
            finally:
                if not (entry / _MANIFEST).exists():
                    shutil.rmtree(entry, ignore_errors=True)

    def _store(self, entry: Path, engine: EngineManifest, content: bytes) -> None:
        """Keep an engine; one without its manifest does not count."""
        try:
            (entry / _MANIFEST).unlink(missing_ok=True)
            write_file(entry / _ENGINE, content)
            write_file(entry / _MANIFEST, engine.to_json().encode())
        except (OSError, BundleError) as error:
            logger.warning("The engine is not kept for the next build: %s", describe_reason(error))

    def _shrink(self, newest: Path) -> None:
        """Remove entries, those used longest ago first, until the rest is small enough; the newest one stays."""
        entries = [path for path in self.folder.iterdir() if _KEY.fullmatch(path.name) and path != newest]
        left_bytes = self.limit_bytes - _measure(newest)
        for entry in sorted(entries, key=_read_time, reverse=True):
            left_bytes -= _measure(entry)
            if left_bytes < 0:
                with suppress(OSError, BundleError), lock_folder(entry, timeout_s=0):
                    shutil.rmtree(entry, ignore_errors=True)


def _read(entry: Path) -> tuple[EngineManifest, bytes] | None:
    """Return what an entry holds; None if that is nothing, or not what its manifest says."""
    manifest, path = entry / _MANIFEST, entry / _ENGINE
    if not manifest.exists():
        return None
    try:
        engine = read_record(manifest, EngineManifest, BundleError, "it is built again")
        content = path.read_bytes()
    except (OSError, BundleError) as error:
        logger.warning("An engine in the cache is not used: %s", error)
        return None
    if hashlib.sha256(content).hexdigest() != engine.engine_sha256:
        logger.warning("An engine in the cache is not used: %s was changed; it is built again", path)
        return None
    return engine, content


def _measure(entry: Path) -> int:
    with suppress(OSError):
        return sum(path.stat().st_size for path in entry.iterdir())
    return 0


def _read_time(entry: Path) -> float:
    with suppress(OSError):
        return entry.stat().st_mtime
    return 0.0


def _read_limit() -> int:
    text = os.environ.get(LIMIT_VARIABLE, str(DEFAULT_LIMIT_GIB))
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text):
        raise ConfigError(f"{LIMIT_VARIABLE}={text!r} is no size in GiB; write it like {DEFAULT_LIMIT_GIB}")
    return int(float(text) * (1 << 30))
