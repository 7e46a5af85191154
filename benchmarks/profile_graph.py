"""Where the time goes in our graph: onnxruntime's profile by operator, and by node within a block.

    python benchmarks/profile_graph.py [--seq-len 2048] [--causal | --non-causal] [--json FILE] [--quick]

A node is listed under the name that onnxruntime's own optimizer left it; a fused node is found beside its parts' names.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peers import PeerConfig, add_model_options, export_ours, name_attention, select_configs
from report import make_parser, print_table, write_json
from sessions import bind_run, make_options, make_token_feeds, make_tokens, open_session

BLOCK_NAME = re.compile(r"layers\.\d+[./]")
DEFAULT_SEQ_LEN = 2048
RUNS = 9
WARM_UP_RUNS = 3


@dataclass(frozen=True)
class NodeTime:
    """One node of the optimised graph.

    Attributes:
        name: Its name.
        operator: Its type, after onnxruntime's fusions.
        shape: Shape of its first output.
        time_ms: Milliseconds a run, the median over the runs.
    """

    name: str
    operator: str
    shape: str
    time_ms: float


def profile_graph(path: Path, seq_len: int, vocab_size: int, folder: Path) -> list[NodeTime]:
    """Run a graph under onnxruntime's profiler.

    Args:
        path: The ONNX file.
        seq_len: Length of the one sequence.
        vocab_size: Number of tokens.
        folder: Where onnxruntime writes its trace.
    """
    options = make_options()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "trace")
    session = open_session(path, options)
    run = bind_run(session, make_token_feeds(session, make_tokens(seq_len, vocab_size)))
    for _ in range(WARM_UP_RUNS + RUNS):
        run()
    events = json.loads(Path(session.end_profiling()).read_text())
    return _read_nodes(events)


def sum_by_operator(nodes: list[NodeTime]) -> list[tuple[str, int, float]]:
    """Return operator, number of nodes and milliseconds, slowest first."""
    times: Counter[str] = Counter()
    for node in nodes:
        times[node.operator] += node.time_ms  # type: ignore[assignment]  # a Counter adds floats as well
    numbers = Counter(node.operator for node in nodes)
    return [(operator, numbers[operator], time_ms) for operator, time_ms in times.most_common()]


def average_over_blocks(nodes: list[NodeTime], depth: int) -> list[NodeTime]:
    """Return the nodes of one block, each time the mean over all blocks, slowest first."""
    first: dict[str, NodeTime] = {}
    times: dict[str, float] = {}
    for node in nodes:
        name = BLOCK_NAME.sub("", node.name)
        if name != node.name:
            first.setdefault(name, node)
            times[name] = times.get(name, 0.0) + node.time_ms / depth
    block = [NodeTime(name, node.operator, node.shape, times[name]) for name, node in first.items()]
    return sorted(block, key=lambda node: -node.time_ms)


def main(arguments: list[str] | None = None) -> None:
    """Profile, print, write."""
    parser = make_parser(__doc__)
    parser.add_argument("--seq-len", type=int, help=f"default {DEFAULT_SEQ_LEN}")
    add_model_options(parser)
    options = parser.parse_args(arguments)
    seq_len = options.seq_len or (40 if options.quick else DEFAULT_SEQ_LEN)
    results = []
    for config in select_configs(options):
        with tempfile.TemporaryDirectory() as name:
            path = export_ours(config, Path(name))
            nodes = profile_graph(path, seq_len, config.num_tokens, Path(name))
        _print_profile(config, seq_len, nodes)
        results.append(
            {"model": asdict(config), "seq_len": seq_len, "nodes": [asdict(node) for node in nodes]},
        )
    write_json(options.json, {"profiles": results})


def _print_profile(config: PeerConfig, seq_len: int, nodes: list[NodeTime]) -> None:
    total_ms = sum(node.time_ms for node in nodes)
    where = f"{name_attention(config)}, d={config.dim}, {config.depth} blocks, {seq_len} tokens"
    print_table(
        f"By operator: {where}",
        ("operator", "number", "ms", "share"),
        [
            *((op, number, time_ms, f"{time_ms / total_ms:.1%}") for op, number, time_ms in sum_by_operator(nodes)),
            ("all nodes", len(nodes), total_ms, "100%"),
        ],
    )
    block = average_over_blocks(nodes, config.depth)
    block_ms = sum(node.time_ms for node in block)
    print_table(
        f"One block, the mean of {config.depth}: {where}",
        ("node", "operator", "output", "ms", "share of the block"),
        [(n.name, n.operator, n.shape, n.time_ms, f"{n.time_ms / block_ms:.1%}") for n in block],
    )


def _read_nodes(events: list[dict[str, Any]]) -> list[NodeTime]:
    """Return the median time of each node over the runs after the warm-up."""
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            key = (event["name"].removesuffix("_kernel_time"), event["args"]["op_name"])
            runs.setdefault(key, []).append(event)
    nodes = []
    for (name, operator), calls in runs.items():
        timed = sorted(call["dur"] for call in calls[-RUNS:])
        nodes.append(NodeTime(name, operator, _read_shape(calls[-1]), timed[len(timed) // 2] / 1e3))
    return nodes


def _read_shape(event: dict[str, Any]) -> str:
    outputs = event["args"].get("output_type_shape") or [{}]
    return "x".join(str(size) for shape in outputs[0].values() for size in shape)


if __name__ == "__main__":
    main()
