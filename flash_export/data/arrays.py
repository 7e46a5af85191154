"""Arrays from ``.npy`` and ``.npz`` files that may be damaged or hostile: nothing is unpickled or unpacked unseen."""

from __future__ import annotations

import io
import lzma
import math
import zipfile
import zlib

import numpy as np
from numpy.lib import format as npy

MAX_ARRAY_BYTES = 1 << 30
MAX_ARRAYS = 256
_ZIP, _NPY = b"PK\x03\x04", b"\x93NUMPY"
_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, RuntimeError, EOFError, OSError)
# What .zip (and so .npz), .gz, .npy and .xz start with.
ARCHIVES = (_ZIP, b"\x1f\x8b", _NPY, b"\xfd7zXZ")


def parse_arrays(content: bytes) -> dict[str, np.ndarray]:
    """Return the arrays of a file by name; the one of an ``.npy`` file is called ``array``.

    Raises:
        ValueError: It is neither, is damaged, holds Python objects, or says that it is larger than can be.
    """
    if content.startswith(_NPY):
        return {"array": _parse_array(content)}
    if not content.startswith(_ZIP):
        raise ValueError("it is no .npy or .npz file")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            total = sum(member.file_size for member in members)
            if len(members) > MAX_ARRAYS or total > MAX_ARRAY_BYTES:
                raise ValueError(f"it has {len(members)} arrays of {total:,} bytes, more than can be used")
            return {member.filename.removesuffix(".npy"): _parse_array(archive.read(member)) for member in members}
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        NotImplementedError,
        RuntimeError,
        EOFError,
        OSError,
    ) as error:
        raise ValueError(f"the archive is damaged: {error}") from error


def _parse_array(content: bytes) -> np.ndarray:
    """Parse an array after checking that it is as large as its header says: numpy would ask for the memory first."""
    stream = io.BytesIO(content)
    try:
        version = npy.read_magic(stream)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read_header(stream)
    except Exception as error:  # a damaged header makes numpy's parser fail in many ways
        raise ValueError(f"the header of an array is damaged: {' '.join(str(error).split())}") from error
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never loaded because they can run code")
    size, expected = len(content) - stream.tell(), math.prod(shape) * dtype.itemsize
    if size != expected:
        raise ValueError(f"an array of shape {shape} and {dtype} needs {expected:,} bytes, the file has {size:,}")
    return np.load(io.BytesIO(content), allow_pickle=False)
