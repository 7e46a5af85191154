"""What every step of the lowering gains: the graph without it against the graph with all of them.

    python benchmarks/lowering_steps.py [--causal | --non-causal] [--lengths 1000,2048] [--only TEXT] [--json FILE]

A ratio is the time without the step to the time with it: above 1, the step gains. What it is replaced by stands in
``harness/undone_steps.py``. One sequence, float32, two threads, onnxruntime's memory pattern off, as the runner has it.
Before anything is timed, both graphs have to agree to 1e-5 of the output's scale.

The graphs take turns at every run: differences of a few per cent are smaller than what the machine's speed changes by
within seconds. The first row takes nothing back: how far its ratio is from 1 is what those below it can be wrong by.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from flash_export import ExportOptions, FlashModel, load_checkpoint
from flash_export.config import FORWARD
from flash_export.exporters.analysis import analyse_graph
from flash_export.exporters.graphs import describe_graphs
from flash_export.exporters.lowering.flash import LoweredFlash
from flash_export.exporters.serialization import SplitModels, write_models
from flash_export.exporters.traced_sizes import choose_traced_sizes
from flash_export.exporters.tracing import trace_model
from harness.models import PeerConfig, save_original, select_configs
from harness.processes import run_in_process
from harness.report import describe, make_parser, print_rows, write_json
from harness.sessions import THREADS, bind_tokens, check_agreement, make_tokens, measure_length, open_session
from harness.timing import Effort, Timings, time_alternating
from harness.undone_steps import STEPS, Step

LENGTHS, QUICK_LENGTHS = (1000, 2048), (40,)
MEMORY_LEN, QUICK_MEMORY_LEN = 16384, 64
MEMORY_RUNS = 3
EFFORT, QUICK_EFFORT = Effort(rounds=41, block_ms=1.0), Effort(rounds=2, block_ms=1.0)  # blocks of one run
TOLERANCE = 1e-5  # of the output's scale: fp32 rounding in another order
WITHOUT, WITH = "without", "with"


@dataclass(frozen=True)
class StepTiming:
    """One step at one length."""

    step: str
    attention: str
    seq_len: int
    nodes_without: int  # of a block
    nodes_with: int
    timings: Timings  # of the graphs without and with it

    @property
    def ratio(self) -> float:
        """How many times longer the model takes without the step."""
        return self.timings.compute_ratio(WITHOUT, WITH)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The lower and the upper quartile of the rounds' ratios."""
        lower, _, upper = statistics.quantiles(self.timings.list_ratios(WITHOUT, WITH), n=4, method="inclusive")
        return lower, upper


@dataclass(frozen=True)
class StepMemory:
    """KiB of peak memory per token without and with a step, each graph in a process of its own."""

    step: str
    attention: str
    seq_len: int
    token_kib_without: float
    token_kib_with: float


def load_model(config: PeerConfig, folder: Path) -> FlashModel:
    """Return the reference model of flash-pytorch's weights."""
    return cast("FlashModel", load_checkpoint(save_original(config, folder), **config.import_options).model)


def write_graph(lowered: LoweredFlash, path: Path, *, mask: bool | None = None, keep_shapes: bool = False) -> Path:
    """Trace the forward graph as ``export_onnx`` does."""
    lowered.requires_grad_(requires_grad=False).eval()
    graph = describe_graphs(lowered.config, ExportOptions(mask=mask, graphs=(FORWARD,)))[FORWARD]
    traced = trace_model(lowered, graph, choose_traced_sizes(lowered, lowered.config.interface, graph)).model
    split = SplitModels(f"{path.name}.data")
    split.add(path.name, traced)
    if not keep_shapes:
        del split.skeletons[path.name].graph.value_info[:]
    write_models(split, path.parent)
    return path


def check_graphs(step: str, sessions: dict[str, Any], seq_len: int, vocab_size: int) -> None:
    """Compare both graphs on a full row and one with padding, where tokens are real.

    Raises:
        RuntimeError: They compute different functions.
    """
    input_ids = np.concatenate((make_tokens(seq_len, vocab_size), make_tokens(seq_len, vocab_size)[:, ::-1]))
    valid = np.arange(seq_len) < np.array([[seq_len], [1 + seq_len * 2 // 3]])
    known = {"input_ids": input_ids, "attention_mask": valid.astype(np.int64)}
    logits = {
        name: session.run(["logits"], {value.name: known[value.name] for value in session.get_inputs()})[0][valid]
        for name, session in sessions.items()
    }
    check_agreement(f"the graph without {step!r}", logits[WITHOUT], logits[WITH], "that with it", TOLERANCE)


def time_step(step: Step, config: PeerConfig, graphs: dict[str, Path], seq_len: int, effort: Effort) -> StepTiming:
    """Time one step at one length, in sessions like those of our runner."""
    print(f"{config.attention}, {seq_len} tokens, {step.name} ...", file=sys.stderr)
    sessions = {name: open_session(path, enable_mem_pattern=False) for name, path in graphs.items()}
    check_graphs(step.name, sessions, seq_len, config.num_tokens)
    tokens = make_tokens(seq_len, config.num_tokens)
    candidates = {name: bind_tokens(session, tokens) for name, session in sessions.items()}
    timings = time_alternating(candidates, effort)
    # Of the last block: what all blocks share is traced in the first.
    nodes = {name: analyse_graph(path).nodes_by_block[config.depth - 1] for name, path in graphs.items()}
    return StepTiming(step.name, config.attention, seq_len, nodes[WITHOUT], nodes[WITH], timings)


def measure_memory(step: Step, config: PeerConfig, graphs: dict[str, Path], seq_len: int) -> StepMemory:
    """Run both graphs, each in a process of its own."""
    arguments = (seq_len, config.num_tokens, MEMORY_RUNS, False)
    costs = [run_in_process(measure_length, graphs[name], *arguments) for name in (WITHOUT, WITH)]
    return StepMemory(step.name, config.attention, seq_len, *(cost.token_kib for cost in costs))


def select_steps(config: PeerConfig, only: str) -> list[Step]:
    """Return the steps of this attention whose name contains a text."""
    return [step for step in STEPS if step.causal in (None, config.causal) and only in step.name]


def main(arguments: list[str] | None = None) -> None:
    """Take back, time, print, write."""
    options = make_parser(__doc__, models=True, lengths=True, only="steps").parse_args(arguments)
    lengths = options.lengths or (QUICK_LENGTHS if options.quick else LENGTHS)
    memory_len, effort = (QUICK_MEMORY_LEN, QUICK_EFFORT) if options.quick else (MEMORY_LEN, EFFORT)
    torch.set_num_threads(THREADS)
    timed: list[StepTiming] = []
    measured: list[StepMemory] = []
    configs = select_configs(options)
    for config in configs:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            model = load_model(config, folder)
            graphs = {WITHOUT: folder / "without.onnx", WITH: write_graph(LoweredFlash(model), folder / "ours.onnx")}
            for step in select_steps(config, options.only):
                with step.take_back(model) as lowered:
                    write_graph(lowered, graphs[WITHOUT], mask=step.mask, keep_shapes=step.keep_shapes)
                timed += [time_step(step, config, graphs, seq_len, effort) for seq_len in lengths]
                if step.keep_shapes:
                    measured.append(measure_memory(step, config, graphs, memory_len))
    what = {"step": "step", "attention": "attention", "tokens": "seq_len"}
    columns = what | {"ratio": "ratio:.3f", "quartiles": "quartiles", "nodes per block": "nodes_with"}
    columns |= {"without": "nodes_without", "spread": "timings.spread:.0%", "others": "timings.others:.0%"}
    print_rows(f"Time without a step / with it: d={configs[0].dim}, {configs[0].depth} layers", timed, columns)
    if measured:
        columns = what | {"without": "token_kib_without", "with": "token_kib_with"}
        print_rows("Peak memory, KiB per token", measured, columns)
    write_json(
        options.json,
        {
            "models": [asdict(config) for config in configs],
            "steps": [describe(one, "ratio", "quartiles") | {"median_ms": one.timings.medians_ms} for one in timed],
            "memory": [asdict(memory) for memory in measured],
        },
    )


if __name__ == "__main__":
    main()
