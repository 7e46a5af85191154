"""Which graphs of a bundle a text is read and written with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flash_export.config import DECODE, EXTEND, PREFILL
from flash_export.errors import BundleError

if TYPE_CHECKING:
    from flash_export.bundle.bundle import Bundle


def list_state_graphs(bundle: Bundle) -> tuple[str, ...]:
    """Return the names of the graphs that a text is read and written with; where there are chunks, extend too."""
    return (PREFILL, EXTEND, DECODE) if bundle.manifest.interface.window > 1 else (PREFILL, DECODE)


def find_missing(bundle: Bundle) -> tuple[tuple[str, ...], str | None]:
    """Return which of these graphs a bundle has not, and why no export of the model has them; None: it could."""
    from flash_export.models.registry import get_family

    missing = tuple(name for name in list_state_graphs(bundle) if name not in bundle.manifest.graphs)
    if not missing:
        return (), None
    values = bundle.read_config()
    return missing, get_family(values["model_type"]).config_class.from_dict(values).state_refusal


def check_state_graphs(bundle: Bundle) -> None:
    """Check that a bundle has the graphs that a text is read and written with.

    Raises:
        BundleError: It has not.
    """
    missing, refusal = find_missing(bundle)
    if refusal:
        raise BundleError(
            f"{bundle.path} has no graph {', '.join(missing)}: {refusal}; use --backend eager, which reads the text "
            "again for every token"
        )
    if missing:
        raise BundleError(
            f"{bundle.path} has no graph {', '.join(missing)}, but {', '.join(bundle.manifest.graphs)}; export it "
            "again with 'flash-export onnx', which writes all of them"
        )
