"""The command that installs flash-export again with an extra, from where this installation came from."""

from __future__ import annotations

import json
import shlex
from importlib import metadata
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

if TYPE_CHECKING:
    from collections.abc import Mapping

PACKAGE = "flash-export"


def get_install_command(extra: str = "") -> str:
    """Return the command to type; the package need not be on an index, so its bare name would find nothing."""
    return format_install_command(read_origin(), extra)


def read_origin() -> Mapping[str, Any] | None:
    """Return what pip noted about the origin of this installation; None where it came from an index, by its name.

    Source: ``direct_url.json``, https://packaging.python.org/en/latest/specifications/direct-url/
    """
    try:
        text = metadata.distribution(PACKAGE).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    return json.loads(text) if text else None


def format_install_command(origin: Mapping[str, Any] | None, extra: str = "") -> str:
    """Return the command for an origin.

    Args:
        origin: The content of ``direct_url.json``.
        extra: Name of an extra, such as ``cpu``; empty for none.

    >>> format_install_command({"url": "file:///home/me/flash-export", "dir_info": {"editable": True}}, "cpu")
    "pip install -e '/home/me/flash-export[cpu]'"
    """
    extras = f"[{extra}]" if extra else ""
    if origin is None:
        return f"pip install {shlex.quote(PACKAGE + extras)}"
    url, vcs = str(origin["url"]), origin.get("vcs_info")
    if vcs is not None:
        revision = f"@{vcs['requested_revision']}" if "requested_revision" in vcs else ""
        wanted = f"{PACKAGE}{extras} @ {vcs['vcs']}+{url}{revision}"
    elif urlsplit(url).scheme == "file":
        wanted = url2pathname(urlsplit(url).path) + extras
    else:
        wanted = f"{PACKAGE}{extras} @ {url}"
    flag = "-e " if origin.get("dir_info", {}).get("editable") else ""
    return f"pip install {flag}{shlex.quote(wanted)}"
