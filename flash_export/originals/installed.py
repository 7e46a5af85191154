"""Importing the model files of an installed package without all else that it would import.

Packages of whole toolboxes import everything from audio files to training loops before their models, and pin what they
need. Their model files need little of that. What a model file takes from a package that is not there and computes
nothing with, such as a base class or a registry, has a *stand-in*; what computes is the package's own text.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
import types
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

    Call = Callable[[Mapping[str, Tensor]], "tuple[Tensor, ...]"]


@dataclass(frozen=True)
class Original:
    """A model of the library that its weights come from.

    Attributes:
        module: The library's module, with the weights loaded strictly.
        call: Runs it: inputs by the names of our interface to outputs in its order.
        stand_ins: Packages that were not there and that its files do not compute with.
    """

    module: nn.Module
    call: Call
    stand_ins: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelFiles:
    """The model files of a package.

    Attributes:
        package: Name of the package, which is not imported itself.
        modules: Names of the modules below it.
        folders: Packages below it whose ``__init__`` is left out too.
        stand_ins: Names and values of modules: those below the package always stand in, others where they are missing.
    """

    package: str
    modules: Sequence[str]
    folders: Sequence[str] = ()
    stand_ins: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def load(self) -> tuple[list[Any], tuple[str, ...]]:
        """Import the modules; also return which packages had stand-ins.

        Raises:
            ModuleNotFoundError: The package is not installed, or lacks one of the files.
        """
        spec = importlib.util.find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            raise ModuleNotFoundError(f"No module named {self.package!r}", name=self.package)
        root = list(spec.submodule_search_locations)
        missing = {name for name in map(_get_top, self.stand_ins) if name != self.package and not _is_installed(name)}
        for name, values in self.stand_ins.items():
            if _get_top(name) in {*missing, self.package}:
                sys.modules[name] = types.ModuleType(name)
                vars(sys.modules[name]).update(values)
        for folder in ("", *self.folders):
            parts = folder.split(".") if folder else []
            package = types.ModuleType(".".join([self.package, *parts]))
            package.__path__ = ["/".join([path, *parts]) for path in root]
            sys.modules[package.__name__] = package
        return [importlib.import_module(f"{self.package}.{name}") for name in self.modules], tuple(sorted(missing))


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], library: str) -> None:
    """Load weights strictly, whatever their precision.

    Raises:
        ValueError: A tensor is missing, unexpected or misshapen.
    """
    try:
        module.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=True)
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise ValueError(
            f"the weights do not fit {library} {find_version(library)} as it is installed: {text}"
        ) from error


def find_version(distribution: str) -> str:
    """Return the installed version, ``of unknown version`` where the package has none."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def _get_top(name: str) -> str:
    return name.partition(".")[0]


def _is_installed(name: str) -> bool:
    return name in sys.modules or importlib.util.find_spec(name) is not None
