"""Checkpoints saved by mmpose: the SimCC head of RTMPose, or its gated attention unit alone.

The reference modules carry mmpose's parameter names, so importing is a matter of prefixes and of the config: sizes
follow from the shapes; the rest must be given as the constructor arguments that the model was trained with, in the form
that mmpose's config files have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flash_export.errors import CheckpointError, ConfigError
from flash_export.layers.norm import SCALE_NORM_EPS
from flash_export.models.family import Family
from flash_export.models.importers.arguments import ImportedModel, check_expansion, check_number
from flash_export.models.rtmpose_gau import RtmposeGauConfig, RtmposeGauModel, SimccHead

if TYPE_CHECKING:
    from torch import Tensor

    from flash_export.models.importers.arguments import GivenArguments

    Tensors = Mapping[str, Tensor]

# What is asked for of a head; mmpose has defaults for some of it, which no published config relies on.
HIDDEN_ARGUMENTS = ("gau_cfg.act_fn", "gau_cfg.pos_enc", "in_featuremap_size", "input_size")
ANCHOR = "gau.uv.weight"  # in every head once
HEAD, BLOCK, GAU_CONFIG = "head.", "gau.", "gau_cfg."
OTHER_PARTS = ("backbone.", "neck.", "data_preprocessor.")  # of a pose estimator
IGNORED = ("type", "loss", "decoder", "init_cfg", "dropout_rate", "drop_path")  # they do not change what is predicted
ACTIVATION_NAMES = {"SiLU": "silu", "ReLU": "relu"}


def import_mmpose(tensors: Tensors, arguments: GivenArguments) -> ImportedModel:
    """Translate a state dict of mmpose, see :func:`import_rtmpose`; nothing is assumed.

    Raises:
        ConfigError: An argument is missing, unknown, or contradicts the weights; or a release or defaults are named.
        CheckpointError: The tensors that tell the sizes are missing, or are of another kind of head or block.
    """
    if arguments.library_version is not None or arguments.assume_defaults:
        raise ConfigError(
            "mmpose's weights are read without a release or defaults; leave --library-version and --assume-defaults "
            "out, and give the arguments of the model's mmpose config"
        )
    config, own = import_rtmpose(tensors, arguments.values)
    return ImportedModel(config, own, {})


def import_rtmpose(tensors: Tensors, arguments: Mapping[str, Any]) -> tuple[RtmposeGauConfig, dict[str, Tensor]]:
    """Translate the state dict of a pose estimator, of its ``RTMCCHead`` or of an ``RTMCCBlock``.

    Of a whole pose estimator the head is taken; its backbone, neck and preprocessor are left out.

    Args:
        tensors: The state dict: keys ``head.*`` beside those of other parts, or those of the head or the block alone.
        arguments: Constructor arguments of ``RTMCCHead``, ``gau_cfg`` as a dictionary or by dotted names
            (``gau_cfg.act_fn``), which win; those of ``RTMCCBlock`` for the block alone. What weights tell may be left
            out. So may ``eps`` of a block, which stands for mmpose's default of 1e-5, and ``simcc_split_ratio``, if the
            number of bins is a multiple of the size of the image.

    Returns:
        Our config, and the tensors under our names: those of the head.

    Raises:
        ConfigError: An argument is missing, unknown, or contradicts the weights.
        CheckpointError: The tensors that tell the sizes are missing, or are of another kind of head or block.
    """
    tensors = _select_head(tensors)
    weights = _Weights(tensors)
    given = _Given(_flatten(arguments))
    if all(name.startswith(BLOCK) for name in tensors):
        given.take("act_fn", "pos_enc", *(() if weights.has("gau.w") else ("num_token",)))
        config = _read_block(weights, given, prefix="", head=None)
    else:
        given.take(*HIDDEN_ARGUMENTS)  # all that is missing in one message
        head = _read_head(weights, given)
        config = _read_block(weights, given, prefix=GAU_CONFIG, head=head)
    given.check_all_known()
    return config, dict(tensors)


class _Weights:
    """The shapes that tell sizes."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors

    def get_shape(self, name: str, rank: int) -> tuple[int, ...]:
        """Return the shape of a tensor that there must be."""
        if name not in self._tensors or self._tensors[name].ndim != rank:
            found = ", ".join(sorted(self._tensors)[:4]) or "nothing"
            raise CheckpointError(
                f"no {rank}-dimensional {name!r} in the checkpoint (found {found}, ...); "
                "give the state dict of an mmpose model with an RTMCCHead, or of an RTMCCBlock"
            )
        return tuple(self._tensors[name].shape)

    def has(self, name: str) -> bool:
        """Tell whether there is such a tensor."""
        return name in self._tensors


class _Given:
    """The arguments: each is asked for once, and what was not asked for is unknown."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._known: dict[str, None] = {}

    def check(self, name: str, told: object) -> None:
        """Compare an argument, if it was given, with what the weights say."""
        self._known[name] = None
        if name in self._values and self._values[name] != told:
            raise ConfigError(
                f"{name}={self._values[name]!r}, but the weights say {told!r}; correct it or leave it out"
            )

    def find(self, name: str) -> Any:
        """Return an argument; None if it was not given."""
        self._known[name] = None
        return self._values.get(name)

    def take(self, *names: str) -> list[Any]:
        """Return arguments that weights do not tell.

        Raises:
            ConfigError: Some were not given.
        """
        self._known |= dict.fromkeys(names)
        if missing := [name for name in names if self._values.get(name) is None]:
            raise ConfigError(
                f"weights do not tell {', '.join(missing)}; give the arguments of the model's mmpose config with "
                "--config FILE.json or --set NAME=VALUE"
            )
        return [self._values[name] for name in names]

    def check_all_known(self) -> None:
        """Refuse arguments that nobody asked for, unless they are known not to matter."""
        for name in self._values:
            if name not in self._known and name.removeprefix(GAU_CONFIG) not in IGNORED:
                raise ConfigError(f"unknown argument {name!r}; mmpose's arguments are {', '.join(self._known)}")


def _select_head(tensors: Tensors) -> Tensors:
    """Return the tensors of the head, or of a block, under our names."""
    if any(name.startswith(HEAD) for name in tensors):
        rest = [name for name in tensors if not name.startswith((HEAD, *OTHER_PARTS))]
        if rest:
            raise CheckpointError(
                f"{rest[0]!r} is no tensor of a pose estimator, whose parts are {', '.join((HEAD, *OTHER_PARTS))}; "
                "give the state dict of one, or of its head"
            )
        tensors = {name.removeprefix(HEAD): tensor for name, tensor in tensors.items() if name.startswith(HEAD)}
    if "uv.weight" in tensors:
        tensors = {f"{BLOCK}{name}": tensor for name, tensor in tensors.items()}
    if f"{BLOCK}k_fc.weight" in tensors:
        raise CheckpointError(
            f"{BLOCK}k_fc.weight is of a block with cross-attention; only self-attention is supported"
        )
    return tensors


def _flatten(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments by dotted names; a name that was given dotted wins."""
    nested = arguments.get("gau_cfg", {})
    if not isinstance(nested, Mapping):
        raise ConfigError(f"gau_cfg={nested!r} is not usable; give an object, such as {{'act_fn': 'SiLU'}}")
    rest = {name: value for name, value in arguments.items() if name != "gau_cfg"}
    return {**{f"{GAU_CONFIG}{name}": value for name, value in nested.items()}, **rest}


def _read_block(weights: _Weights, given: _Given, *, prefix: str, head: SimccHead | None) -> RtmposeGauConfig:
    """Return the config of a block, whose arguments carry a prefix in a head."""
    rows, dim = weights.get_shape("gau.uv.weight", 2)
    out_dim, hidden_dim = weights.get_shape("gau.o.weight", 2)
    qk_dim = rows - 2 * hidden_dim
    rel_bias = weights.has("gau.w")
    if head is None:
        given.check("in_token_dims", dim)
        given.check("out_token_dims", out_dim)
        given.check("bias", weights.has("gau.uv.bias"))
        given.check("attn_type", "self-attn")
        told_by_bias = (weights.get_shape("gau.w", 1)[0] + 1) // 2 if rel_bias else None
        if told_by_bias is not None:
            given.check("num_token", told_by_bias)
        num_keypoints = given.take("num_token")[0] if told_by_bias is None else told_by_bias
        eps = given.find("eps")
    else:
        num_keypoints, eps = weights.get_shape("final_layer.weight", 4)[0], None
        given.check("out_channels", num_keypoints)
        given.check(f"{prefix}hidden_dims", dim)
    given.check(f"{prefix}s", qk_dim)
    given.check(f"{prefix}use_rel_bias", rel_bias)
    if (factor := given.find(f"{prefix}expansion_factor")) is not None:
        check_expansion(f"{prefix}expansion_factor", factor, dim, hidden_dim)
    act_fn, rotary = given.take(f"{prefix}act_fn", f"{prefix}pos_enc")
    if act_fn not in ACTIVATION_NAMES:
        raise ConfigError(f"{prefix}act_fn={act_fn!r} is unknown; mmpose has {' and '.join(ACTIVATION_NAMES)}")
    if not isinstance(rotary, bool):
        raise ConfigError(f"{prefix}pos_enc={rotary!r} is not a boolean; use true or false")
    return RtmposeGauConfig(
        num_keypoints=num_keypoints,
        dim=dim,
        hidden_dim=hidden_dim,
        out_dim=out_dim,
        qk_dim=qk_dim,
        act_fn=ACTIVATION_NAMES[act_fn],
        bias=weights.has("gau.uv.bias"),
        rel_bias=rel_bias,
        rotary=rotary,
        eps=SCALE_NORM_EPS if eps is None else eps,
        head=head,
    )


def _read_head(weights: _Weights, given: _Given) -> SimccHead:
    """Return the config of what stands around the block."""
    _, in_channels, kernel_size, _ = weights.get_shape("final_layer.weight", 4)
    _, map_size = weights.get_shape("mlp.1.weight", 2)
    bins = tuple(weights.get_shape(f"cls_{axis}.weight", 2)[0] for axis in "xy")
    given.check("in_channels", in_channels)
    given.check("final_layer_kernel_size", kernel_size)
    map_sizes, image_sizes = given.take("in_featuremap_size", "input_size")
    map_width, map_height = _read_pair("in_featuremap_size", map_sizes)
    if map_width * map_height != map_size:
        raise ConfigError(
            f"in_featuremap_size=[{map_width}, {map_height}] has {map_width * map_height} pixels, but the weights are "
            f"for {map_size}; correct it"
        )
    image = _read_pair("input_size", image_sizes)
    return SimccHead(
        in_channels=in_channels,
        map_width=map_width,
        map_height=map_height,
        kernel_size=kernel_size,
        image_width=image[0],
        image_height=image[1],
        bins_per_pixel=_read_bins_per_pixel(given, image, bins),
    )


def _read_bins_per_pixel(given: _Given, image: tuple[int, int], bins: tuple[int, ...]) -> float:
    """Return the bins of a pixel, given or told by the number of bins along both axes."""
    ratio = given.find("simcc_split_ratio")
    if ratio is None:
        ratios = {count / size for count, size in zip(bins, image, strict=True)}
        if len(ratios) > 1:
            raise ConfigError(
                f"input_size={list(image)} and {bins[0]} x {bins[1]} bins do not tell simcc_split_ratio; correct the "
                "size, or add the ratio"
            )
        return ratios.pop()
    number = check_number("simcc_split_ratio", ratio)
    wanted = tuple(int(size * number) for size in image)
    if wanted != bins:
        raise ConfigError(
            f"input_size={list(image)} and simcc_split_ratio={ratio} mean {wanted[0]} x {wanted[1]} bins, the weights "
            f"have {bins[0]} x {bins[1]}; correct them"
        )
    return number


def _read_pair(name: str, value: Any) -> tuple[int, int]:
    is_pair = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2
    if not is_pair or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in value):
        raise ConfigError(f"{name}={value!r} is not a size; give [width, height] in pixels")
    return value[0], value[1]


RTMPOSE_GAU = Family(RtmposeGauConfig, RtmposeGauModel, "mmpose", import_mmpose, {}, (ANCHOR,))
