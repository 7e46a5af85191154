"""What every model family shares: a validated config and a reference module that can be saved.

A *reference model* is plain PyTorch, written to be read. The validators compare everything with it, so it
is never optimised, patched or traced; the form for export is built from it by ``flash_export.exporters``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from flash_export.config import CONFIG_FILE, WEIGHTS_FILE
from flash_export.errors import CheckpointError, ConfigError
from flash_export.suggest import list_known

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeVar

    from torch import Tensor

    from flash_export.interface import Interface
    from flash_export.models.carried_state import CarriedState
    from flash_export.probes import Quantity

    FieldsT = TypeVar("FieldsT", bound="ConfigFields")
    ConfigT = TypeVar("ConfigT", bound="ModelConfig")

MAX_SIZE = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class ConfigFields:
    """Plain fields, checked once: a config, or a part that a model may have or not.

    Attributes:
        CHOICES: The values of fields that take only some.
        PARTS: Fields that hold further fields, or None.
    """

    CHOICES: ClassVar[dict[str, tuple[str, ...]]] = {}
    PARTS: ClassVar[dict[str, type[ConfigFields]]] = {}

    def __post_init__(self) -> None:
        """Check every field against its declared type and choices."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            choices, part = self.CHOICES.get(field.name), self.PARTS.get(field.name)
            if part is not None:
                if value is not None and not isinstance(value, part):
                    known = ", ".join(field.name for field in dataclasses.fields(part))
                    raise ConfigError(f"{field.name}={value!r} is not usable; give an object with {known}, or null")
            elif choices is not None:
                if value not in choices:
                    raise ConfigError(f"{field.name}={value!r} is unknown; use one of {list_known(value, choices)}")
            elif field.type == "bool":
                if not isinstance(value, bool):
                    raise ConfigError(f"{field.name}={value!r} is not a boolean; use true or false")
            elif field.type == "float":
                if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                    raise ConfigError(f"{field.name}={value!r} is not usable; use a finite number")
            elif isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SIZE:
                raise ConfigError(f"{field.name}={value!r} is not usable; use a whole number from 1 to {MAX_SIZE}")


@dataclasses.dataclass(frozen=True)
class ModelConfig(ConfigFields):
    """Base of the family configs, stored as ``config.json``."""

    model_type: ClassVar[str]

    @property
    def interface(self) -> Interface:
        """What the model takes and gives."""
        raise NotImplementedError

    @property
    def num_blocks(self) -> int:
        """Number of layers, whose modules and values are called ``layers.N``."""
        raise NotImplementedError

    @property
    def quantities(self) -> Mapping[str, Quantity]:
        """What both the reference and the lowered model compute, in the order of computation, by the probes' names.

        The first that is wrong is where a fault lies. Outputs are not among them.
        """
        raise NotImplementedError

    @property
    def carried_state(self) -> CarriedState | None:
        """What graphs carry from run to run, by which they can be read inside; None: they cannot."""
        return None

    @property
    def state_refusal(self) -> str | None:
        """Why the past of a sequence cannot be carried from run to run; None if it can."""
        raise NotImplementedError

    @property
    def full_chunks(self) -> int:
        """Whole chunks of a sequence in which every part of the model has something to do."""
        return 2

    def take_waveform(self) -> ModelConfig:
        """Return the config of a model of the same weights that takes a waveform where this one takes features of it.

        Raises:
            ConfigError: There is no such model.
        """
        raise ConfigError(f"family {self.model_type} is not for sound; leave --waveform out")

    def count_macs(self, seq_len: int) -> int:
        """Return the multiply-accumulates of the matrix products of one row of a length."""
        raise NotImplementedError

    def estimate_bytes(self, batch: int, seq_len: int) -> int:
        """Estimate the peak memory of the reference in float64, outputs of three models included, in bytes."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, with ``model_type`` first."""
        return {"model_type": self.model_type, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
        """Build the config from its JSON form.

        Raises:
            ConfigError: A field is unknown, missing or has an unusable value.
        """
        given = {name: value for name, value in values.items() if name != "model_type"}
        return _build_fields(cls, given, f"model_type {cls.model_type!r}")


def _build_fields(kind: type[FieldsT], values: Mapping[str, Any], owner: str) -> FieldsT:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := sorted(values.keys() - fields.keys()):
        raise ConfigError(
            f"unknown config field {', '.join(unknown)} for {owner}; known fields: {list_known(unknown[0], fields)}"
        )
    required = [name for name, field in fields.items() if field.default is dataclasses.MISSING]
    if missing := [name for name in required if name not in values]:
        raise ConfigError(f"config of {owner} lacks {', '.join(missing)}; add it to config.json")
    parts = {
        name: _build_fields(part, values[name], f"{name} of {owner}")
        for name, part in kind.PARTS.items()
        if isinstance(values.get(name), Mapping)
    }
    return kind(**{**values, **parts})


class ReferenceModel(nn.Module):
    """Base of the reference modules.

    ``forward`` takes the inputs of the interface by name, and the mask, if there is one, which may be left out. It
    returns the one output, or a tuple of all in the order of the interface.
    """

    config: ModelConfig
    # Names of blocks as probes have them, by the names of modules that a library calls otherwise.
    BLOCK_NAMES: ClassVar[dict[str, str]] = {}

    def save_pretrained(self, directory: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write ``config.json`` and ``model.safetensors`` into ``directory``.

        Args:
            directory: Created when it does not exist.
            dtype: Store parameters in this dtype; buffers (frequencies) keep their own.

        Raises:
            CheckpointError: ``directory`` cannot be written, or the disk is full.
        """
        folder = Path(directory)
        parameters = {name for name, _ in self.named_parameters(remove_duplicate=False)}
        tensors = separate_tensors(
            {
                name: tensor.to(dtype) if dtype and name in parameters else tensor
                for name, tensor in self.state_dict().items()
            }
        )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / CONFIG_FILE).write_text(json.dumps(self.config.to_dict(), indent=2) + "\n")
            save_file(tensors, folder / WEIGHTS_FILE)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"cannot write {folder} ({error}); free some space, or choose a folder that you may write to"
            ) from error

    @contextlib.contextmanager
    def read_probes(self, reader: Callable[[str, Tensor], None]) -> Iterator[None]:
        """Show a reader what is computed inside the model while the block runs.

        Args:
            reader: Called with a name, ``embedding``, ``layers.3.kv`` and so on, and the values. The names, less the
                block, are those of the config's quantities.
        """
        probes = [(name, module.tap) for name, module in self.named_modules() if hasattr(module, "tap")]
        for module, tap in probes:
            owner = self.BLOCK_NAMES.get(module, module)
            tap.reader = partial(_forward_reading, reader, f"{owner}." if owner else "")
        try:
            yield
        finally:
            for _, tap in probes:
                tap.reader = None

    def compute_frequencies(self) -> dict[str, Tensor]:
        """Return the buffers, all of which follow from the config, by name and in fp32."""
        owners = {name: module for name, module in self.named_modules() if hasattr(module, "compute_frequencies")}
        return {
            f"{owner}.{name}": cast("Callable[[], Tensor]", module.compute_frequencies)()
            for owner, module in owners.items()
            if module is not self
            for name, _ in module.named_buffers(recurse=False)
        }

    def count_parameters(self) -> int:
        """Return the number of trained parameters."""
        return sum(parameter.numel() for parameter in self.parameters())


def separate_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors contiguous, each in memory of its own: tied weights and views of one buffer are copied."""
    separated: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.contiguous()
        storage = own.untyped_storage()
        if storage.data_ptr() in taken or storage.nbytes() != own.numel() * own.element_size():
            own = own.clone(memory_format=torch.contiguous_format)
        taken.add(own.untyped_storage().data_ptr())
        separated[name] = own
    return separated


def _forward_reading(reader: Callable[[str, Tensor], None], prefix: str, name: str, values: Tensor) -> None:
    reader(f"{prefix}{name}", values)


def compute_valid_tokens(input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return what is a real token, and how many each row has.

    Args:
        input_ids: Token ids ``(batch, seq)``.
        attention_mask: ``(batch, seq)``, nonzero for real tokens; None when all are real.

    Returns:
        Bool ``(batch, seq)`` and int64 ``(batch, 1)``, the count being at least 1.
    """
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    valid = mask.bool()
    return valid, valid.sum(dim=1, keepdim=True).clamp(min=1)
