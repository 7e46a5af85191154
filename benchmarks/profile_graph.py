"""Where the time goes in our graph: onnxruntime's profile by operator, and by node within a block.

    python benchmarks/profile_graph.py [--seq-len 2048] [--causal | --non-causal] [--json FILE] [--quick]

A node is listed under the name that onnxruntime's own optimizer left it; a fused node is found beside its parts' names.
"""

from __future__ import annotations

import json
import re
import statistics
import tempfile
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness.models import PeerConfig, export_ours, select_configs
from harness.report import make_parser, print_table, write_json
from harness.sessions import bind_tokens, make_tokens, open_session

BLOCK_NAME = re.compile(r"layers\.\d+[./]")
DEFAULT_SEQ_LEN, QUICK_SEQ_LEN = 2048, 40
RUNS = 9
WARM_UP_RUNS = 3


@dataclass(frozen=True)
class NodeTime:
    """One node of the optimised graph."""

    name: str
    operator: str  # after onnxruntime's fusions
    shape: str  # of its first output
    time_ms: float  # of a run, the median over the runs


def profile_graph(path: Path, seq_len: int, vocab_size: int, folder: Path) -> list[NodeTime]:
    """Run a graph on one sequence under onnxruntime's profiler, which writes its trace into ``folder``."""
    session = open_session(path, enable_profiling=True, profile_file_prefix=str(folder / "trace"))
    run = bind_tokens(session, make_tokens(seq_len, vocab_size))
    for _ in range(WARM_UP_RUNS + RUNS):
        run()
    return read_nodes(json.loads(Path(session.end_profiling()).read_text()))


def sum_by_operator(nodes: list[NodeTime]) -> list[tuple[str, int, float]]:
    """Return operator, number of nodes and milliseconds, slowest first."""
    times: dict[str, list[float]] = defaultdict(list)
    for node in nodes:
        times[node.operator].append(node.time_ms)
    return sorted(((operator, len(own), sum(own)) for operator, own in times.items()), key=lambda row: -row[2])


def average_over_blocks(nodes: list[NodeTime], depth: int) -> list[NodeTime]:
    """Return the nodes of one block, each time the mean over all blocks, slowest first."""
    blocks: dict[str, list[NodeTime]] = defaultdict(list)
    for node in nodes:
        if (name := BLOCK_NAME.sub("", node.name)) != node.name:
            blocks[name].append(node)
    block = [
        replace(same[0], name=name, time_ms=sum(node.time_ms for node in same) / depth) for name, same in blocks.items()
    ]
    return sorted(block, key=lambda node: -node.time_ms)


def main(arguments: list[str] | None = None) -> None:
    """Profile, print, write."""
    parser = make_parser(__doc__, models=True)
    parser.add_argument("--seq-len", type=int, help=f"default {DEFAULT_SEQ_LEN}")
    options = parser.parse_args(arguments)
    seq_len = options.seq_len or (QUICK_SEQ_LEN if options.quick else DEFAULT_SEQ_LEN)
    results = []
    for config in select_configs(options):
        with tempfile.TemporaryDirectory() as name:
            path = export_ours(config, Path(name))
            nodes = profile_graph(path, seq_len, config.num_tokens, Path(name))
        _print_profile(config, seq_len, nodes)
        results.append({"model": asdict(config), "seq_len": seq_len, "nodes": [asdict(node) for node in nodes]})
    write_json(options.json, {"profiles": results})


def _print_profile(config: PeerConfig, seq_len: int, nodes: list[NodeTime]) -> None:
    total_ms = sum(node.time_ms for node in nodes)
    where = f"{config.title}, {seq_len} tokens"
    rows = [(op, number, time_ms, f"{time_ms / total_ms:.1%}") for op, number, time_ms in sum_by_operator(nodes)]
    rows.append(("all nodes", len(nodes), total_ms, "100%"))
    print_table(f"By operator: {where}", ("operator", "number", "ms", "share"), rows)
    block = average_over_blocks(nodes, config.depth)
    block_ms = sum(node.time_ms for node in block)
    print_table(
        f"One block, the mean of {config.depth}: {where}",
        ("node", "operator", "output", "ms", "share of the block"),
        [(n.name, n.operator, n.shape, n.time_ms, f"{n.time_ms / block_ms:.1%}") for n in block],
    )


def read_nodes(events: list[dict[str, Any]]) -> list[NodeTime]:
    """Return the median time of each node over the runs after the warm-up."""
    runs: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            runs[event["name"].removesuffix("_kernel_time"), event["args"]["op_name"]].append(event)
    nodes = []
    for (name, operator), calls in runs.items():
        time_us = statistics.median(call["dur"] for call in calls[-RUNS:])
        outputs = calls[-1]["args"].get("output_type_shape") or [{}]
        shape = "x".join(str(size) for sizes in outputs[0].values() for size in sizes)
        nodes.append(NodeTime(name, operator, shape, time_us / 1e3))
    return nodes


if __name__ == "__main__":
    main()
