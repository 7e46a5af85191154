"""Compare an exported graph with flash-pytorch's own module, using nothing of flash-export.

    python examples/check_against_flash_pytorch.py model.pt arguments.json bundle/model.onnx

``model.pt`` is a state dict saved by flash-pytorch, ``arguments.json`` the constructor arguments of its
``FLASHTransformer``. Needs torch, flash-pytorch and onnxruntime. Exit code 1 if any length differs by more than
``--tolerance`` of the output's scale.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from flash_pytorch import FLASHTransformer


def list_lengths(group_size: int, longest: int) -> list[int]:
    """Return the lengths of flash-export's default plan: edges of groups, a prime, powers of two."""
    edges = (1, 2, group_size - 1, group_size, group_size + 1, 2 * group_size, 389, 4 * group_size + 3)
    powers = (2**exponent for exponent in range(longest.bit_length()))
    return sorted({length for length in (*edges, *powers) if 1 <= length <= longest})


def main() -> int:
    """Run the comparison and print one line a length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("arguments", type=Path)
    parser.add_argument("graph", type=Path)
    parser.add_argument("--max-seq-len", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--tolerance", type=float, default=1e-4)
    options = parser.parse_args()

    arguments = json.loads(options.arguments.read_text())
    model = FLASHTransformer(**arguments).eval()
    model.load_state_dict(torch.load(options.weights, weights_only=True))
    session = onnxruntime.InferenceSession(options.graph, providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    random = np.random.default_rng(0)
    worst = 0.0
    for seq_len in list_lengths(arguments.get("group_size", 256), options.max_seq_len):
        input_ids = random.integers(0, arguments["num_tokens"], (options.batch, seq_len))
        feeds = {"input_ids": input_ids, "attention_mask": np.ones_like(input_ids)}
        actual = session.run(["logits"], {name: feeds[name] for name in names})[0]
        with torch.inference_mode():
            expected = model(torch.from_numpy(input_ids)).numpy()
        error = float(np.abs(actual - expected).max() / np.abs(expected).max())
        worst = max(worst, error)
        print(f"length {seq_len:>6}  error {error:.2e} of the output's scale")
    verdict = "same" if worst <= options.tolerance else "DIFFERENT"
    print(f"largest error {worst:.2e}, tolerance {options.tolerance:.0e}: {verdict}")
    return int(not worst <= options.tolerance)


if __name__ == "__main__":
    sys.exit(main())
