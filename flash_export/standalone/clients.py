"""The programs of a standalone folder, and which of them a bundle can have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flash_export.generation.state_graphs import find_missing, list_state_graphs
from flash_export.standalone.engines import choose_engines

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


PYTHON = Client("Python", ("model.py",))
CPP = Client("C++", ("cpp/CMakeLists.txt", "cpp/main.cpp"))
TENSORRT = Client("C++ for TensorRT", ("cpp-tensorrt/CMakeLists.txt", "cpp-tensorrt/main.cpp"))
JAVASCRIPT = Client("JavaScript", ("web/index.html", "web/model.mjs", "web/package.json"))
CLIENTS = (PYTHON, CPP, TENSORRT, JAVASCRIPT)
TENSORRT_GENERATION = f"{GENERATION} in {TENSORRT.title}"


def find_refused(bundle: Bundle) -> dict[str, str]:
    """Return what a folder made of a bundle cannot have, and why.

    Returns:
        Reasons by titles of clients, :data:`GENERATION` and :data:`TENSORRT_GENERATION`.
    """
    refused: dict[str, str] = {}
    if bundle.get_graph().arithmetic == "bf16":
        reason = "onnxruntime has no bf16 kernels on a CPU; run the graphs with OpenVINO, or export in fp32 or fp16"
        refused |= {client.title: reason for client in CLIENTS if client != TENSORRT}
    if refusal := find_generation_refusal(bundle):
        refused[GENERATION] = refusal
    return refused | find_engine_refusal(bundle)


def can_generate(bundle: Bundle) -> bool:
    """Tell whether the graphs of a bundle go on from a prompt."""
    return bundle.manifest.interface.vocab_size is not None and find_generation_refusal(bundle) is None


def find_generation_refusal(bundle: Bundle) -> str | None:
    """Return why clients cannot go on from a prompt; None: they can, or the model takes no tokens at all."""
    interface = bundle.manifest.interface
    if interface.vocab_size is None:
        return None
    missing, refusal = find_missing(bundle)
    if missing:
        return refusal or f"the bundle was exported without {', '.join(missing)}; export it with all graphs"
    return None


def find_engine_refusal(bundle: Bundle) -> dict[str, str]:
    """Return what the bundle has no engines for, and why; see :func:`choose_engines`."""
    generates = can_generate(bundle)
    engines = choose_engines(bundle, generates=generates)
    if engines is None and not generates:
        return {TENSORRT.title: "the bundle has no engine of forward; build it with 'flash-export trt BUNDLE' first"}
    if engines is not None and engines.generates == generates:
        return {}
    lacking = f"all of {', '.join(list_state_graphs(bundle))} by one version of TensorRT for one GPU"
    cure = "build each with 'flash-export trt BUNDLE --graph NAME' first"
    if engines is None:
        return {TENSORRT.title: f"the bundle has no engine of forward, nor of {lacking}; {cure}"}
    return {TENSORRT_GENERATION: f"the bundle has no engines of {lacking}; {cure}"}
