"""Run an engine with TensorRT's own API, and PyTorch for memory: nothing of flash-export is imported.

    python run_engine.py BUNDLE/engines/forward.json 72 101 108 108 111

takes one text as token ids, and prints the token that the model expects next. The graph may have a mask as its second
input. For another flavour, batch or dtype, the manifest beside the engine has everything that is read here.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

DEVICE = "cuda"


def load(manifest_path: Path) -> tuple[dict[str, Any], Any, Any]:
    """Return the manifest, the engine, and the runtime, which has to live as long as the engine."""
    manifest = json.loads(manifest_path.read_text())
    content = manifest_path.with_suffix(".engine").read_bytes()
    if hashlib.sha256(content).hexdigest() != manifest["engine_sha256"]:
        raise SystemExit("the engine is not the file that its manifest names: it is native code, so do not run it")
    trt = importlib.import_module(manifest["flavour"].replace("-", "_"))  # tensorrt or tensorrt_rtx
    if trt.__version__ != manifest["version"]:
        raise SystemExit(f"built by {manifest['flavour']} {manifest['version']}, here is {trt.__version__}")
    runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise SystemExit("the engine cannot be loaded here; TensorRT said why above")
    return manifest, engine, runtime


def choose_profile(manifest: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> int:
    """Return the first profile that has room: TensorRT takes no other shapes, and does not choose by itself."""
    for index, profile in enumerate(manifest["profiles"]):
        if all(
            low <= size <= high
            for name, shape in shapes.items()
            for low, size, high in zip(profile[name]["min"], shape, profile[name]["max"], strict=True)
        ):
            return index
    raise SystemExit(f"{shapes} fits no profile of the engine")


def run(manifest: dict[str, Any], engine: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Run once; a server keeps the context, the stream and the outputs for the next request."""
    context = engine.create_execution_context()
    stream = torch.cuda.Stream()
    profile = choose_profile(manifest, {name: tuple(tensor.shape) for name, tensor in inputs.items()})
    context.set_optimization_profile_async(profile, stream.cuda_stream)
    for name, tensor in inputs.items():
        context.set_input_shape(name, tuple(tensor.shape))
        context.set_tensor_address(name, tensor.data_ptr())
    outputs = {}
    for spec in manifest["outputs"]:
        shape = tuple(context.get_tensor_shape(spec["name"]))
        outputs[spec["name"]] = torch.empty(shape, dtype=getattr(torch, spec["dtype"]), device=DEVICE)
        context.set_tensor_address(spec["name"], outputs[spec["name"]].data_ptr())
    stream.wait_stream(torch.cuda.current_stream())  # the inputs were made there
    if not context.execute_async_v3(stream.cuda_stream):
        raise SystemExit("the run failed; TensorRT said why above")
    stream.synchronize()
    return outputs


def main() -> None:
    """Print the next token."""
    manifest, engine, _runtime = load(Path(sys.argv[1]))
    ids = torch.tensor([[int(word) for word in sys.argv[2:]]], device=DEVICE)
    inputs = {"input_ids": ids}
    if len(manifest["inputs"]) > 1:
        inputs["attention_mask"] = torch.ones_like(ids)  # 1 for text, 0 for padding, which is on the right
    print(int(run(manifest, engine, inputs)["logits"][0, -1].argmax()))


if __name__ == "__main__":
    main()
