"""Where Python may import from: never from the current folder or a bundle, which may hold files of anyone.

What this file imports is loaded whenever Python starts, so that the path can be mended before anything else is looked
for on it.
"""

import os
import sys

TYPE_CHECKING = False  # type checkers take it for that of typing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from subprocess import CompletedProcess

NEUTRAL_FOLDER = os.sep  # is always there, and none but the administrator writes to it
_PACKAGE_FOLDER = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
_BOOTSTRAP = (
    "import sys; module, *sys.path[:] = sys.argv[1:]; import runpy; runpy.run_module(module, run_name='__main__')"
)


def list_import_folders(untrusted: "Sequence[str]" = ()) -> list[str]:
    """Return ``sys.path`` as absolute paths, without the current folder and whatever lies in an untrusted one.

    The folder that this package was imported from stays, be it the current one: code from there is running already.

    Args:
        untrusted: Folders that nothing is imported from.
    """
    try:
        current = os.path.realpath(os.getcwd())
    except FileNotFoundError:  # it was removed, so nothing can be imported from it
        current = None
    folders = []
    for path in map(os.path.abspath, filter(None, sys.path)):
        real = os.path.realpath(path)
        is_inside = any(f"{real}{os.sep}".startswith(f"{os.path.realpath(one)}{os.sep}") for one in untrusted)
        if real == _PACKAGE_FOLDER or not (real == current or is_inside):
            folders.append(path)
    return folders


def build_command(module: str, untrusted: "Sequence[str]" = ()) -> "list[str]":
    """Return the command that runs a module of this package in a fresh process, from :data:`NEUTRAL_FOLDER`.

    -I keeps the current folder, PYTHONPATH and the user's own packages out before anything is imported; a development
    install may have put this package elsewhere than on the path.

    Args:
        module: Full name.
        untrusted: Folders that nothing is imported from, besides the current one.
    """
    return [sys.executable, "-I", "-c", _BOOTSTRAP, module, *list_import_folders(untrusted), _PACKAGE_FOLDER]


def run_module(module: str, text: str, *, untrusted: "Sequence[str]" = (), timeout_s: float) -> "CompletedProcess[str]":
    """Run a module of this package in a fresh process and wait for it.

    Args:
        module: Full name.
        text: What it finds on stdin.
        untrusted: Folders that nothing is imported from, besides the current one.
        timeout_s: Longest time that it may take.

    Raises:
        subprocess.TimeoutExpired: It took longer, and was killed.
    """
    import subprocess

    command = build_command(module, untrusted)
    return subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=timeout_s, cwd=NEUTRAL_FOLDER, check=False
    )
