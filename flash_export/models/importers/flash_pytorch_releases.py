"""The dialects of flash-pytorch's releases: which arguments each has, and what it does where it has none.

Read in the code of each release and tested against it. What is the same in all of them is not here: names and shapes
of the tensors, ScaleNorm, rotary embedding, buckets and scale of FLASH's relative bias, scaled sinusoid. There was no
release 0.1.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flash_export.errors import ConfigError
from flash_export.layers.activation import LAPLACE, LAPLACE_WIDE, RELU2

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SHIFT, LAPLACE_ARGUMENT, REDUCE = "shift_tokens", "laplace_attn_fn", "reduce_group_non_causal_attn"
DEFAULTS: dict[str, bool | int] = {
    "group_size": 256,
    "causal": False,
    SHIFT: True,
    LAPLACE_ARGUMENT: False,
    REDUCE: True,
}


@dataclass(frozen=True)
class Release:
    """One release.

    Attributes:
        version: Its version.
        fixed: What it does where later releases have an argument.
        laplace: Name of its Laplace attention function.
        gau_has_bias: Whether a ``GAU`` has a relative bias of its own.
    """

    version: str
    fixed: Mapping[str, bool]
    laplace: str = LAPLACE
    gau_has_bias: bool = False

    def resolve(self, given: Mapping[str, Any], name: str) -> Any:
        """Return the value of an argument: what was given, or what the release does without it."""
        return given.get(name, self.fixed.get(name, DEFAULTS[name]))

    def name_attention_fn(self, given: Mapping[str, Any]) -> str:
        """Return our name of the attention function."""
        return self.laplace if self.resolve(given, LAPLACE_ARGUMENT) else RELU2


_RELU2_ALONE = {LAPLACE_ARGUMENT: False}
RELEASES = (
    Release("0.1.0", {SHIFT: False, REDUCE: True, **_RELU2_ALONE}),
    Release("0.1.1", {REDUCE: True, **_RELU2_ALONE}),
    Release("0.1.2", {REDUCE: True, **_RELU2_ALONE}),
    Release("0.1.4", {REDUCE: False, **_RELU2_ALONE}),
    Release("0.1.5", _RELU2_ALONE),
    Release("0.1.6", {}, laplace=LAPLACE_WIDE),
    Release("0.1.7", {}),
    Release("0.1.8", {}, gau_has_bias=True),
    Release("0.1.9", {}, gau_has_bias=True),
)


def select_releases(
    version: str | None, given: Mapping[str, Any], gau_has_bias: bool | None = None
) -> tuple[Release, ...]:
    """Return the releases that the weights may be of, the newest last.

    Args:
        version: The release that was named; None for any.
        given: Arguments that were given.
        gau_has_bias: Whether the weights hold the bias of a ``GAU``; None if they are of no ``GAU``.

    Raises:
        ConfigError: The version is unknown, or contradicts the arguments or the weights.
    """
    if version is None:
        releases: Sequence[Release] = RELEASES
    else:
        releases = [release for release in RELEASES if release.version == version]
        if not releases:
            known = ", ".join(release.version for release in RELEASES)
            raise ConfigError(f"flash-pytorch {version} is not a release whose models are known; they are {known}")
        named = releases[0]
        for name, value in named.fixed.items():
            if given.get(name, value) != value:
                raise ConfigError(
                    f"{name}={str(given[name]).lower()}, but flash-pytorch {version} has no such argument and always "
                    f"works as with {str(value).lower()}; correct it or the version"
                )
        if gau_has_bias not in (None, named.gau_has_bias):
            has = "has no relative bias" if gau_has_bias else "has a relative bias"
            have = "hold one" if gau_has_bias else "hold none"
            raise ConfigError(f"the GAU of flash-pytorch {version} {has}, but the weights {have}; correct the version")
    return tuple(
        release
        for release in releases
        if gau_has_bias in (None, release.gau_has_bias)
        and all(given.get(name, value) == value for name, value in release.fixed.items())
    )
