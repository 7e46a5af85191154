"""onnxruntime's execution providers, and what each is told: the profile and the caches of the two that build engines.

Options of ``TensorrtExecutionProvider``: https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html.
Those of the plugin stand in ``tensorrt_rtx_provider_options.h`` of its package.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flash_export.user_cache import open_user_cache

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from flash_export.bundle.manifest import GraphSpec, ProfileShapes

_PARTS = ("min", "opt", "max")


@dataclass(frozen=True)
class Provider:
    """An execution provider.

    Attributes:
        name: What it is called here; ``ort-NAME`` is the backend.
        title: What onnxruntime calls it.
        extra: Extra of this package that installs it.
        plugin: Module of the package that brings it; empty: it is part of onnxruntime.
        binds: Whether inputs and outputs are bound to memory of a CUDA device.
        builds_engines: Whether it compiles the graph, and so is told profiles and caches.
    """

    name: str
    title: str
    extra: str
    plugin: str = ""
    binds: bool = False
    builds_engines: bool = False


@dataclass(frozen=True)
class EngineNeeds:
    """What a provider that builds engines has to know of a graph.

    Attributes:
        graph: Contract of the graph.
        profiles: Shapes that engines are built for, by input name; one entry per profile.
        sha256: Of each file of the graph, by name: onnxruntime does not look at the weights to tell engines apart.
    """

    graph: GraphSpec
    profiles: tuple[dict[str, ProfileShapes], ...]
    sha256: Mapping[str, str] = field(default_factory=dict)


CPU = Provider("cpu", "CPUExecutionProvider", "cpu")
CUDA = Provider("cuda", "CUDAExecutionProvider", "gpu", binds=True)
TENSORRT = Provider("tensorrt", "TensorrtExecutionProvider", "gpu", binds=True, builds_engines=True)
TENSORRT_RTX = Provider(
    "tensorrt-rtx",
    "NvTensorRTRTXExecutionProvider",
    "ort-rtx",
    plugin="onnxruntime_ep_nv_tensorrt_rtx",
    builds_engines=True,
)
PROVIDERS = {one.name: one for one in (CPU, CUDA, TENSORRT, TENSORRT_RTX)}
# TensorFloat-32 keeps 10 bits of mantissa, and onnxruntime uses it unless told otherwise.
CUDA_OPTIONS = {"use_tf32": "0"}


def make_options(provider: Provider, needs: EngineNeeds | None, versions: Sequence[str]) -> dict[str, str]:
    """Return what a provider is told.

    Args:
        provider: The provider.
        needs: Of one that builds engines; None: it finds the shapes out by itself and keeps nothing.
        versions: Of what builds and runs engines; those that were kept by others are not taken.

    Raises:
        ConfigError: Others can write to the user's cache folder.
    """
    if provider is CUDA:
        return dict(CUDA_OPTIONS)
    if not provider.builds_engines:
        return {}
    profiles = {} if needs is None else format_profiles(needs)
    folder = None if needs is None else _open_cache(provider, needs, versions)
    if provider is TENSORRT_RTX:
        options = {f"nv_profile_{part}_shapes": text for part, text in profiles.items()}
        if needs is not None and len(needs.profiles) > 1:
            options["nv_multi_profile_enable"] = "1"
        return options if folder is None else {**options, "nv_runtime_cache_path": str(folder)}
    # Without these TensorRT computes in the types that the graph says, and nothing else is wanted.
    options = {"trt_fp16_enable": "0", "trt_int8_enable": "0"}
    options |= {f"trt_profile_{part}_shapes": text for part, text in profiles.items()}
    if folder is not None:
        for kind in ("engine", "timing"):
            options |= {f"trt_{kind}_cache_enable": "1", f"trt_{kind}_cache_path": str(folder)}
    return options


def format_profiles(needs: EngineNeeds) -> dict[str, str]:
    """Return profiles as both providers read them, by ``min``, ``opt`` and ``max``; nothing where every size is fixed.

    An input whose sizes are fixed has no profile. Several profiles are the same names several times over, such as
    ``input_ids:1x1,input_ids:1x513``.
    """
    dynamic = [spec.name for spec in needs.graph.inputs if any(isinstance(size, str) for size in spec.shape)]
    if not dynamic:
        return {}
    return {
        part: ",".join(
            f"{name}:{'x'.join(map(str, getattr(profile[name], part)))}"
            for profile in needs.profiles
            for name in dynamic
        )
        for part in _PARTS
    }


def _open_cache(provider: Provider, needs: EngineNeeds, versions: Sequence[str]) -> Path | None:
    """Return a folder of what was built for exactly this, in the user's cache, since it is native code."""
    folder = open_user_cache(f"ort-{provider.name}")
    if folder is None:
        return None
    facts = {"files": dict(needs.sha256), "profiles": format_profiles(needs), "versions": list(versions)}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    entry = folder / key
    entry.mkdir(mode=0o700, exist_ok=True)
    return entry
