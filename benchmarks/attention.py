"""Attention of a Transformer written out against ONNX's one operator for it, which opset 23 brought.

    python benchmarks/attention.py [--causal | --non-causal] [--lengths 512,2048] [--json FILE] [--quick]

A ratio is the time written out to the time with the operator: above 1, the operator is faster. One sequence, float32,
two threads, the graphs by turns at every run. Before anything is timed, both have to agree to 1e-5 of the scale.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from flash_export import ExportOptions, export_onnx
from flash_export.config import ATTENTION_OPSET, DEFAULT_OPSET, FORWARD
from flash_export.models.transformer import TransformerConfig, TransformerModel
from harness.report import describe, make_parser, print_rows, write_json
from harness.sessions import THREADS, bind_tokens, check_agreement, make_token_feeds, make_tokens, open_session
from harness.timing import Effort, Timings, time_alternating

LENGTHS, QUICK_LENGTHS = (512, 2048), (40,)
SIZES = TransformerConfig(vocab_size=1000, dim=512, depth=4, num_heads=8, ff_dim=2048, positions="rotary")
QUICK_SIZES = TransformerConfig(vocab_size=50, dim=32, depth=1, num_heads=2, ff_dim=64, positions="rotary")
EFFORT, QUICK_EFFORT = Effort(rounds=21, block_ms=1.0), Effort(rounds=2, block_ms=1.0)  # blocks of one run
TOLERANCE = 1e-5  # of the output's scale: fp32 rounding in another order
WRITTEN_OUT, OPERATOR = "written out", "operator"
OPSETS = {WRITTEN_OUT: DEFAULT_OPSET, OPERATOR: ATTENTION_OPSET}


@dataclass(frozen=True)
class AttentionTiming:
    """Both graphs at one length."""

    attention: str
    seq_len: int
    timings: Timings

    @property
    def ratio(self) -> float:
        """How many times longer it takes written out."""
        return self.timings.compute_ratio(WRITTEN_OUT, OPERATOR)

    @property
    def written_out_ms(self) -> float:
        """The median of a run written out."""
        return self.timings.medians_ms[WRITTEN_OUT]

    @property
    def operator_ms(self) -> float:
        """The median of a run with the operator."""
        return self.timings.medians_ms[OPERATOR]


def export_both(config: TransformerConfig, folder: Path) -> dict[str, Path]:
    """Export a model with random weights in both forms; a non-causal one takes a mask."""
    torch.manual_seed(0)
    TransformerModel(config).eval().save_pretrained(folder / "model")
    exported = {}
    for name, opset in OPSETS.items():
        options = ExportOptions(opset=opset, graphs=(FORWARD,))
        exported[name] = export_onnx(folder / "model", folder / name, options=options).get_graph_path()
    return exported


def time_both(graphs: dict[str, Path], config: TransformerConfig, seq_len: int, effort: Effort) -> AttentionTiming:
    """Compare both graphs, then time them, in sessions like those of our runner."""
    attention = "causal" if config.causal else "non-causal"
    print(f"{attention}, {seq_len} tokens ...", file=sys.stderr)
    sessions = {name: open_session(path, enable_mem_pattern=False) for name, path in graphs.items()}
    tokens = make_tokens(seq_len, config.vocab_size)
    logits = {name: one.run(None, make_token_feeds(one, tokens))[0] for name, one in sessions.items()}
    check_agreement("the operator", logits[OPERATOR], logits[WRITTEN_OUT], "the graph without it", TOLERANCE)
    candidates = {name: bind_tokens(session, tokens) for name, session in sessions.items()}
    return AttentionTiming(attention, seq_len, time_alternating(candidates, effort))


def main(arguments: list[str] | None = None) -> None:
    """Export, time, print, write."""
    options = make_parser(__doc__, models=True, lengths=True).parse_args(arguments)
    lengths = options.lengths or (QUICK_LENGTHS if options.quick else LENGTHS)
    sizes, effort = (QUICK_SIZES, QUICK_EFFORT) if options.quick else (SIZES, EFFORT)
    torch.set_num_threads(THREADS)
    timed: list[AttentionTiming] = []
    kinds = (False, True) if options.causal is None else (options.causal,)
    for causal in kinds:
        config = TransformerConfig.from_dict({**sizes.to_dict(), "causal": causal})
        with tempfile.TemporaryDirectory() as name:
            graphs = export_both(config, Path(name))
            timed += [time_both(graphs, config, seq_len, effort) for seq_len in lengths]
    columns = {"attention": "attention", "tokens": "seq_len", "written out, ms": "written_out_ms:.1f"}
    columns |= {"operator, ms": "operator_ms:.1f", "ratio": "ratio:.2f", "spread": "timings.spread:.0%"}
    columns |= {"others": "timings.others:.0%"}
    print_rows(f"Attention: d={sizes.dim}, {sizes.depth} layers, {sizes.num_heads} heads", timed, columns)
    measured = [describe(one, "ratio") | {"median_ms": one.timings.medians_ms} for one in timed]
    write_json(options.json, {"model": asdict(sizes), "attentions": measured})


if __name__ == "__main__":
    main()
