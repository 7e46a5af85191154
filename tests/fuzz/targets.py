"""What is damaged, how, and what then reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flash_export.bundle.bundle import Bundle
from flash_export.data.heldout import open_heldout
from flash_export.models.checkpoint import load_checkpoint
from flash_export.quantization.loss import Judge
from tests.fuzz.mutations import (
    mutate_array,
    mutate_bytes,
    mutate_graph,
    mutate_json,
    mutate_lines,
    mutate_safetensors,
    mutate_text,
    mutate_zip,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.fuzz.mutations import Mutation

VALIDATE = "validate bundle --seq-lens 1,9 --batch 1 --backend ort-cpu --threads 1 --no-latency"
INSPECT, BISECT = "inspect bundle --json -", "bisect bundle --seq-len 9 --batch 1 --threads 1"
COMPARE = "compare int8 --no-latency --windows 1 --threads 1 --reference bundle"
RANGES = "profile-ranges bundle --lengths 9,20 --windows 1 --threads 1"
GENERATE = "generate bundle --prompt abc --max-tokens 2 --threads 1"
PROMPTS = "generate bundle --prompts prompts.jsonl -o answers.jsonl --resume --max-tokens 2 --slots 2 --threads 1"
EXPORT = "onnx bundle -o out --graphs forward"
ALL = (INSPECT, VALIDATE, BISECT, COMPARE, RANGES, GENERATE, EXPORT)
MASKED = (
    VALIDATE.replace("bundle", "masked"),
    BISECT.replace("bundle", "masked"),
    RANGES.replace("bundle", "masked"),
    "compare masked --no-latency --windows 1 --threads 1",
)
ARGUMENTS = {"causal": True, "group_size": 8}


@dataclass(frozen=True)
class Target:
    """A file, its damage, and who reads it.

    Attributes:
        file: Its path in the material.
        mutate: Makes another content of the good one.
        commands: Command lines, one of which is run in the folder of the material.
        calls: Functions of the library, given that folder; one of them or of the commands is run.
        signed: How often the bundle that the file is in gets the hashes of the damaged file.
        weight: How often it is chosen.
    """

    file: str
    mutate: Mutation
    commands: tuple[str, ...] = ()
    calls: tuple[Callable[[Path], object], ...] = ()
    signed: float = 0.0
    weight: int = 2

    @property
    def uses(self) -> tuple[str | Callable[[Path], object], ...]:
        """Everything that may read it."""
        return (*self.commands, *self.calls)


def _load_folder(folder: Path) -> object:
    return load_checkpoint(folder / "checkpoint")


def _load_weights(folder: Path) -> object:
    return load_checkpoint(folder / "weights.pt", family="flash", config=ARGUMENTS)


def _load_ids(folder: Path) -> object:
    return open_heldout(Bundle.open(folder / "bundle"), folder / "ids.npy")


def _judge_text(folder: Path) -> object:
    bundle = Bundle.open(folder / "bundle")
    text = open_heldout(bundle, folder / "text.txt")
    assert text is not None
    graph = bundle.get_graph_path()
    return Judge(bundle.manifest.interface, bundle.get_graph(), graph, text.samples, threads=1).measure(graph)


REPORTS = (
    "report bundle/reports/report.json --markdown -",
    "report bundle/reports/report.json --html out.html --junit out.xml",
    "report bundle/reports/report.json other.json",
    "report other.json bundle/reports/report.json --markdown out.md",
)
IMPORT = "onnx weights.pt -o out --family flash"
ENGINES = (
    INSPECT,
    "generate bundle --prompt a --backend trt",
    f"{VALIDATE} --backend trt",
    "inspect bundle/engines/{}",
)

TARGETS: tuple[Target, ...] = (
    Target("bundle/manifest.json", mutate_json, ALL, weight=8),
    Target("int8/manifest.json", mutate_json, (COMPARE, "inspect int8", "bisect int8 --seq-len 9"), weight=3),
    Target("masked/manifest.json", mutate_json, MASKED, weight=3),
    Target("masked/heldout.json", mutate_json, MASKED, signed=0.9, weight=2),
    Target("masked/model.onnx", mutate_graph, MASKED, signed=0.9, weight=2),
    Target("bundle/config.json", mutate_json, ALL, signed=0.8, weight=4),
    Target("bundle/probes.json", mutate_json, (BISECT, INSPECT), signed=0.9, weight=4),
    Target("int8/quantization.json", mutate_json, (COMPARE, "inspect int8"), signed=0.9, weight=4),
    Target("bundle/heldout.json", mutate_json, (VALIDATE, COMPARE, RANGES), signed=0.9, weight=4),
    Target("bundle/heldout.txt", mutate_text, (VALIDATE, COMPARE, RANGES), signed=0.9),
    Target("checkpoint/heldout.json", mutate_json, ("onnx checkpoint -o out --graphs forward",), weight=1),
    Target("bundle/reports/.validation.jsonl", mutate_lines, (f"{VALIDATE} --resume",), weight=5),
    Target("bundle/reports/report.json", mutate_json, REPORTS, weight=8),
    Target("text.state", mutate_safetensors, (f"{GENERATE} --load-state text.state",), weight=5),
    Target("bundle/engines/forward.json", mutate_json, ENGINES, weight=4),
    Target("bundle/engines/decode.json", mutate_json, ENGINES),
    Target("bundle/engines/forward.engine", mutate_bytes, ENGINES, weight=1),
    Target("bundle/model.onnx", mutate_graph, (*ALL, f"{VALIDATE} --onnx bundle/model.onnx"), signed=0.9, weight=6),
    Target("bundle/decode.onnx", mutate_graph, (GENERATE, INSPECT, COMPARE), signed=0.9, weight=3),
    Target("bundle/extend.onnx", mutate_graph, (GENERATE, INSPECT), signed=0.9, weight=3),
    Target("bundle/probes.extend.json", mutate_json, (f"{BISECT} --graph extend", INSPECT), signed=0.9),
    Target("prompts.jsonl", mutate_lines, (PROMPTS,), weight=3),
    Target("answers.jsonl", mutate_lines, (PROMPTS,), weight=3),
    Target("bundle/model.onnx.data", mutate_bytes, (GENERATE, VALIDATE), signed=0.9, weight=1),
    Target("bundle/model.safetensors", mutate_safetensors, (VALIDATE, BISECT, EXPORT), signed=0.9),
    Target("checkpoint/model.safetensors", mutate_safetensors, calls=(_load_folder,), weight=4),
    Target("checkpoint/config.json", mutate_json, calls=(_load_folder,), weight=4),
    Target("weights.pt", mutate_zip, calls=(_load_weights,), weight=6),
    Target("ids.npy", mutate_array, calls=(_load_ids,), weight=4),
    Target("text.txt", mutate_text, calls=(_judge_text,)),
    Target("plan.json", mutate_json, ("validate bundle --plan plan.json --backend ort-cpu --threads 1 --no-latency",)),
    Target("arguments.json", mutate_json, (f"{IMPORT} --config arguments.json --graphs forward",), weight=1),
)
