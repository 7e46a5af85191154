"""What every step of the lowering gains: the graph without it against the graph with all of them.

    python benchmarks/lowering_steps.py [--causal | --non-causal] [--lengths 1000,2048] [--only TEXT] [--json FILE]

A ratio is the time without the step to the time with it: above 1, the step gains. What it is replaced by stands in
``undone_steps.py``. One sequence, float32, two threads, onnxruntime's memory pattern off, as the runner has it. Before
anything is timed, both graphs have to agree to 1e-5 of the output's scale.

The graphs take turns at every run: differences of a few per cent are smaller than what the machine's speed changes by
within seconds. The first row takes nothing back: how far its ratio is from 1 is what those below it can be wrong by.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from long_sequences import measure_length
from memory import run_in_process
from peers import PeerConfig, add_model_options, build_original, compute_error, name_attention, select_configs
from report import make_parser, print_table, write_json
from sessions import THREADS, bind_run, make_options, make_token_feeds, make_tokens, open_session
from timing import time_alternating
from undone_steps import STEPS

from flash_export.config import FORWARD, ExportOptions
from flash_export.exporters.analysis import analyse_graph
from flash_export.exporters.graphs import describe_graphs
from flash_export.exporters.lowering.flash import LoweredFlash
from flash_export.exporters.serialization import SplitModels, write_models
from flash_export.exporters.traced_sizes import choose_traced_sizes
from flash_export.exporters.tracing import trace_model
from flash_export.models.checkpoint import load_checkpoint

if TYPE_CHECKING:
    from timing import Timings
    from undone_steps import Step

    from flash_export.models.flash import FlashModel

LENGTHS, QUICK_LENGTHS = (1000, 2048), (40,)
MEMORY_LEN, QUICK_MEMORY_LEN = 16384, 64
MEMORY_RUNS = 3
ROUNDS, QUICK_ROUNDS = 41, 2
BLOCK_MS = 1.0  # one run
TOLERANCE = 1e-5  # of the output's scale: fp32 rounding in another order
WITHOUT, WITH = "without", "with"


@dataclass(frozen=True)
class WrittenGraph:
    """A graph on disk.

    Attributes:
        path: The ONNX file.
        block_nodes: Nodes of one block, of the last one: what all blocks share is traced in the first.
    """

    path: Path
    block_nodes: int


@dataclass(frozen=True)
class StepTiming:
    """One step at one length.

    Attributes:
        step: What it does.
        attention: ``causal`` or ``non-causal``.
        seq_len: Tokens.
        nodes_without: Nodes a block without it.
        nodes_with: Nodes a block with it.
        timings: Of the graphs without and with it.
    """

    step: str
    attention: str
    seq_len: int
    nodes_without: int
    nodes_with: int
    timings: Timings

    @property
    def ratio(self) -> float:
        """How many times longer the model takes without the step."""
        return self.timings.compute_ratio(WITHOUT, WITH)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The lower and the upper quartile of the rounds' ratios."""
        rounds = self.timings.rounds_ms
        ratios = [a / b for a, b in zip(rounds[WITHOUT], rounds[WITH], strict=True)]
        lower, _, upper = statistics.quantiles(ratios, n=4, method="inclusive")
        return lower, upper


@dataclass(frozen=True)
class StepMemory:
    """What declared shapes cost in memory, each graph in a process of its own.

    Attributes:
        step: What the step does.
        attention: ``causal`` or ``non-causal``.
        seq_len: Tokens.
        token_kib_without: KiB of peak memory a token without it.
        token_kib_with: The same with it.
    """

    step: str
    attention: str
    seq_len: int
    token_kib_without: float
    token_kib_with: float


def load_model(config: PeerConfig, folder: Path) -> FlashModel:
    """Return the reference model of flash-pytorch's weights."""
    weights = folder / "model.pt"
    torch.save(build_original(config).state_dict(), weights)
    arguments = {"group_size": config.group_size, "causal": config.causal}
    return cast("FlashModel", load_checkpoint(weights, family="flash", config=arguments, assume_defaults=True).model)


def write_graph(
    lowered: LoweredFlash, path: Path, *, mask: bool | None = None, keep_shapes: bool = False
) -> WrittenGraph:
    """Trace the forward graph as ``export_onnx`` does."""
    lowered.requires_grad_(requires_grad=False).eval()
    graph = describe_graphs(lowered.config, ExportOptions(mask=mask, graphs=(FORWARD,)))[FORWARD]
    traced = trace_model(lowered, graph, choose_traced_sizes(lowered, lowered.config.interface.window, graph)).model
    split = SplitModels(f"{path.name}.data")
    split.add(path.name, traced)
    if not keep_shapes:
        del split.skeletons[path.name].graph.value_info[:]
    write_models(split, path.parent)
    return WrittenGraph(path, analyse_graph(path).nodes_by_block[lowered.config.depth - 1])


def open_graph(graph: WrittenGraph) -> Any:
    """Open a graph as our runner does."""
    options = make_options()
    options.enable_mem_pattern = False
    return open_session(graph.path, options)


def check_agreement(step: str, without: Any, with_all: Any, seq_len: int, vocab_size: int) -> None:
    """Compare both graphs on a full row and one with padding, where tokens are real.

    Raises:
        RuntimeError: They compute different functions.
    """
    input_ids = np.concatenate((make_tokens(seq_len, vocab_size), make_tokens(seq_len, vocab_size)[:, ::-1]))
    valid = np.arange(seq_len) < np.array([[seq_len], [1 + seq_len * 2 // 3]])
    known = {"input_ids": input_ids, "attention_mask": valid.astype(np.int64)}
    actual, expected = (
        session.run(["logits"], {value.name: known[value.name] for value in session.get_inputs()})[0][valid]
        for session in (without, with_all)
    )
    error = compute_error(actual, expected)
    if not error <= TOLERANCE:
        raise RuntimeError(f"without {step!r} the graph differs by {error:.2g} of the output's scale")


def time_step(
    step: Step, config: PeerConfig, without: WrittenGraph, ours: WrittenGraph, seq_len: int, *, quick: bool
) -> StepTiming:
    """Time one step at one length.

    Raises:
        RuntimeError: The graph without it computes something else.
    """
    print(f"{name_attention(config)}, {seq_len} tokens, {step.name} ...", file=sys.stderr)
    sessions = {WITHOUT: open_graph(without), WITH: open_graph(ours)}
    check_agreement(step.name, sessions[WITHOUT], sessions[WITH], seq_len, config.num_tokens)
    tokens = make_tokens(seq_len, config.num_tokens)
    candidates = {name: bind_run(session, make_token_feeds(session, tokens)) for name, session in sessions.items()}
    timings = time_alternating(candidates, rounds=QUICK_ROUNDS if quick else ROUNDS, block_ms=BLOCK_MS)
    return StepTiming(step.name, name_attention(config), seq_len, without.block_nodes, ours.block_nodes, timings)


def measure_memory(
    step: Step, config: PeerConfig, without: WrittenGraph, ours: WrittenGraph, seq_len: int
) -> StepMemory:
    """Run both graphs, each in a process of its own."""
    arguments = (seq_len, config.num_tokens, MEMORY_RUNS, False)
    costs = [run_in_process(measure_length, str(graph.path), *arguments) for graph in (without, ours)]
    return StepMemory(step.name, name_attention(config), seq_len, *(cost.token_kib for cost in costs))


def select_steps(config: PeerConfig, only: str) -> list[Step]:
    """Return the steps of this attention whose name contains a text."""
    return [step for step in STEPS if step.causal in (None, config.causal) and only in step.name]


def main(arguments: list[str] | None = None) -> None:
    """Take back, time, print, write."""
    parser = make_parser(__doc__)
    add_model_options(parser)
    parser.add_argument("--lengths", type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--only", default="", metavar="TEXT", help="the steps whose name contains this")
    options = parser.parse_args(arguments)
    lengths = options.lengths or (QUICK_LENGTHS if options.quick else LENGTHS)
    memory_len = QUICK_MEMORY_LEN if options.quick else MEMORY_LEN
    torch.set_num_threads(THREADS)
    timed: list[StepTiming] = []
    measured: list[StepMemory] = []
    configs = select_configs(options)
    for config in configs:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            model = load_model(config, folder)
            ours = write_graph(LoweredFlash(model), folder / "ours.onnx")
            for step in select_steps(config, options.only):
                path = folder / "without.onnx"
                with step.take_back(model) as lowered:
                    without = write_graph(lowered, path, mask=step.mask, keep_shapes=step.keep_shapes)
                timed += [time_step(step, config, without, ours, n, quick=options.quick) for n in lengths]
                if step.keep_shapes:
                    measured.append(measure_memory(step, config, without, ours, memory_len))
    _print_steps(configs[0], timed, measured)
    write_json(
        options.json,
        {
            "models": [asdict(config) for config in configs],
            "steps": [_describe(timing) for timing in timed],
            "memory": [asdict(memory) for memory in measured],
        },
    )


def _print_steps(config: PeerConfig, timed: list[StepTiming], measured: list[StepMemory]) -> None:
    print_table(
        f"Time without a step / with it: d={config.dim}, {config.depth} layers",
        ("step", "attention", "tokens", "ratio", "quartiles", "nodes a block", "without", "spread", "others"),
        [
            (
                timing.step,
                timing.attention,
                timing.seq_len,
                f"{timing.ratio:.3f}",
                "{:.2f}-{:.2f}".format(*timing.quartiles),
                timing.nodes_with,
                timing.nodes_without,
                f"{timing.timings.compute_spread():.0%}",
                f"{timing.timings.get_others_share():.0%}",
            )
            for timing in timed
        ],
    )
    if measured:
        print_table(
            "Peak memory, KiB a token",
            ("step", "attention", "tokens", "without", "with"),
            [(m.step, m.attention, m.seq_len, m.token_kib_without, m.token_kib_with) for m in measured],
        )


def _describe(timing: StepTiming) -> dict[str, Any]:
    return {
        **asdict(timing),
        "ratio": timing.ratio,
        "quartiles": timing.quartiles,
        "median_ms": {name: timing.timings.get_median_ms(name) for name in (WITHOUT, WITH)},
    }


if __name__ == "__main__":
    main()
