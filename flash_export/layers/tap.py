"""Points of a forward pass at which a reader may look at what is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float
    from torch import Tensor


class Tap:
    """Shows the intermediate quantities of one module to a reader, if there is one, and passes them on.

    It is no module with forward hooks, because these cost some per cent of a short forward pass, which the eager model
    is timed by.

    Attributes:
        reader: Called with the name and the values of each quantity; None: nobody looks.
    """

    def __init__(self) -> None:
        """Create a tap that nobody looks at."""
        self.reader: Callable[[str, Tensor], None] | None = None

    def __call__(self, name: str, x: Float[Tensor, ...]) -> Float[Tensor, ...]:
        """Return ``x``."""
        if self.reader is not None:
            self.reader(name, x)
        return x
