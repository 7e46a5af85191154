"""Running the library that a bundle's weights come from, in a process of its own, behind the protocol of a runner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from flash_export.data.sources import RandomSource
from flash_export.errors import BackendUnavailableError, CheckpointError, ConfigError
from flash_export.models.checkpoint import read_foreign_weights
from flash_export.originals.serve import LIBRARIES, read_message, write_message
from flash_export.printable import format_path
from flash_export.runtime.inputs import check_content
from flash_export.temporary import create_temporary_folder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    import numpy as np
    from torch import Tensor
    from typing_extensions import Self

    from flash_export.bundle.bundle import Bundle

OWN_FORMAT = "flash-export"
PACKAGE_FOLDER = str(Path(__file__).resolve().parent.parent)
# This package as an empty one with a path: what it depends on need not be there, and its own ``__init__`` is left out.
BOOTSTRAP = (
    "import sys, types; package = types.ModuleType('flash_export'); package.__path__ = [sys.argv[1]]; "
    "sys.modules['flash_export'] = package; from flash_export.originals.serve import main; main()"
)


@dataclass(frozen=True)
class OriginalCheckpoint:
    """The checkpoint that a bundle was made of.

    Attributes:
        bundle: The bundle.
        library: Library that the weights come from.
        tensors: The model's, by that library's names.
        python: Interpreter that has the library.
    """

    bundle: Bundle
    library: str
    tensors: dict[str, Tensor]
    python: str

    @classmethod
    def read(cls, bundle: Bundle, checkpoint: Path, python: Path | None = None) -> OriginalCheckpoint:
        """Read the weights, and check that the bundle was made of them.

        Args:
            bundle: The bundle.
            checkpoint: What was given to ``flash-export onnx``.
            python: Interpreter that has the library; None: the one that runs this.

        Raises:
            ConfigError: The bundle was made of no library's checkpoint, or there is no such interpreter.
            CheckpointError: The checkpoint cannot be read, or is another one.
        """
        source = bundle.manifest.checkpoint
        library = source["format"]
        if library == OWN_FORMAT:
            raise ConfigError(
                f"{format_path(bundle.path)} was exported from a checkpoint of flash-export itself, "
                f"{source['source']}, which no other library reads; validate it without --against original"
            )
        if library not in LIBRARIES:
            raise ConfigError(
                f"{format_path(bundle.path)} was exported from weights of {library!r}; this version can run "
                f"{', '.join(LIBRARIES)}"
            )
        if python is not None and not (python.is_file() and os.access(python, os.X_OK)):
            raise ConfigError(f"{format_path(python)} cannot be run; give the path of a Python interpreter")
        family = bundle.read_config()["model_type"]
        tensors = read_foreign_weights(checkpoint, family, bundle.manifest.imported.weights_key, source)
        return cls(bundle, library, tensors, sys.executable if python is None else os.path.abspath(python))


class OriginalRunner:
    """Runs the original model."""

    def __init__(self, checkpoint: OriginalCheckpoint, *, precision: str = "fp32", threads: int | None = None) -> None:
        """Take what is needed to start it.

        Args:
            checkpoint: What it is built of.
            precision: ``fp32``, or ``fp64`` where the library's code computes in it.
            threads: Threads of one operator; None: what PyTorch chooses.
        """
        self._checkpoint, self._precision, self._threads = checkpoint, precision, threads
        self._interface = checkpoint.bundle.manifest.interface
        self._stack = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._facts: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """Name in reports."""
        return "original"

    @property
    def description(self) -> str:
        """Which code runs, such as ``gau-alpha 0.0.3 in float64, with Python 3.11.7 and torch 2.13.0``."""
        facts = self._facts
        stand_ins = f", without {', '.join(facts['stand_ins'])}" if facts["stand_ins"] else ""
        versions = f"Python {facts['python']} and torch {facts['torch']}"
        return f"{facts['package']} in {facts['dtype']}, with {versions}{stand_ins}"

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs of the model's interface for its inputs and, optionally, its mask.

        Raises:
            InputError: An id is not in the vocabulary.
            CheckpointError: The library's code fails on them.
            BackendUnavailableError: The process has ended.
        """
        for spec in self._interface.inputs:
            if spec.content is not None:
                check_content(spec.name, inputs[spec.name], spec.content)
        _, arrays = self._ask({}, inputs)
        return {spec.name: arrays[str(index)] for index, spec in enumerate(self._interface.outputs)}

    def __enter__(self) -> Self:
        """Start the process and build the model.

        Raises:
            ConfigError: It cannot be started, or is no Python interpreter.
            BackendUnavailableError: The library is not installed there, or the process ends.
            CheckpointError: The weights do not fit the library as it is installed.
        """
        import torch

        folder = self._stack.enter_context(create_temporary_folder())
        weights = folder / "weights.pt"
        torch.save(dict(self._checkpoint.tensors), weights)
        self._messages = self._stack.enter_context(tempfile.TemporaryFile())
        command = [self._checkpoint.python, "-I", "-c", BOOTSTRAP, PACKAGE_FOLDER]
        try:
            self._process = self._start(command)
            example = RandomSource(self._interface).draw(1, self._interface.fixed_len or self._interface.min_len)
            request = {
                "library": self._checkpoint.library,
                "config": self._checkpoint.bundle.read_config(),
                "arguments": self._checkpoint.bundle.manifest.imported.arguments,
                "weights": str(weights),
                "precision": self._precision,
                "threads": self._threads,
            }
            self._facts, _ = self._ask(request, example.to_model_inputs(masked=False))
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self._stop()

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._messages, cwd=os.sep
            )
        except OSError as error:
            raise ConfigError(
                f"{command[0]} does not start ({error.strerror}); give the path of a Python interpreter"
            ) from error

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
        self._stack.close()

    def _ask(
        self, values: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        process, library, python = self._process, self._checkpoint.library, self._checkpoint.python
        assert process is not None  # see __enter__
        requests, answers = cast("BinaryIO", process.stdin), cast("BinaryIO", process.stdout)
        try:
            with suppress(BrokenPipeError):  # what the process wrote before it ended says more
                write_message(requests, values, arrays)
            answer, outputs = read_message(answers)
        except ValueError as error:
            raise ConfigError(
                f"{python} is no Python interpreter ({error}); name one with --original-python"
            ) from error
        except (EOFError, OSError) as error:
            code = process.wait()
            self._messages.seek(0)
            lines = self._messages.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
            if "No module named" in lines[-1]:
                raise BackendUnavailableError(
                    self._describe_missing(lines[-1].rpartition(" ")[2].strip("'"))
                ) from error
            cure = "see whether it is a Python with torch"
            if code == -signal.SIGKILL:
                cure = "run it where there is more memory"
            raise BackendUnavailableError(
                f"the process of {python} that runs {library} ended with exit code {code} ({lines[-1]}); {cure}, or "
                "name another interpreter with --original-python"
            ) from error
        if "error" not in answer:
            return answer, outputs
        if answer["missing"]:
            raise BackendUnavailableError(self._describe_missing(answer["missing"]))
        raise CheckpointError(f"{library} fails on the original checkpoint: {answer['error']}")

    def _describe_missing(self, module: str) -> str:
        python = format_path(Path(self._checkpoint.python))
        return (
            f"{python} has no module {module!r}, which {self._checkpoint.library} needs; install it there with "
            f"'{python} -m pip install {self._checkpoint.library}', or name an interpreter that has it with "
            "--original-python"
        )
