"""Ours in onnxruntime against flash-pytorch, torch.compile, the legacy exporter, OpenVINO, the limit and a Transformer.

    python benchmarks/compare.py [--causal | --non-causal] [--lengths 256,1000] [--no-compile]

One sequence, float32, two threads. Before anything is timed, every candidate that runs the same weights has to agree
with flash-pytorch. The causal model is also timed as generation reads a prompt: in segments of 2,048 tokens through the
prefill graph, state and logits included. OpenVINO reads our graph too, where it is installed.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from flash_export import Bundle, Generator
from flash_export.config import FORWARD
from flash_export.errors import BackendUnavailableError
from flash_export.runtime.backends import find_target
from harness import models
from harness.limit import bind_products, list_products
from harness.report import Figure, make_parser, print_figures, print_table, write_json
from harness.sessions import THREADS, bind_run, check_agreement, make_token_feeds, make_tokens, open_session
from harness.timing import QUICK_EFFORT, Effort, Timings, time_alternating
from harness.transformer import build_transformer, export_transformer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    # What runs one sequence, and its logits where the weights are those of flash-pytorch.
    Bound = tuple[Callable[[], object], np.ndarray | None]
    Bind = Callable[[np.ndarray], Bound]

LENGTHS, QUICK_LENGTHS = (256, 512, 1000, 2048, 4096, 8192), (16, 40)
LIMIT_FROM = 1024
SEGMENTS, OPENVINO = "ours, segments", "ours, OpenVINO"
OURS, EAGER, COMPILED, LEGACY, SLIM = "ours", "eager", "compile", "legacy", "legacy+slim"
LIMIT, TRANSFORMER = "limit", "Transformer"
NAMES = (EAGER, COMPILED, LEGACY, SLIM, OURS, OPENVINO, SEGMENTS, LIMIT, TRANSFORMER)
PEERS = (EAGER, COMPILED, LEGACY, SLIM, TRANSFORMER, SEGMENTS, OPENVINO, LIMIT)
# Geometric mean over the lengths that a peer's time has to be of ours, by attention.
MEAN_TARGETS = {
    EAGER: {"non-causal": 1.8, "causal": 1.8},
    COMPILED: {"non-causal": 1.3, "causal": 1.3},
    LEGACY: {"non-causal": 1.6, "causal": 2.0},
}
LIMIT_TARGET = 0.80
TRANSFORMER_TARGETS = {2048: 1.2, 4096: 1.8, 8192: 2.8}


def list_candidates(config: models.PeerConfig, folder: Path, stack: ExitStack, *, compiled: bool) -> dict[str, Bind]:
    """Export a model in every way and open the graphs; ``stack`` closes what has to be closed."""
    legacy, ours = models.export_legacy(config, folder / "legacy.onnx"), models.export_ours(config, folder / "ours")
    bundle = Bundle.open(ours.parent)
    graphs = {LEGACY: legacy, SLIM: models.slim_graph(legacy, folder / "slim.onnx"), OURS: ours}
    transformer = open_session(export_transformer(build_transformer(config), folder / "transformer.onnx"))
    candidates: dict[str, Bind] = {EAGER: lambda tokens: _bind_model(models.build_original(config), tokens)}
    if compiled:
        candidates[COMPILED] = lambda tokens: _bind_compiled(config, tokens)
    candidates |= {name: partial(_bind_session, open_session(path)) for name, path in graphs.items()}
    if config.causal:
        generator = stack.enter_context(Generator.open(bundle, threads=THREADS))
        candidates[SEGMENTS] = lambda tokens: (lambda: generator.prefill([tokens[0]]), None)
    try:
        candidates[OPENVINO] = _open_openvino(bundle, stack)
    except BackendUnavailableError as error:
        print(f"not compared: {error}", file=sys.stderr)
    candidates[LIMIT] = lambda tokens: (bind_products(list_products(config, tokens.shape[1])), None)
    candidates[TRANSFORMER] = lambda tokens: (bind_run(transformer, {"input_ids": tokens}), None)
    return candidates


def _bind_model(model: Callable[..., Any], tokens: np.ndarray) -> Bound:
    inputs = torch.from_numpy(tokens)

    def run() -> Any:
        with torch.inference_mode():
            return model(inputs)

    return run, run().numpy()


def _bind_compiled(config: models.PeerConfig, tokens: np.ndarray) -> Bound:
    """Compile a model for one length."""
    # Compiled for all lengths at once it is no faster, and the angles that rotary_embedding_torch caches make it
    # compile again at longer ones.
    torch._dynamo.reset()
    return _bind_model(torch.compile(models.build_original(config), dynamic=False), tokens)


def _bind_session(session: Any, tokens: np.ndarray) -> Bound:
    feeds = make_token_feeds(session, tokens)
    return bind_run(session, feeds), session.run(["logits"], feeds)[0]


def _open_openvino(bundle: Bundle, stack: ExitStack) -> Bind:
    target = find_target(bundle, "openvino", FORWARD)
    runner = stack.enter_context(target.open(threads=THREADS))

    def bind(tokens: np.ndarray) -> Bound:
        known = (tokens, np.ones_like(tokens))  # a mask, where the graph takes one
        feeds = {spec.name: array for spec, array in zip(target.inputs, known, strict=False)}
        return partial(runner.run, feeds), runner.run(feeds)["logits"]

    return bind


def compare_at(config: models.PeerConfig, seq_len: int, candidates: Mapping[str, Bind], effort: Effort) -> Timings:
    """Time all candidates at one length.

    Raises:
        RuntimeError: A candidate computes something else than flash-pytorch.
    """
    print(f"{config.attention}, {seq_len} tokens ...", file=sys.stderr)
    tokens = make_tokens(seq_len, config.num_tokens)
    bound = {name: bind(tokens) for name, bind in candidates.items()}
    check_outputs({name: output for name, (_, output) in bound.items() if output is not None})
    return time_alternating({name: run for name, (run, _) in bound.items()}, effort)


def check_outputs(outputs: Mapping[str, np.ndarray]) -> None:
    """Check that the candidates with the same weights compute what flash-pytorch does."""
    for name, output in outputs.items():
        check_agreement(name, output, outputs[EAGER], "flash-pytorch", models.TOLERANCE)


def summarise(config: models.PeerConfig, timings: Mapping[int, Timings]) -> list[Figure]:
    """Return each target that the measured lengths can say something about."""
    figures = []
    for peer, targets in MEAN_TARGETS.items():
        ratios = [timing.compute_ratio(peer, OURS) for timing in timings.values() if peer in timing.rounds_ms]
        if ratios:
            mean = statistics.geometric_mean(ratios)
            name = f"{peer} / ours, geometric mean"
            figures.append(Figure.judge(name, mean, at_least=targets[config.attention]))
    shares = [timing.compute_ratio(LIMIT, OURS) for seq_len, timing in timings.items() if seq_len >= LIMIT_FROM]
    if shares:
        name = f"limit / ours, worst from {LIMIT_FROM} tokens on"
        figures.append(Figure.judge(name, min(shares), at_least=LIMIT_TARGET))
    for seq_len, target in TRANSFORMER_TARGETS.items():
        if seq_len in timings:
            ratio = timings[seq_len].compute_ratio(TRANSFORMER, OURS)
            figures.append(Figure.judge(f"Transformer / ours at {seq_len}", ratio, at_least=target))
    return figures


def main(arguments: list[str] | None = None) -> None:
    """Compare, print, write."""
    parser = make_parser(__doc__, models=True, lengths=True)
    parser.add_argument("--no-compile", dest="compiled", action="store_false", help="leave torch.compile out")
    options = parser.parse_args(arguments)
    torch.set_num_threads(THREADS)
    lengths = options.lengths or (QUICK_LENGTHS if options.quick else LENGTHS)
    effort = QUICK_EFFORT if options.quick else Effort()
    results = []
    for config in models.select_configs(options):
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            candidates = list_candidates(config, Path(folder), stack, compiled=options.compiled)
            timings = {seq_len: compare_at(config, seq_len, candidates, effort) for seq_len in lengths}
        _print_comparison(config, timings)
        results.append(_describe(config, timings))
    write_json(options.json, {"comparisons": results})


def _print_comparison(config: models.PeerConfig, timings: Mapping[int, Timings]) -> None:
    measured = next(iter(timings.values())).rounds_ms
    names, peers = ([name for name in names if name in measured] for names in (NAMES, PEERS))
    print_table(
        f"Milliseconds: {config.title}",
        ("tokens", *names, "spread", "others"),
        [
            (seq_len, *(timing.medians_ms[name] for name in names), f"{timing.spread:.0%}", f"{timing.others:.0%}")
            for seq_len, timing in timings.items()
        ],
    )
    ratios = {n: [timing.compute_ratio(peer, OURS) for peer in peers] for n, timing in timings.items()}
    rows: list[tuple[object, ...]] = [(n, *row) for n, row in ratios.items()]
    rows.append(("geometric mean", *map(statistics.geometric_mean, zip(*ratios.values(), strict=True))))
    print_table(f"Times ours: {config.title}", ("tokens", *peers), rows)
    print_figures(f"Targets: {config.title}", summarise(config, timings))


def _describe(config: models.PeerConfig, timings: Mapping[int, Timings]) -> dict[str, Any]:
    return {
        "model": asdict(config),
        "lengths": [
            {
                "seq_len": seq_len,
                "median_ms": timing.medians_ms,
                "ratio_to_ours": {name: timing.compute_ratio(name, OURS) for name in timing.rounds_ms},
                **asdict(timing),
            }
            for seq_len, timing in timings.items()
        ],
        "targets": [
            {"ratio": one.name, "value": one.value, "verdict": one.target} for one in summarise(config, timings)
        ],
    }


if __name__ == "__main__":
    main()
