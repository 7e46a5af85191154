"""The one error family of the package.

Every message states what was got, what was wanted and what to do about it, in one line: the command
line prints it as ``Error: ...`` and exits with code 2.
"""

from __future__ import annotations


class FlashExportError(Exception):
    """Base of every error that the input or the environment causes, and that a user can mend."""


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
