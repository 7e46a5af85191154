"""The schemes: one file in this folder each, named in the table here."""

from __future__ import annotations

from flash_export.exporters.quantization.schemes import fp8, int4, int8, int8_token

# What each may lose is in ``QUANTIZATION_BUDGETS`` of config.py, because validators must not import exporters.
SCHEMES_BY_NAME = {file.SCHEME.name: file.SCHEME for file in (int8_token, int8, int4, fp8)}
