"""Which TensorRT builds an engine, and for what: choosing the flavour, and naming its targets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flash_export.config import AUTO_FLAVOUR, FLAVOURS, TENSORRT, TENSORRT_RTX, BuildOptions, Flavour
from flash_export.errors import BackendUnavailableError, ConfigError
from flash_export.runtime.trt_api import get_device_capability, has_cuda_device, is_installed
from flash_export.runtime.trt_features import Features
from flash_export.suggest import list_known

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flash_export.exporters.quantization.recipe import Scheme

# TensorRT-RTX refuses fp32 matrix products for Turing (7.5), so Turing is built for only when it is asked for.
MIN_DEFAULT_CAPABILITY = (8, 0)


def choose_flavour(options: BuildOptions) -> Flavour:
    """Return the flavour to build with.

    ``auto`` takes TensorRT where it is installed and a GPU is present, unless targets are named; else TensorRT-RTX,
    which builds ahead of time.

    Raises:
        BackendUnavailableError: TensorRT was asked for and there is no GPU to build on.
    """
    if options.flavour != AUTO_FLAVOUR:
        flavour = FLAVOURS[options.flavour]
        if flavour is TENSORRT and not has_cuda_device():
            raise BackendUnavailableError(
                "flavour tensorrt builds on the GPU that the engine is for, and there is no CUDA device here; "
                "build there, or use --flavour tensorrt-rtx, which needs no GPU"
            )
        return flavour
    if not options.compute_capabilities and is_installed(TENSORRT) and has_cuda_device():
        return TENSORRT
    return TENSORRT_RTX


def choose_targets(
    trt: Any, flavour: Flavour, requested: Sequence[str], scheme: Scheme | None = None
) -> dict[str, Any]:
    """Return what to build for: enum members by name; None for the GPU at hand, which TensorRT builds for.

    Raises:
        ConfigError: A compute capability was asked for that this version does not offer, or that lacks the scheme.
    """
    needed = None if scheme is None else scheme.min_capability
    if flavour is TENSORRT:
        return {get_device_capability(): None}
    offered = Features(trt).list_capabilities()
    if not requested:
        return {
            name: member
            for name, member in offered.items()
            if _parse_capability(name) >= (needed or MIN_DEFAULT_CAPABILITY)
        }
    for name in requested:
        if name not in offered:
            raise ConfigError(
                f"compute capability {name!r} is not one that {flavour.title} {trt.__version__} builds for; "
                f"use one of {list_known(name, offered)}"
            )
        if scheme is not None and needed is not None and _parse_capability(name) < needed:
            first = ".".join(map(str, needed))
            raise ConfigError(f"compute capability {name} has no {scheme.name}; use {first} or later")
    return {name: offered[name] for name in requested}


def _parse_capability(name: str) -> tuple[int, int]:
    major, minor = name.split(".")
    return int(major), int(minor)
