"""What failed, kept in a folder so that it can be looked at again: inputs, what was expected, what was found."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from flash_export.data.arrays import parse_arrays
from flash_export.data.batch import Batch
from flash_export.errors import InputError
from flash_export.files import write_file
from flash_export.reading import read_bytes
from flash_export.runtime.inputs import check_inputs
from flash_export.strict_json import format_json

if TYPE_CHECKING:
    import logging
    from collections.abc import Mapping
    from pathlib import Path

    from flash_export.bundle.manifest import GraphSpec
    from flash_export.data.batch import Outputs
    from flash_export.interface import Interface
    from flash_export.validators.results import Row

INPUTS_FILE, EXPECTED_FILE, FOUND_FILE, ROW_FILE = "inputs.npz", "expected.npz", "found.npz", "check.json"
LENGTHS = "lengths"
MAX_BYTES = 1 << 30
# More than this tells nothing new, and a graph that is wrong everywhere would fill the disk.
MAX_FAILURES = 20
_UNSAFE = re.compile(r"[^\w.-]+")


@dataclass(frozen=True)
class FailureFolder:
    """A folder with a folder for each check that failed, the first twenty of them.

    Attributes:
        path: The folder.
        logger: Is told what is not kept.
    """

    path: Path
    logger: logging.Logger

    def keep(self, row: Row, inputs: Batch, expected: Outputs, found: Outputs) -> None:
        """Keep one check: ``inputs.npz`` and, where they are no larger than 1 GiB, ``expected.npz`` and ``found.npz``.

        Args:
            row: What came out.
            inputs: Inputs, with the true length of each row as ``lengths``.
            expected: Outputs of the reference, or of the first of two runs that must agree.
            found: Outputs of the backend, or of the second run.

        Raises:
            BundleError: A file cannot be written.
        """
        folder = self.path / _UNSAFE.sub("_", f"{row.backend} {row.name}")
        if self.path.is_dir() and sum(1 for _ in self.path.iterdir()) >= MAX_FAILURES and not folder.exists():
            self.logger.warning("%s has %d failures, %s is not kept", self.path, MAX_FAILURES, folder.name)
            return
        write_file(folder / INPUTS_FILE, _pack({**inputs.arrays, LENGTHS: inputs.lengths}))
        for name, outputs in ((EXPECTED_FILE, expected), (FOUND_FILE, found)):
            if sum(values.nbytes for values in outputs.values()) <= MAX_BYTES:
                write_file(folder / name, _pack(outputs))
            else:
                self.logger.warning("%s is larger than %d bytes and is not kept", folder / name, MAX_BYTES)
        write_file(folder / ROW_FILE, format_json(row).encode())


def read_inputs(path: Path, graph: GraphSpec, interface: Interface) -> Batch:
    """Read the ``inputs.npz`` of a check.

    Args:
        path: The file.
        graph: Contract of the graph that is to read them.
        interface: Interface of the model.

    Raises:
        InputError: It cannot be read, or does not fit.
    """
    cure = f"give the {INPUTS_FILE} of a check that 'flash-export validate --save-failures' kept"
    try:
        arrays = parse_arrays(read_bytes(path, InputError, cure, max_bytes=MAX_BYTES))
        lengths = arrays.pop(LENGTHS, np.zeros(0))
        check_inputs(replace(graph, inputs=interface.inputs), arrays)
    except (ValueError, InputError) as error:
        raise InputError(f"{path} cannot be used: {error}; {cure}") from error
    batch = Batch.full(interface, arrays)
    if lengths.shape != (batch.size,) or lengths.dtype.kind not in "iu":
        raise InputError(f"{path} has {LENGTHS} of shape {lengths.shape}, wanted a whole number for each row; {cure}")
    if lengths.min() < 1 or lengths.max() > batch.seq_len:
        raise InputError(
            f"{path} has {LENGTHS} {lengths.min()} to {lengths.max()}, wanted 1 to {batch.seq_len}; {cure}"
        )
    return Batch(interface, arrays, lengths.astype(np.int64), batch.seq_len)


def _pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()
