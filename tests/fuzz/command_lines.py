"""Command lines with values that nobody should give."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

NUMBERS = ("0", "-1", "1", "3", "2147483648", "9" * 20, "1.5", "nan", "inf", "-inf", "1e400", "", "x", "1,2")
LISTS = ("", ",", "1,", "0", "-1", "9,9", "1,17", "9" * 20, "1,x", "1" * 5000)
NAMES = (
    *("", "x", "../../outside/secret", "forward", "\n", "\x1b[2J", "[/red]x", "é", "\udcff", "x" * 5000, "a/b", "-"),
    ".",
)
PATHS = (
    *("none", "bundle", "../outside/secret", "bundle/manifest.json", "/dev/null", ".", "", "x" * 300, "\udcff"),
    "[/red]",
)
PROFILES = ("1x1:1x5:4x96", "", ":", "1:1:1", "0x0:0x0:0x0", "4x4:1x1:1x1", "1x1:1x1:99x999999", "x" * 5000)
SETTINGS = ("causal=1", "=", "x=1", "depth=1e9", f"chunk_size={'9' * 30}", "dim=NaN", "vocab_size=[[[]]]", "causal")

# What follows a command, and the values of its options.
COMMANDS: dict[str, dict[str, tuple[str, ...]]] = {
    "validate bundle --backend ort-cpu --no-latency --threads 1 --seq-lens 1": {
        "--seq-lens": LISTS,
        "--batch": LISTS,
        "--atol": NUMBERS,
        "--rtol": NUMBERS,
        "--threads": ("0", "-1", "x", "1.5"),
        "--backend": NAMES,
        "--onnx": PATHS,
        "--report": ("none", "bundle/manifest.json", "bundle/manifest.json/x", ""),
    },
    "validate bundle --backend ort-cpu --no-latency --threads 1": {"--plan": PATHS, "--max-seq-len": NUMBERS},
    "bisect bundle --threads 1": {
        "--seq-len": NUMBERS,
        "--batch": NUMBERS,
        "--backend": NAMES,
        "--against": PATHS,
        "--threads": ("0", "-1", "x"),
    },
    "profile-ranges bundle --threads 1 --windows 1 --lengths 9": {
        "--lengths": LISTS,
        "--windows": ("0", "-1", "x", "1.5"),
        "--seconds": NUMBERS,
        "--threads": ("0", "-1", "x"),
    },
    "compare bundle --no-latency --windows 1 --threads 1": {
        "--reference": PATHS,
        "--seq-len": LISTS,
        "--batch": NUMBERS,
        "--windows": ("0", "-1", "x"),
        "--threads": ("0", "-1", "x"),
    },
    "generate bundle --prompt abc --max-tokens 2 --threads 1": {
        "--prompt": NAMES,
        "--tokens": LISTS,
        "--max-tokens": ("-1", "0", "1", "x", "1.5"),
        "--temperature": NUMBERS,
        "--top-k": NUMBERS,
        "--top-p": NUMBERS,
        "--repetition-penalty": NUMBERS,
        "--stop": LISTS,
        "--seed": NUMBERS,
        "--backend": NAMES,
        "--load-state": PATHS,
        "--prompt-file": PATHS[:-3],
        "--threads": ("0", "-1", "x"),
    },
    "onnx none -o out": {
        "--max-seq-len": NUMBERS,
        "--max-batch": NUMBERS,
        "--batch": NUMBERS,
        "--graphs": NAMES,
        "--opset": NUMBERS,
        "--set": SETTINGS,
        "--config": PATHS,
        "--family": NAMES,
    },
    "onnx checkpoint -o bundle": {"--set": SETTINGS, "--family": NAMES},
    "quantize bundle -o bundle": {
        "--scheme": NAMES,
        "--data": PATHS,
        "--keep": NAMES,
        "--budget": NUMBERS,
        "--block-size": NUMBERS,
        "--threads": NUMBERS,
    },
    "trt none": {"--graph": NAMES},
    "trt bundle --graph none": {"--name": NAMES, "--flavour": NAMES, "--workspace-mib": NUMBERS},
    "trt bundle --flavour tensorrt-rtx --compute-capability 9.9": {"--profile": PROFILES, "--graph": NAMES},
    "inspect": {"": PATHS},
    "report": {"": PATHS},
    "report bundle/reports/report.json": {"": PATHS},
    "doctor": {"": NAMES},
}


def draw_command_line(rng: Random) -> list[str]:
    """Return a command with one or two options that have odd values."""
    command = rng.choice(list(COMMANDS))
    options = COMMANDS[command]
    line = command.split()
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(list(options))
        line += [*([name] if name else []), rng.choice(options[name])]
    return line
