"""What int8 gains in a forward run and int4 in a decode step of wider models, whose time is that of matrix products."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from peers import TINY, PeerConfig, build_original, compute_error, name_attention
from sessions import THREADS, bind_run, make_token_feeds, make_tokens, open_session
from timing import time_alternating
from variants import FP32, make_variants

from flash_export.config import DECODE, FORWARD, QuantizeOptions
from flash_export.generation.ort_state import OrtStateRunner
from flash_export.generation.state import State
from flash_export.validators.cells import describe_exception
from flash_export.validators.trade_off.candidates import measure_graph_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from flash_export.bundle.bundle import Bundle

    Bind = Callable[[Bundle], tuple[Callable[[], object], np.ndarray]]

FORWARD_PRECISIONS, DECODE_PRECISIONS = ("int8", "int8-dynamic"), ("int4",)
# How many times as fast as fp32, and how small, each has to be.
TARGETS = {(FORWARD, "int8"): (1.7, 0.30), (DECODE, "int4"): (1.5, 0.20)}
# Random weights are not trained to bear rounding: what int4 costs is measured on the bundled models, here its speed.
INT4_BUDGET = 0.5
CALIBRATION_TOKENS, QUICK_CALIBRATION_TOKENS = 8192, 256
WIDE, WIDER = PeerConfig(dim=512), PeerConfig(dim=1024, causal=True)


@dataclass(frozen=True)
class Case:
    """One precision of a wide model against fp32.

    Attributes:
        what: The run and the model.
        graph: The graph that runs.
        precision: The precision.
        speed: How many times as fast as fp32, by the median of the rounds' ratios.
        size: Size of the graph as a fraction of the fp32 one.
        error: Largest difference of the logits from those of fp32, as a fraction of their scale.
        fp32_ms: What fp32 takes.
        spread: How noisy it was: the largest interquartile range.
        others_share: Share of the processors that others took.
        reason: Why there are no figures; None when there are.
    """

    what: str
    graph: str
    precision: str
    speed: float | None = None
    size: float | None = None
    error: float | None = None
    fp32_ms: float | None = None
    spread: float | None = None
    others_share: float | None = None
    reason: str | None = None


def time_wide_models(
    folder: Path, precisions: Sequence[str], seq_len: int, *, quick: bool, **how: Any
) -> Iterator[Case]:
    """Time forward runs with and without causality, and decode steps.

    Args:
        folder: Where bundles are put.
        precisions: Which of them are wanted.
        seq_len: Tokens of a forward run.
        quick: Take tiny models.
        how: Rounds and blocks, see :func:`time_alternating`.
    """
    for causal in (True, False):
        config = replace(TINY if quick else WIDE, causal=causal)
        what = f"{name_attention(config)}, d={config.dim}, {seq_len} tokens"
        wanted = [name for name in FORWARD_PRECISIONS if name in precisions]
        yield from _time(what, FORWARD, config, folder / what, wanted, _bind_forward(config, seq_len), **how)
    config = replace(TINY, causal=True) if quick else WIDER
    wanted = [name for name in DECODE_PRECISIONS if name in precisions]
    yield from _time(
        f"step, d={config.dim}, no budget", DECODE, config, folder / DECODE, wanted, _bind_step(config), **how
    )


def _bind_forward(config: PeerConfig, seq_len: int) -> Bind:
    tokens = make_tokens(seq_len, config.num_tokens)

    def bind(bundle: Bundle) -> tuple[Callable[[], object], np.ndarray]:
        session = open_session(bundle.get_graph_path())
        feeds = make_token_feeds(session, tokens)
        return bind_run(session, feeds), session.run(["logits"], feeds)[0]

    return bind


def _bind_step(config: PeerConfig) -> Bind:
    token = make_tokens(1, config.num_tokens)[0]

    def bind(bundle: Bundle) -> tuple[Callable[[], object], np.ndarray]:
        graph = bundle.get_graph(DECODE)
        decoder = OrtStateRunner(graph, bundle.get_graph_path(DECODE), threads=THREADS)
        decoder.load_state(State.zeros(graph, 1))
        logits = decoder.step(token)
        return lambda: decoder.step(token), logits

    return bind


def _time(
    what: str, graph: str, config: PeerConfig, folder: Path, precisions: Sequence[str], bind: Bind, **how: Any
) -> Iterator[Case]:
    """Time every precision beside fp32; a case that cannot be made or run has the reason."""
    if not precisions:
        return
    folder.mkdir(parents=True)
    torch.save(build_original(config).state_dict(), folder / "model.pt")
    arguments = {"group_size": config.group_size, "causal": config.causal}
    tokens = folder / "tokens.npy"
    count = QUICK_CALIBRATION_TOKENS if config.dim == TINY.dim else CALIBRATION_TOKENS
    np.save(tokens, make_tokens(count, config.num_tokens))
    options = QuantizeOptions(data=tokens, budget=INT4_BUDGET if graph == DECODE else None)
    bundles, reasons = make_variants(
        folder / "model.pt",
        folder,
        precisions,
        quantization=options,
        family="flash",
        config=arguments,
        assume_defaults=True,
    )
    fp32, expected = bind(bundles[FP32])
    size = measure_graph_bytes(bundles[FP32])[graph]
    for precision in precisions:
        if precision in reasons:
            yield Case(what, graph, precision, reason=reasons[precision])
            continue
        try:
            run, actual = bind(bundles[precision])
        except Exception as error:  # whatever onnxruntime raises, the other precisions still have something to tell
            yield Case(what, graph, precision, reason=describe_exception(error, folder))
            continue
        timings = time_alternating({FP32: fp32, precision: run}, **how)
        yield Case(
            what,
            graph,
            precision,
            timings.compute_ratio(FP32, precision),
            measure_graph_bytes(bundles[precision])[graph] / size,
            compute_error(actual, expected),
            timings.get_median_ms(FP32),
            timings.compute_spread(),
            timings.get_others_share(),
        )
