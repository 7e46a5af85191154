"""Arrays from and to Triton's Python backend; imported in the server alone.

They go by DLPack. The backend of Triton 24.10 was built for numpy 1 and reads the size of an item from the wrong place
in numpy 2, so that ``as_numpy`` gives the first item everywhere, and a tensor made of an array is empty.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


def read_tensor(request: Any, name: str) -> np.ndarray:
    """Return a copy of an input: its memory is the server's."""
    return np.array(np.from_dlpack(pb_utils.get_input_tensor_by_name(request, name)))


def make_tensor(name: str, values: np.ndarray) -> Any:
    """Return an output."""
    return pb_utils.Tensor.from_dlpack(name, np.ascontiguousarray(values))
