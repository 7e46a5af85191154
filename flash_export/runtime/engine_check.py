"""Whether an engine of a bundle may be loaded here: its files, what built it, and the GPU. Engines are native code."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flash_export.config import FLAVOURS, TENSORRT_RTX
from flash_export.errors import BackendUnavailableError, BundleError
from flash_export.runtime.profile_choice import format_profile
from flash_export.runtime.trt_api import get_device_capability, has_cuda_device, import_flavour

if TYPE_CHECKING:
    from flash_export.bundle.bundle import Bundle
    from flash_export.bundle.manifest import EngineManifest


@dataclass(frozen=True)
class EngineStatus:
    """What is known of an engine here; true unless something does not fit.

    Attributes:
        engine: Its manifest.
        differences: Why it must not be loaded here, a clause each.
        is_damaged: Whether it could be loaded nowhere: it is not the engine of this bundle.
        unknown: What could not be told here, a clause each.
        rebuild: The command that builds it again.
    """

    engine: EngineManifest
    differences: tuple[str, ...]
    is_damaged: bool
    unknown: tuple[str, ...]
    rebuild: str

    def __bool__(self) -> bool:
        """Tell whether nothing speaks against loading it."""
        return not self.differences

    @property
    def fits(self) -> bool:
        """Whether all could be told, and fits."""
        return not self.differences and not self.unknown


def check_engine(bundle: Bundle, engine: EngineManifest) -> EngineStatus:
    """Compare an engine with the bundle's graph, with the installed TensorRT and with the GPU."""
    differences, unknown = [], []
    try:
        bundle.get_engine_path(engine)
    except BundleError as error:
        differences.append(str(error).rpartition("; ")[0] or str(error))
    flavour = FLAVOURS.get(engine.flavour)
    if flavour is None:
        differences.append(f"its flavour is {engine.flavour!r}, this version knows {', '.join(FLAVOURS)}")
    is_damaged = bool(differences)
    if flavour is not None:
        try:
            version = import_flavour(flavour).__version__
            if version != engine.version:
                differences.append(f"it was built by {flavour.title} {engine.version}, here is {version}")
        except BackendUnavailableError as error:
            unknown.append(f"its version, because {str(error).partition(';')[0]}")
    if not has_cuda_device():
        unknown.append("the GPU, because there is no CUDA device here")
    elif (capability := get_device_capability()) not in engine.targets:
        targets = ", ".join(engine.targets)
        differences.append(f"it was built for compute capability {targets}, the GPU here has {capability}")
    return EngineStatus(engine, tuple(differences), is_damaged, tuple(unknown), format_rebuild(bundle, engine))


def format_rebuild(bundle: Bundle, engine: EngineManifest) -> str:
    """Return the command that builds an engine again as it was, for its targets and this graph."""
    arguments = ["flash-export", "trt", str(bundle.path), "--graph", engine.graph, "--name", engine.name]
    if engine.flavour in FLAVOURS:
        arguments += ["--flavour", engine.flavour]
    for profile in engine.profiles:
        if (text := format_profile(engine, profile)) is not None:
            arguments += ["--profile", text]
    if engine.flavour == TENSORRT_RTX.name:
        arguments += [part for target in engine.targets for part in ("--compute-capability", target)]
    if engine.workspace_bytes is not None:
        arguments += ["--workspace-mib", str(engine.workspace_bytes >> 20)]
    return shlex.join([*arguments, *(["--tf32"] if engine.tf32 else []), "--force"])
