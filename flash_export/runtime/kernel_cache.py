"""Kernels that TensorRT-RTX made at run time, kept for the next process.

They are native code, and nothing vouches for a file beside the engine: so they lie in the user's own cache folder, and
not in the bundle. TensorRT-RTX itself refuses those of another GPU, driver or version.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from flash_export.errors import BundleError, describe_reason
from flash_export.files import write_file
from flash_export.user_cache import open_user_cache

if TYPE_CHECKING:
    from flash_export.bundle.manifest import EngineManifest

logger = logging.getLogger(__name__)


class KernelCache:
    """The kernels of one engine."""

    def __init__(self, engine: EngineManifest) -> None:
        """Find the file.

        Raises:
            ConfigError: Others can write to the user's cache folder.
        """
        folder = open_user_cache("kernels")
        self._path = None if folder is None else folder / f"{engine.engine_sha256}.bin"
        self._kept: bytes | None = None

    def read(self) -> bytes | None:
        """Return what was kept; None if nothing was."""
        if self._path is None:
            return None
        try:
            self._kept = self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            logger.warning("Kernels that were kept cannot be read: %s (%s)", self._path, describe_reason(error))
            return None
        return self._kept

    def write(self, content: bytes) -> None:
        """Keep kernels, if they are others than those that were read."""
        if self._path is None or content == self._kept:
            return
        try:
            write_file(self._path, content)
        except BundleError as error:
            logger.warning("Kernels are not kept: %s", error)
        else:
            self._kept = content
