"""What a family says of its quantities, by the full names that probes have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from flash_export.bundle.bundle import name_probes_file
from flash_export.errors import BundleError
from flash_export.interface import SEQ
from flash_export.probes import Point, Quantity
from flash_export.typed_json import show

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Bool

    from flash_export.bundle.bundle import Bundle
    from flash_export.data.batch import Batch
    from flash_export.interface import TensorSpec
    from flash_export.models.base import ModelConfig
    from flash_export.probes import ProbeMap

_PLACES = ("before", "block", "after")


def get_quantity(config: ModelConfig, name: str) -> Quantity:
    """Return the quantity of a probe; the outputs of a model are quantities too, after all others."""
    if find_output(config, name) is not None:
        return Quantity(name, place="after")
    return list_quantities(config)[Point.parse(name).quantity]


def list_quantities(config: ModelConfig) -> Mapping[str, Quantity]:
    """Return all quantities of a model in the order of computation, those of graphs that carry a state included."""
    carried = config.carried_state
    return config.quantities if carried is None else carried.quantities


def check_probes(bundle: Bundle, config: ModelConfig, probes: ProbeMap) -> None:
    """Refuse probes of what the model does not compute.

    Raises:
        BundleError: There is such a probe.
    """
    for probe in probes.probes:
        point = Point.parse(probe.name)
        is_block = point.block is not None and point.block < config.num_blocks
        known = list_quantities(config).get(point.quantity)
        if find_output(config, probe.name) is None and (known is None or is_block != (known.place == "block")):
            raise BundleError(
                f"{bundle.path / name_probes_file(probes.graph)} is damaged: {show(probe.name)} is no quantity of this "
                "model; export the bundle again"
            )


def find_output(config: ModelConfig, name: str) -> TensorSpec | None:
    """Return the output of a name; None if there is none."""
    return next((spec for spec in config.interface.outputs if spec.name == name), None)


def find_valid(config: ModelConfig, name: str, inputs: Batch) -> Bool[np.ndarray, "b n"]:
    """Return what counts of the tokens of a quantity: of an output what is real, of an inner value the real frames."""
    return inputs.valid_frames if find_output(config, name) is None else inputs.valid


def rank_probe(config: ModelConfig, name: str) -> tuple[int, int, int]:
    """Return where a probe stands in the order of computation."""
    if find_output(config, name) is not None:
        return len(_PLACES), 0, [spec.name for spec in config.interface.outputs].index(name)
    point = Point.parse(name)
    known = list_quantities(config)
    place = _PLACES.index(known[point.quantity].place)
    return place, point.block or 0, list(known).index(point.quantity)


def restore_layout(config: ModelConfig, name: str, values: np.ndarray, seq_len: int) -> np.ndarray:
    """Return tokens as ``(b, n, w)`` without the padding to whole chunks, the others with chunks and heads in one axis.

    Args:
        config: Config of the model.
        name: The quantity.
        values: Its values, of an output in the layout that the interface states.
        seq_len: Length of the input, of which inner values have one token for each frame.
    """
    values, output = values.astype(np.float64, copy=False), find_output(config, name)
    if output is not None and (axis := output.find_axis(SEQ)) is not None:
        values = np.moveaxis(values, axis, 1)
    quantity = get_quantity(config, name)
    kind = quantity.kind
    if kind == "tokens":
        if quantity.has_heads:
            values = values.reshape(*values.shape[:2], -1)
        length = seq_len if output is not None else config.interface.count_frames(seq_len)
        return values.reshape(values.shape[0], -1, values.shape[-1])[:, :length]
    if kind == "sums" and values.ndim == len("bse"):
        return values[:, None]
    return values.reshape(len(values), -1, *values.shape[3:]) if values.ndim == len("bghcw") else values
