"""Ours in onnxruntime against flash-pytorch, torch.compile, the legacy exporter, OpenVINO, the limit and a Transformer.

    python benchmarks/compare.py [--causal | --non-causal] [--lengths 256,1000] [--no-compile]

One sequence, float32, two threads. Before anything is timed, every candidate that runs the same weights has to agree
with flash-pytorch. The causal model is also timed as generation reads a prompt: in segments of 2,048 tokens through the
prefill graph, state and logits included. OpenVINO reads our graph too, where it is installed.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from limit import bind_products, list_products
from peers import (
    TOLERANCE,
    PeerConfig,
    add_model_options,
    bind_eager,
    build_original,
    compute_error,
    export_legacy,
    export_ours,
    name_attention,
    select_configs,
    slim_graph,
)
from report import judge, make_parser, print_table, write_json
from sessions import THREADS, bind_run, make_token_feeds, make_tokens, open_session
from timing import DEFAULT_BLOCK_MS, DEFAULT_ROUNDS, Timings, compute_geometric_mean, time_alternating
from transformer import build_transformer, export_transformer

from flash_export.bundle.bundle import Bundle
from flash_export.config import FORWARD
from flash_export.errors import BackendUnavailableError
from flash_export.generation.generate import Generator
from flash_export.runtime.backends import find_target

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LENGTHS = (256, 512, 1000, 2048, 4096, 8192)
QUICK_LENGTHS = (16, 40)
LIMIT_FROM = 1024
SEGMENTS, OPENVINO = "ours, segments", "ours, OpenVINO"
OURS, EAGER, COMPILED, LEGACY, SLIM = "ours", "eager", "compile", "legacy", "legacy+slim"
LIMIT, TRANSFORMER = "limit", "Transformer"
PEERS = (EAGER, COMPILED, LEGACY, SLIM, TRANSFORMER, SEGMENTS, OPENVINO)
# Geometric mean over the lengths that a peer's time has to be of ours, by attention.
MEAN_TARGETS = {
    EAGER: {"non-causal": 1.8, "causal": 1.8},
    COMPILED: {"non-causal": 1.3, "causal": 1.3},
    LEGACY: {"non-causal": 1.6, "causal": 2.0},
}
LIMIT_TARGET = 0.80
TRANSFORMER_TARGETS = {2048: 1.2, 4096: 1.8, 8192: 2.8}


@dataclass(frozen=True)
class Sessions:
    """The graphs of one model that are compared, opened."""

    ours: Any
    segments: Generator | None
    legacy: Any
    slim: Any
    transformer: Any
    openvino: Callable[[np.ndarray], np.ndarray] | None


def open_sessions(config: PeerConfig, folder: Path) -> Sessions:
    """Export a model in every way and open the graphs."""
    legacy = export_legacy(config, folder / "legacy.onnx")
    ours = export_ours(config, folder / "ours")
    bundle = Bundle.open(ours.parent)
    return Sessions(
        ours=open_session(ours),
        segments=Generator.open(bundle, threads=THREADS) if config.causal else None,
        legacy=open_session(legacy),
        slim=open_session(slim_graph(legacy, folder / "slim.onnx")),
        transformer=open_session(export_transformer(build_transformer(config), folder / "transformer.onnx")),
        openvino=_open_openvino(bundle),
    )


def _open_openvino(bundle: Bundle) -> Callable[[np.ndarray], np.ndarray] | None:
    target = find_target(bundle, "openvino", FORWARD)
    try:
        runner = target.open(threads=THREADS)
    except BackendUnavailableError as error:
        print(f"not compared: {error}", file=sys.stderr)
        return None

    def run(tokens: np.ndarray) -> np.ndarray:
        feeds = (tokens, np.ones_like(tokens))  # a mask, where the graph takes one
        return runner.run({spec.name: array for spec, array in zip(target.inputs, feeds, strict=False)})["logits"]

    return run


def compare_at(
    config: PeerConfig, seq_len: int, sessions: Sessions, *, compiled: bool, rounds: int, block_ms: float
) -> Timings:
    """Time all candidates at one length.

    Raises:
        RuntimeError: A candidate computes something else than flash-pytorch.
    """
    print(f"{name_attention(config)}, {seq_len} tokens ...", file=sys.stderr)
    original = build_original(config)
    tokens = make_tokens(seq_len, config.num_tokens)
    candidates: dict[str, Callable[[], object]] = {EAGER: bind_eager(original, tokens)}
    if compiled:
        torch._dynamo.reset()
        # A model and a compilation for each length: compiled for all lengths at once it is no faster, and the angles
        # that rotary_embedding_torch caches make it compile again at longer ones.
        candidates[COMPILED] = bind_eager(torch.compile(build_original(config), dynamic=False), tokens)
    for name, session in ((LEGACY, sessions.legacy), (SLIM, sessions.slim), (OURS, sessions.ours)):
        candidates[name] = bind_run(session, make_token_feeds(session, tokens))
    _check_agreement(original, tokens, candidates.get(COMPILED), sessions)
    if (generator := sessions.segments) is not None:
        candidates[SEGMENTS] = lambda: generator.prefill([tokens[0]])
    if (run := sessions.openvino) is not None:
        candidates[OPENVINO] = lambda: run(tokens)
    candidates[LIMIT] = bind_products(list_products(config, seq_len))
    candidates[TRANSFORMER] = bind_run(sessions.transformer, {"input_ids": tokens})
    return time_alternating(candidates, rounds=rounds, block_ms=block_ms)


def summarise(config: PeerConfig, timings: Mapping[int, Timings]) -> list[tuple[str, float, str]]:
    """Return name, value and verdict of each target that the measured lengths can say something about."""
    attention = name_attention(config)
    rows = []
    for peer, targets in MEAN_TARGETS.items():
        ratios = [timing.compute_ratio(peer, OURS) for timing in timings.values() if peer in timing.rounds_ms]
        if ratios:
            mean = compute_geometric_mean(ratios)
            rows.append((f"{peer} / ours, geometric mean", mean, judge(mean, at_least=targets[attention])))
    shares = [timing.compute_ratio(LIMIT, OURS) for seq_len, timing in timings.items() if seq_len >= LIMIT_FROM]
    if shares:
        text = f"limit / ours, worst from {LIMIT_FROM} tokens on"
        rows.append((text, min(shares), judge(min(shares), at_least=LIMIT_TARGET)))
    for seq_len, target in TRANSFORMER_TARGETS.items():
        if seq_len in timings:
            ratio = timings[seq_len].compute_ratio(TRANSFORMER, OURS)
            rows.append((f"Transformer / ours at {seq_len}", ratio, judge(ratio, at_least=target)))
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Compare, print, write."""
    parser = make_parser(__doc__)
    parser.add_argument("--lengths", type=lambda text: [int(part) for part in text.split(",")])
    add_model_options(parser)
    parser.add_argument("--no-compile", dest="compiled", action="store_false", help="leave torch.compile out")
    options = parser.parse_args(arguments)
    torch.set_num_threads(THREADS)
    lengths = options.lengths or (QUICK_LENGTHS if options.quick else LENGTHS)
    rounds, block_ms = (1, 1.0) if options.quick else (DEFAULT_ROUNDS, DEFAULT_BLOCK_MS)
    results = []
    for config in select_configs(options):
        with tempfile.TemporaryDirectory() as folder:
            sessions = open_sessions(config, Path(folder))
            timings = {
                seq_len: compare_at(
                    config, seq_len, sessions, compiled=options.compiled, rounds=rounds, block_ms=block_ms
                )
                for seq_len in lengths
            }
        _print_comparison(config, timings)
        results.append(_describe(config, timings))
    write_json(options.json, {"comparisons": results})


def _check_agreement(
    original: torch.nn.Module, tokens: np.ndarray, compiled: Callable[[], object] | None, sessions: Sessions
) -> None:
    expected = np.asarray(bind_eager(original, tokens)())
    outputs = {
        name: session.run(["logits"], make_token_feeds(session, tokens))[0]
        for name, session in ((LEGACY, sessions.legacy), (SLIM, sessions.slim), (OURS, sessions.ours))
    }
    if compiled:
        outputs[COMPILED] = np.asarray(compiled())
    if sessions.openvino is not None:
        outputs[OPENVINO] = sessions.openvino(tokens)
    for name, output in outputs.items():
        error = compute_error(output, expected)
        if not error <= TOLERANCE:
            raise RuntimeError(f"{name} differs from flash-pytorch by {error:.2g} of the output's scale")


def _print_comparison(config: PeerConfig, timings: Mapping[int, Timings]) -> None:
    where = f"{name_attention(config)}, d={config.dim}, {config.depth} layers"
    names = [EAGER, COMPILED, LEGACY, SLIM, OURS, OPENVINO, SEGMENTS, LIMIT, TRANSFORMER]
    names = [name for name in names if name in next(iter(timings.values())).rounds_ms]
    print_table(
        f"Milliseconds: {where}",
        ("tokens", *names, "spread", "others"),
        [
            (
                str(seq_len),
                *(timing.get_median_ms(name) for name in names),
                f"{timing.compute_spread():.0%}",
                f"{timing.get_others_share():.0%}",
            )
            for seq_len, timing in timings.items()
        ],
    )
    peers = [name for name in PEERS if name in names]
    ratios = {name: [timing.compute_ratio(name, OURS) for timing in timings.values()] for name in (*peers, LIMIT)}
    rows = [(str(seq_len), *(ratios[name][index] for name in (*peers, LIMIT))) for index, seq_len in enumerate(timings)]
    means = (compute_geometric_mean(values) for values in ratios.values())
    print_table(f"Times ours: {where}", ("tokens", *peers, LIMIT), [*rows, ("geometric mean", *means)])
    print_table(f"Targets: {where}", ("ratio", "measured", "target"), summarise(config, timings))


def _describe(config: PeerConfig, timings: Mapping[int, Timings]) -> dict[str, Any]:
    return {
        "model": asdict(config),
        "lengths": [
            {
                "seq_len": seq_len,
                "median_ms": {name: timing.get_median_ms(name) for name in timing.rounds_ms},
                "ratio_to_ours": {name: timing.compute_ratio(name, OURS) for name in timing.rounds_ms},
                "rounds_ms": timing.rounds_ms,
                "others_share": timing.others_share,
            }
            for seq_len, timing in timings.items()
        ],
        "targets": [
            {"ratio": name, "value": value, "verdict": text} for name, value, text in summarise(config, timings)
        ],
    }


if __name__ == "__main__":
    main()
