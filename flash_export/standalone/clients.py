"""The programs of a standalone folder, and which of them a bundle can have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flash_export.generation.state_graphs import find_missing

if TYPE_CHECKING:
    from flash_export.bundle.bundle import Bundle

GENERATION = "generation"


@dataclass(frozen=True)
class Client:
    """What runs the graphs in one language.

    Attributes:
        title: As the README calls it.
        files: Where each of its files goes in the folder; the template has the same name below ``templates``, with
            ``.jinja`` behind it.
    """

    title: str
    files: tuple[str, ...]


CLIENTS = (
    Client("Python", ("model.py",)),
    Client("C++", ("cpp/CMakeLists.txt", "cpp/main.cpp")),
    Client("JavaScript", ("web/index.html", "web/model.mjs", "web/package.json")),
)


def find_refused(bundle: Bundle) -> dict[str, str]:
    """Return what a folder made of a bundle cannot have, and why, by titles of clients and :data:`GENERATION`."""
    refused: dict[str, str] = {}
    if bundle.get_graph().arithmetic == "bf16":
        reason = "onnxruntime has no bf16 kernels on a CPU; run the graphs with OpenVINO, or export in fp32 or fp16"
        refused |= {client.title: reason for client in CLIENTS}
    if refusal := find_generation_refusal(bundle):
        refused[GENERATION] = refusal
    return refused


def find_generation_refusal(bundle: Bundle) -> str | None:
    """Return why clients cannot go on from a prompt; None: they can, or the model takes no tokens at all."""
    interface = bundle.manifest.interface
    if interface.vocab_size is None:
        return None
    missing, refusal = find_missing(bundle)
    if missing:
        return refusal or f"the bundle was exported without {', '.join(missing)}; export it with all graphs"
    return None
