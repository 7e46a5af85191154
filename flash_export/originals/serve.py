"""The process that runs an original model: requests on stdin, answers on stdout.

A message is a JSON object and an ``.npz`` archive, each with its size before it in eight bytes. The first request says
what to build; each further one holds the inputs of a run. An answer has ``error`` where something went wrong.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import platform
import struct
import sys
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch

from flash_export.originals.installed import Original, find_version

if TYPE_CHECKING:
    from collections.abc import Mapping

    Message = tuple[dict[str, Any], dict[str, np.ndarray]]

# By the name that the record of a family has for the library.
LIBRARIES = {name: name.replace("-", "_") for name in ("flash-pytorch", "gau-alpha", "mmpose", "clearvoice")}
# Before the sizes of a message's two parts: what else writes to the pipe is not taken for a size.
_MARK = b"flash-export 1\n"
_SIZES = struct.Struct("<QQ")


def write_message(stream: BinaryIO, values: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a message and flush it."""
    packed = io.BytesIO()
    np.savez(packed, **arrays)  # type: ignore[arg-type]
    parts = json.dumps(values).encode(), packed.getvalue()
    stream.write(_MARK + _SIZES.pack(*map(len, parts)))
    for part in parts:
        stream.write(part)
    stream.flush()


def read_message(stream: BinaryIO) -> Message:
    """Read a message.

    Raises:
        EOFError: The other side is gone.
        ValueError: It wrote something else.
    """
    mark = stream.read(len(_MARK))
    if not _MARK.startswith(mark):
        raise ValueError(f"it wrote {mark!r}")
    header = stream.read(_SIZES.size)
    if len(header) < _SIZES.size:
        raise EOFError
    sizes = _SIZES.unpack(header)
    parts = [stream.read(size) for size in sizes]
    if list(map(len, parts)) != list(sizes):
        raise EOFError
    with np.load(io.BytesIO(parts[1]), allow_pickle=False) as archive:
        return json.loads(parts[0]), {name: archive[name] for name in archive.files}


class Server:
    """A model in the precision that was asked for or, where its code does not allow that, in its own."""

    def __init__(self, request: Mapping[str, Any], example: Mapping[str, np.ndarray]) -> None:
        """Build the model, and run it once.

        Args:
            request: ``library``, ``config`` of the bundle, ``arguments`` that the user told of the library's model,
                ``weights`` (a file of ``torch.save``), ``precision`` and ``threads``.
            example: Inputs that it can take.
        """
        if request["threads"] is not None:
            torch.set_num_threads(request["threads"])
        library = importlib.import_module(f"flash_export.originals.{LIBRARIES[request['library']]}")
        tensors = torch.load(request["weights"], map_location="cpu", weights_only=True)
        self.original: Original = library.build(request["config"], request["arguments"], tensors)
        self.original.module.eval().requires_grad_(requires_grad=False)
        self.dtype = torch.float32
        if request["precision"] == "fp64":
            self.dtype = self._try_double(example)
        self.run(example)
        self.facts = {
            "package": f"{library.DISTRIBUTION} {find_version(library.DISTRIBUTION)}",
            "dtype": str(self.dtype).removeprefix("torch."),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "stand_ins": list(self.original.stand_ins),
        }

    def _try_double(self, example: Mapping[str, np.ndarray]) -> torch.dtype:
        """Convert the model, and back if its code does not compute in float64 throughout."""
        self.original.module.double()
        self.dtype = torch.float64
        try:
            if all(values.dtype == np.float64 for values in self.run(example)):
                return torch.float64
        except RuntimeError:  # of PyTorch, where dtypes do not go together
            pass
        self.original.module.float()
        return torch.float32

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the outputs in the order of the interface."""
        tensors = {name: torch.from_numpy(values) for name, values in inputs.items()}
        tensors = {name: x.to(self.dtype) if x.is_floating_point() else x for name, x in tensors.items()}
        with torch.inference_mode():
            return [values.numpy() for values in self.original.call(tensors)]


def main() -> None:
    """Answer until nobody asks any more."""
    # What a library prints must not come between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    requests, server = sys.stdin.buffer, None
    while True:
        try:
            values, arrays = read_message(requests)
        except EOFError:
            return
        try:
            if server is None:
                server = Server(values, arrays)
                write_message(answers, server.facts, {})
            else:
                outputs = server.run(arrays)
                write_message(answers, {}, {str(index): output for index, output in enumerate(outputs)})
        except Exception as error:  # whatever a library raises is answered
            missing = error.name if isinstance(error, ModuleNotFoundError) else None
            text = " ".join(str(error).split())
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            write_message(answers, {"error": f"{kind}{text}", "missing": missing}, {})
