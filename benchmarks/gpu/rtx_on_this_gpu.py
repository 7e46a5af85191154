"""Whether an engine of TensorRT-RTX that was built without a GPU loads and runs on the card at hand.

    PYTHONPATH=benchmarks python -m gpu.rtx_on_this_gpu [--json FILE]

``flash-export`` refuses an engine whose targets do not name the card's compute capability. Here that is left out: an
engine of the bundled causal model is built for the default targets, then once more for the GPU at hand, and each is
given to TensorRT as it is. Each way is tried in a process of its own, which native code may end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flash_export import BuildOptions, build_engine, export_onnx
from flash_export.config import TENSORRT_RTX
from flash_export.errors import BackendUnavailableError, EngineBuildError, describe_reason
from flash_export.models.token_model import LOGITS, TOKENS
from flash_export.runtime.cuda_device import CudaDevice
from flash_export.runtime.trt import TrtRunner
from flash_export.runtime.trt_api import get_device_capability, import_flavour, parse_network
from flash_export.runtime.trt_features import Features
from flash_export.runtime.trt_log import collect_errors, get_log
from flash_export.runtime.trt_session import EngineOptions, LoadedEngine
from harness.models import ASSETS

if TYPE_CHECKING:
    from flash_export import Bundle
    from flash_export.bundle.manifest import EngineManifest

AHEAD, CURRENT = "built for the default targets", "built for this GPU"
WAYS = AHEAD, CURRENT
SEQ_LEN, PROFILE = 300, "1x1:1x512:1x1024"
TIMEOUT_S = 120.0
MODEL = ASSETS / "byte-causal"


def answer(way: str) -> dict[str, Any]:
    """Build, load and run in this process, and say how far that came."""
    steps: dict[str, Any] = {"way": way, "runs": False}
    with tempfile.TemporaryDirectory() as folder:
        try:
            steps["capability"] = get_device_capability() if torch.cuda.is_available() else None
            bundle = export_onnx(MODEL, Path(folder) / "bundle")
            options = BuildOptions(flavour=TENSORRT_RTX.name, profiles=(PROFILE,), cache=False)
            engine = build_engine(bundle, options=options).engine
            path = bundle.get_engine_path(engine)
            if way == CURRENT:
                engine, path = replace(engine, targets=(CURRENT,)), _build_here(bundle, engine, Path(folder))
            steps["targets"] = list(engine.targets)
            content = path.read_bytes()
            steps["built_bytes"] = len(content)
            trt = import_flavour(TENSORRT_RTX)
            steps["refusal"] = Features(trt).describe_refusal(trt.Runtime(get_log(trt)), content)
            steps["deserialized"] = trt.Runtime(get_log(trt)).deserialize_cuda_engine(content) is not None
            steps["error"] = _run(bundle, engine, path)
            steps["runs"] = True
        except Exception as error:  # whatever it is, it is the answer
            steps["reason"] = f"{type(error).__name__}: {describe_reason(error)}"
    return steps


def ask(way: str) -> dict[str, Any]:
    """Ask in a process of its own."""
    command = [sys.executable, "-m", "gpu.rtx_on_this_gpu", "--way", way]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"way": way, "runs": False, "reason": f"it took more than {TIMEOUT_S:.0f} s"}
    try:
        answered: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        said = describe_reason(RuntimeError(done.stderr[-300:])) if done.stderr else "nothing was said"
        return {"way": way, "runs": False, "reason": f"its process ended with {done.returncode}: {said}"}
    return answered


def describe_answer(found: dict[str, Any]) -> str:
    """Return an answer in one line."""
    if found["runs"]:
        return f"yes: targets {', '.join(found['targets'])}, error {found['error']:.1e}"
    told = [
        f"{name} {found[name]}" for name in ("capability", "refusal", "deserialized") if found.get(name) is not None
    ]
    return "; ".join([f"no: {found.get('reason', 'no reason')}", *told])


def main(arguments: list[str] | None = None) -> None:
    """Ask, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the answers there")
    parser.add_argument("--way", choices=WAYS, help="try this alone, in this process")
    options = parser.parse_args(arguments)
    if options.way:
        print(json.dumps(answer(options.way)))
        return
    answers = [ask(way) for way in WAYS]
    for found in answers:
        print(f"{found['way']}: {describe_answer(found)}")
    if options.json is not None:
        options.json.write_text(json.dumps(answers, indent=2) + "\n")


def _build_here(bundle: Bundle, engine: EngineManifest, folder: Path) -> Path:
    """Build the same engine for the GPU at hand, which flash-export does not, and return its file."""
    parsed = parse_network(TENSORRT_RTX, bundle.get_graph_path())
    config = parsed.builder.create_builder_config()
    Features(parsed.trt).set_targets(config, [parsed.trt.ComputeCapability.CURRENT])
    profile = parsed.builder.create_optimization_profile()
    for name, shapes in engine.profiles[0].items():
        profile.set_shape(name, shapes.min, shapes.opt, shapes.max)
    config.add_optimization_profile(profile)
    with collect_errors() as errors:
        built = parsed.builder.build_serialized_network(parsed.network, config)
    if built is None:
        raise EngineBuildError(errors[-1] if errors else "TensorRT-RTX built nothing and gave no reason")
    path = folder / "current.engine"
    path.write_bytes(bytes(built))
    return path


def _run(bundle: Bundle, engine: EngineManifest, path: Path) -> float:
    """Run the engine; return the largest difference from the model, as a fraction of its largest output."""
    ids = torch.randint(256, (1, SEQ_LEN), generator=torch.Generator().manual_seed(0))
    expected = bundle.load_model()(ids).detach()
    if not torch.cuda.is_available():
        raise BackendUnavailableError("no CUDA device here, so no engine can run")
    with TrtRunner(
        bundle.get_graph(), LoadedEngine(engine, path, CudaDevice(), EngineOptions(keep_kernels=False))
    ) as runner:
        found = torch.from_numpy(runner.run({TOKENS: ids.numpy()})[LOGITS])
    return float((found - expected).abs().max() / expected.abs().max())


if __name__ == "__main__":
    main()
