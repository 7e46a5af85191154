"""What a client may ask for beside its prompt: parameters of the request, by the names of ``SamplingOptions``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from flash_export.errors import ConfigError, InputError, describe_reason
from flash_export.generation.sampling import SamplingOptions
from flash_export.reading import parse_json
from flash_export.typed_json import build

if TYPE_CHECKING:
    from collections.abc import Mapping

TOKENS_PER_REPLY, STOP_TOKENS = "tokens_per_reply", "stop_tokens"


@dataclass(frozen=True)
class CallOptions:
    """How a call is answered.

    Attributes:
        sampling: How tokens are chosen.
        tokens_per_reply: Tokens that are sent at a time; the last reply may have fewer. More are faster,
            and come later.
    """

    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    tokens_per_reply: int = 1

    def __post_init__(self) -> None:
        """Check the number of tokens.

        Raises:
            ConfigError: It is below 1.
        """
        if self.tokens_per_reply < 1:
            raise ConfigError(
                f"tokens_per_reply={self.tokens_per_reply} is not usable; use a whole number of at least 1"
            )


def read_call_options(parameters: Mapping[str, object]) -> CallOptions:
    """Read the parameters of a request.

    They are numbers, or the same as text for clients that send text alone. Stop tokens are text: ``10,13``.

    Raises:
        InputError: There is no such parameter, or it is no such number.
        ConfigError: A number is out of range.
    """
    values = {name: _read_number(name, value) for name, value in parameters.items()}
    size = values.pop(TOKENS_PER_REPLY, 1)
    if type(size) is not int:
        raise InputError(f"{TOKENS_PER_REPLY} is {size!r}; give a whole number")
    try:
        return CallOptions(build(values, SamplingOptions), size)
    except ValueError as error:
        known = ", ".join([*(one.name for one in dataclasses.fields(SamplingOptions)), TOKENS_PER_REPLY])
        raise InputError(f"the parameters cannot be used ({describe_reason(error)}); they are {known}") from error


def _read_number(name: str, value: object) -> object:
    if isinstance(value, str):
        try:
            return parse_json(f"[{value}]" if name == STOP_TOKENS else value)
        except ValueError as error:
            raise InputError(f"{name} is {value!r}; give numbers, as in stop_tokens 10,13") from error
    return [value] if name == STOP_TOKENS else value
