"""The optimisation profiles of an engine: which one fits the shapes of a run, and how they are written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_export.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from flash_export.bundle.manifest import EngineManifest, ProfileShapes


def choose_profile(engine: EngineManifest, shapes: Mapping[str, Sequence[int]]) -> int:
    """Return the index of the first profile that holds every shape.

    Args:
        engine: The engine's manifest.
        shapes: Shape of every input, by name.

    Raises:
        InputError: No profile fits; the message names the ranges of them all.
    """
    for index, profile in enumerate(engine.profiles):
        if all(_fits(profile[name], shape) for name, shape in shapes.items()):
            return index
    got = ", ".join(f"{name} {_format(shape)}" for name, shape in shapes.items())
    ranges = "; ".join(f"profile {index}: {_format_ranges(profile)}" for index, profile in enumerate(engine.profiles))
    raise InputError(
        f"{got} fits no profile of engine {engine.name!r} ({ranges}); stay in range, or build another engine with "
        "'flash-export trt --profile MIN:OPT:MAX'"
    )


def format_profile(engine: EngineManifest, profile: dict[str, ProfileShapes]) -> str | None:
    """Return a profile as it is written on the command line; None where every size is fixed.

    The axes are those of the inputs, in the order in which these show them.
    """
    found: dict[str, tuple[int, int, int]] = {}
    for spec in engine.inputs:
        shapes = profile[spec.name]
        for axis, name in enumerate(spec.shape):
            if isinstance(name, str):
                found.setdefault(name, (shapes.min[axis], shapes.opt[axis], shapes.max[axis]))
    if not found:
        return None
    return ":".join("x".join(map(str, sizes)) for sizes in zip(*found.values(), strict=True))


def _fits(profile: ProfileShapes, shape: Sequence[int]) -> bool:
    return len(shape) == len(profile.min) and all(
        low <= size <= high for low, size, high in zip(profile.min, shape, profile.max, strict=True)
    )


def _format_ranges(profile: Mapping[str, ProfileShapes]) -> str:
    return ", ".join(f"{name} {_format(shapes.min)} to {_format(shapes.max)}" for name, shapes in profile.items())


def _format(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
