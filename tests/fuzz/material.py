"""Good files of every kind that the tool reads, around tiny models; what the fuzzer damages copies of."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import torch

from flash_export.bundle.bundle import Bundle
from flash_export.bundle.manifest import EngineManifest, ProfileShapes
from flash_export.generation.state import State, identify_model
from flash_export.models.checkpoint import load_pretrained
from flash_export.validators.report.files import write_report
from flash_export.validators.validate import validate_bundle
from flash_export.validators.validation_options import ValidationOptions

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.bundle.manifest import GraphSpec

JOURNAL = "reports/.validation.jsonl"
# What the command line of VALIDATE in targets.py says, so that the journal is of the same validation.
OPTIONS = ValidationOptions(seq_lens=(1, 9), batches=(1,), backends=("ort-cpu",), threads=1, latency_budget_s=0.0)


def make_material(folder: Path, causal: Bundle, masked: Bundle, int8: Bundle) -> Path:
    """Write everything into a new folder, and return it."""
    shutil.copytree(causal.path, folder / "bundle")
    shutil.copytree(masked.path, folder / "masked")
    shutil.copytree(int8.path, folder / "int8")
    bundle = Bundle.open(folder / "bundle")
    report = validate_bundle(bundle, OPTIONS, journal_path=folder / "bundle" / JOURNAL)
    write_report(report, folder / "bundle" / "reports")
    for name in ("forward", "prefill", "extend", "decode"):
        bundle.write_engine(_describe_engine(name, bundle.get_graph(name)), b"no engine")
    _sign_engines(folder / "bundle")
    shutil.copytree(causal.path, folder / "checkpoint", ignore=shutil.ignore_patterns("*.onnx*", "*.data", "manifest*"))
    State.zeros(bundle.get_graph("decode"), 1, model_sha256=identify_model(bundle)).save(folder / "text.state")
    torch.save(load_pretrained(folder / "checkpoint").state_dict(), folder / "weights.pt")
    np.save(folder / "ids.npy", np.arange(300) % 250)
    (folder / "text.txt").write_bytes((causal.path / "heldout.txt").read_bytes())
    lines = [
        {"id": "a", "tokens": [1, 2, 3], "temperature": 0.5, "top_k": 3, "top_p": 0.9, "seed": 4},
        {"id": "b", "tokens": [5], "stop_tokens": [6], "repetition_penalty": 1.5},
        {"id": "c", "prompt": "no text for a model of 257 tokens"},
    ]
    answer = {"id": "a", "text": None, "tokens": [7, 8], "prompt_tokens": 3, "end": "length", "error": None}
    for name, values in (("prompts", lines), ("answers", [answer])):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in values))
    (folder / "plan.json").write_text(json.dumps({"seq_lens": [1, 9], "batches": [1]}))
    (folder / "arguments.json").write_text(json.dumps({"causal": True, "group_size": 8}))
    return folder


def _describe_engine(name: str, graph: GraphSpec) -> EngineManifest:
    def fill(shape: tuple[int | str, ...], size: int) -> tuple[int, ...]:
        return tuple(size if isinstance(axis, str) else axis for axis in shape)

    profile = {spec.name: ProfileShapes(*(fill(spec.shape, size) for size in (1, 1, 4))) for spec in graph.inputs}
    return EngineManifest(
        name, "tensorrt", "10", ("current",), name, "", "", (profile,), graph.inputs, graph.outputs, 9
    )


def _sign_engines(folder: Path) -> None:
    """Write the hashes that say that an engine belongs to its bundle."""
    from flash_export.files import hash_file

    bundle = Bundle.open(folder)
    for engine in bundle.list_engines():
        path = folder / "engines" / f"{engine.name}.json"
        values = asdict(engine)
        values["graph_sha256"] = bundle.manifest.files[bundle.get_graph(engine.graph).file]
        values["engine_sha256"] = hash_file(path.with_suffix(".engine"))
        path.write_text(json.dumps(values))


def sign_bundle(folder: Path) -> None:
    """Give the manifest the hashes of the files as they are now: the damage of somebody who knows the format."""
    from flash_export.files import hash_file

    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    values["files"] = {name: hash_file(folder / name) for name in values["files"]}
    path.write_text(json.dumps(values))
