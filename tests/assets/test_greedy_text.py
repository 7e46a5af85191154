"""A long greedy text of the bundled causal model is the eager model's, token for token."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import flash_export
from flash_export.exporters.export import export_onnx
from flash_export.generation.generate import Generator
from flash_export.generation.sampling import SamplingOptions

pytest.importorskip("onnxruntime")

CHECKPOINT = Path(flash_export.__file__).parent / "assets" / "byte-causal"
NUM_TOKENS = 1024


@pytest.mark.slow
def test_greedy_text_of_1024_tokens_is_the_eager_model_s(tmp_path: Path) -> None:
    """By induction: given the text so far, each next token is the one that the eager model holds most likely."""
    bundle = export_onnx(CHECKPOINT, tmp_path / "bundle")
    prompts = [np.frombuffer(text, np.uint8).astype(np.int64) for text in (b"def main(", b"import re\n" * 26, b"c")]
    with Generator.open(bundle) as generator:
        written = generator.generate(prompts, SamplingOptions(max_tokens=NUM_TOKENS)).tokens
    model = bundle.load_model()
    for prompt, tokens in zip(prompts, written, strict=True):
        assert tokens.size == NUM_TOKENS
        with torch.inference_mode():
            logits = model(torch.from_numpy(np.concatenate((prompt, tokens)))[None])[0]
        choices = logits[prompt.size - 1 : -1].argmax(dim=-1).numpy()
        np.testing.assert_array_equal(choices, tokens)
