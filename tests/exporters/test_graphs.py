from __future__ import annotations

from dataclasses import replace

import pytest

from flash_export.config import DEFAULT_MAX_SEQ_LEN, ExportOptions
from flash_export.errors import ConfigError
from flash_export.exporters.graphs import find_longest
from flash_export.models.token_model import describe_token_model

ANY_LENGTH = describe_token_model(17, needs_mask=True, is_causal=False)
TO_512 = replace(ANY_LENGTH, min_len=3, max_len=512)


def test_lengths_go_as_far_as_is_asked_for_or_else_as_far_as_the_model_does() -> None:
    assert find_longest(ANY_LENGTH, ExportOptions()) == DEFAULT_MAX_SEQ_LEN
    assert find_longest(TO_512, ExportOptions()) == 512
    assert find_longest(replace(TO_512, max_len=2**20), ExportOptions()) == DEFAULT_MAX_SEQ_LEN
    assert find_longest(replace(TO_512, max_len=2**20), ExportOptions(max_seq_len=2**20)) == 2**20
    assert [find_longest(TO_512, ExportOptions(max_seq_len=length)) for length in (3, 512)] == [3, 512]


@pytest.mark.parametrize(
    ("max_seq_len", "message"),
    [
        (2, "max_seq_len=2 is below the 3 tokens that the model needs at least; use 3 or more"),
        (513, "max_seq_len=513 is above the 512 tokens that the model takes at most; use 512 or less"),
    ],
)
def test_lengths_that_the_model_does_not_take_are_refused(max_seq_len: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_longest(TO_512, ExportOptions(max_seq_len=max_seq_len))
