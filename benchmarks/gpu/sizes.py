"""What is measured: the model, its lengths, and how thoroughly."""

from __future__ import annotations

from dataclasses import dataclass

from flash_export.models.flash import FlashConfig

PRECISIONS = ("bf16", "fp16", "fp32")


@dataclass(frozen=True)
class Sizes:
    """Sizes of a benchmark.

    Attributes:
        config: The FLASH model, causal, so that it can decode.
        heads: Of the Transformer that is as large.
        seq_lens: Lengths of the forward pass, one sequence.
        contexts: Tokens that were read before a step of decoding.
        matrix_size: Rows and columns of the square matrices whose product is the card's rate.
        copied_bytes: Size of the block whose copying is the card's bandwidth.
        block_s: How long one thing is timed, as far as ``max_runs`` allow.
        max_runs: Most runs of one thing.
        compiler: Backend of ``torch.compile``.
    """

    config: FlashConfig
    heads: int
    seq_lens: tuple[int, ...]
    contexts: tuple[int, ...]
    matrix_size: int
    copied_bytes: int
    block_s: float
    max_runs: int
    compiler: str


FULL = Sizes(
    config=FlashConfig(1024, 768, 24, 1536, chunk_size=256, qk_dim=128, causal=True),
    heads=12,
    seq_lens=(512, 1024, 2048, 4096, 8192, 16384, 32768, 65536),
    contexts=(512, 16384, 65536),
    matrix_size=8192,
    copied_bytes=1 << 30,
    block_s=0.4,
    max_runs=200,
    compiler="inductor",
)
# Shows that everything runs, no more.
QUICK = Sizes(
    config=FlashConfig(64, 32, 2, 64, chunk_size=16, qk_dim=16, causal=True),
    heads=2,
    seq_lens=(24, 48),
    contexts=(24, 40),
    matrix_size=64,
    copied_bytes=1 << 16,
    block_s=0.0,
    max_runs=3,
    compiler="aot_eager",
)
