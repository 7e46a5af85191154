"""The user's cache folder: what was made once and can be made again. There is native code in it: nobody else may write.

``FLASH_EXPORT_CACHE`` names another folder.
"""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

from flash_export.errors import ConfigError, describe_reason

FOLDER_VARIABLE = "FLASH_EXPORT_CACHE"
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH

logger = logging.getLogger(__name__)


def open_user_cache(name: str) -> Path | None:
    """Return a folder of the cache, which is made if it is not there; None, with a warning, where it cannot be made.

    Raises:
        ConfigError: Others can write there.
    """
    from platformdirs import user_cache_path

    given = os.environ.get(FOLDER_VARIABLE)
    folder = (Path(given).expanduser() if given else user_cache_path("flash-export")) / name
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        logger.warning(
            "Nothing is kept for the next time: %s cannot be made (%s); name another folder by %s",
            *(folder, describe_reason(error), FOLDER_VARIABLE),
        )
        return None
    if found.st_uid != os.geteuid() or found.st_mode & _OTHERS_MAY_WRITE:
        raise ConfigError(
            f"others can write to {folder}, from which native code is taken; make it yours alone (chmod go-w), or name "
            f"another folder by {FOLDER_VARIABLE}"
        )
    return folder
