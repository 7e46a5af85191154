"""What a family says of the state that its graphs carry, in the terms of the reference model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from jaxtyping import Float, Int

    from flash_export.probes import Quantity


class CarriedState(Protocol):
    """Tells the state after any number of tokens by what the model computes for each of them."""

    @property
    def quantities(self) -> Mapping[str, Quantity]:
        """What graphs that carry a state can be read at, in the order of computation, what they carry included."""
        ...

    def complete(self, tokens: Mapping[str, Float[np.ndarray, "b n w"]]) -> dict[str, np.ndarray]:
        """Return the quantities of each token in a block, with those that only such graphs compute."""
        ...

    def derive(
        self, tokens: Mapping[str, Float[np.ndarray, "b n w"]], position: Int[np.ndarray, " b"]
    ) -> dict[str, np.ndarray]:
        """Return what a block carries after so many tokens of each row, of which ``tokens`` has one more at least."""
        ...

    def settle(self, state: Mapping[str, np.ndarray], position: Int[np.ndarray, " b"]) -> dict[str, np.ndarray]:
        """Return a state in the one form that all have which mean the same."""
        ...
