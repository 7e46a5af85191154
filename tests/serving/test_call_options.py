from __future__ import annotations

import pytest

from flash_export.errors import FlashExportError
from flash_export.generation.sampling import SamplingOptions
from flash_export.serving.call_options import CallOptions, read_call_options


@pytest.mark.parametrize(
    ("parameters", "options"),
    [
        ({}, CallOptions()),
        (
            {"temperature": 0.5, "top_k": 3, "stop_tokens": "10,13", "tokens_per_reply": 8},
            CallOptions(SamplingOptions(0.5, 3, stop_tokens=(10, 13)), 8),
        ),
        (
            {"temperature": "1", "max_tokens": "7", "tokens_per_reply": "2"},
            CallOptions(SamplingOptions(1, max_tokens=7), 2),
        ),
        ({"stop_tokens": 10}, CallOptions(SamplingOptions(stop_tokens=(10,)))),
    ],
)
def test_parameters_are_read(parameters: dict[str, object], options: CallOptions) -> None:
    assert read_call_options(parameters) == options


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"max_tokens": 1.5}, "max_tokens is a number, wanted a whole number"),
        ({"max_tokens": True}, "max_tokens is true or false, wanted a whole number"),
        ({"max_tokens": "many"}, "max_tokens is 'many'; give numbers"),
        ({"stop_tokens": "1;2"}, "stop_tokens is '1;2'; give numbers, as in stop_tokens 10,13"),
        ({"tokens_per_reply": "x"}, "tokens_per_reply is 'x'; give numbers"),
        ({"tokens_per_reply": 0.5}, "tokens_per_reply is 0.5; give a whole number"),
        ({"tokens_per_reply": 0}, "tokens_per_reply=0 is not usable"),
        ({"temperature": -1.0}, "temperature=-1.0 is not usable"),
        ({"seeds": 1}, r"unknown field 'seeds' \(did you mean seed\?\)\); they are temperature, top_k"),
    ],
)
def test_what_cannot_be_used_is_refused(parameters: dict[str, object], message: str) -> None:
    with pytest.raises(FlashExportError, match=message):
        read_call_options(parameters)
