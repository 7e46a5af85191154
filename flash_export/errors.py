"""The one error family of the package.

Every message states what was got, what was wanted and what to do about it, in one line: the command
line prints it as ``Error: ...`` and exits with code 2.
"""

from __future__ import annotations

# A terminal of 80 columns and 24 lines has room for it.
MAX_MESSAGE_CHARACTERS = 1600
MAX_REASON_CHARACTERS = 300
# The end of a message is its cure.
_TAIL_SHARE = 0.3


class FlashExportError(Exception):
    """Base of every error that the input or the environment causes, and that a user can mend."""

    def __init__(self, message: str) -> None:
        """Keep the message as one line of at most a screen, whatever the names and values in it are."""
        super().__init__(shorten(make_visible(message), MAX_MESSAGE_CHARACTERS))


def make_visible(text: str) -> str:
    r"""Return text whose control characters, line breaks and lone surrogates are written as escapes.

    >>> make_visible("layers.0\n.out"), make_visible("\x1b[31mé")
    ('layers.0\\n.out', '\\x1b[31mé')
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def shorten(text: str, characters: int) -> str:
    """Return text of at most this many characters: of longer text the middle is left out.

    >>> shorten("0123456789" * 9, 41)
    '0123456789012345678 [64 left out] 3456789'
    """
    if len(text) <= characters:
        return text
    room = characters - len(f" [{len(text)} left out] ")
    tail = int(room * _TAIL_SHARE)
    return f"{text[: room - tail]} [{len(text) - room} left out] {text[len(text) - tail :]}"


def describe_reason(error: BaseException) -> str:
    """Return why another library failed, for the brackets of a message: one short line.

    >>> describe_reason(FileNotFoundError(2, "No such file or directory", "x"))
    'No such file or directory'
    """
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return shorten(" ".join(reason.split()) or type(error).__name__, MAX_REASON_CHARACTERS)


class ConfigError(FlashExportError):
    """A model configuration or an option has a value that cannot be used."""


class CheckpointError(FlashExportError):
    """A checkpoint cannot be read, or its weights are not those of the model it claims to be."""


class BundleError(FlashExportError):
    """A bundle is missing, incomplete, changed since it was written, or cannot be written."""


class GraphError(FlashExportError):
    """An exported graph breaks one of the graph promises."""


class ProfileError(FlashExportError):
    """An optimisation profile is malformed or lies outside the range of the graph."""


class EngineBuildError(FlashExportError):
    """TensorRT refused the graph or failed to build it."""


class InputError(FlashExportError):
    """The inputs of a run do not fit the model: name, dtype, rank or length."""


class StateError(FlashExportError):
    """A carried state belongs to another model or batch, or holds what no state can hold."""


class ReportError(FlashExportError):
    """A validation report cannot be read."""


class BackendUnavailableError(FlashExportError):
    """A runtime, a provider or a device that was asked for is not usable here."""
