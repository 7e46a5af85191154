"""``fp8``: weights and activations in float8_e4m3fn, the scales of the latter known beforehand."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from flash_export.exporters.quantization.numbers import NumberFormat
from flash_export.exporters.quantization.recipe import Scheme

FP8 = NumberFormat(np.dtype(ml_dtypes.float8_e4m3fn), -448.0, 448.0)
SCHEME: Scheme = Scheme(
    "fp8",
    # Nothing is smoothed: steps are as fine for small numbers as for large ones.
    list_roundings=lambda sample, _: (sample.round_factors(SCHEME, FP8),),
    rewrite=lambda place, recipe: place.round_factors(recipe, FP8),
    opset=19,  # DequantizeLinear of fp8
    min_capability=(8, 9),  # Ada
    has_range=True,
)
