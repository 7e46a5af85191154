"""What a causal model carries from token to token.

A state is data alone. Its layout belongs to the ``prefill`` and ``decode`` graphs; what is known here is that the first
axis of every tensor is the batch, that ``position`` counts the tokens that a row has consumed, and that an axis called
``past`` has a place for each of them. A state with such an axis grows with the text: whoever runs a graph reserves
places beforehand, and the graph returns as many as it was given.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from flash_export.bundle.manifest import NEW_STATE_PREFIX, STATE_PREFIX
from flash_export.config import CONFIG_FILE, DECODE, WEIGHTS_FILE
from flash_export.errors import StateError, describe_reason
from flash_export.files import check_utf8, write_file
from flash_export.interface import PAST
from flash_export.reading import check_plain_file

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from jaxtyping import Int

    from flash_export.bundle.bundle import Bundle
    from flash_export.bundle.manifest import GraphSpec
    from flash_export.interface import TensorSpec

POSITION = "position"
# Decode reads what it needs of these before it writes them, so that input and output may be the same memory.
_IN_PLACE = frozenset({"kv", "quad_k", "lin_k", "k", "v"})
FILE_FORMAT = "flash-export-state"
FILE_FORMAT_VERSION = "2"
# The weights alone are not the model: the same file gives another one with another attention_fn.
_MODEL_FILES = (CONFIG_FILE, WEIGHTS_FILE)


@dataclass(frozen=True, eq=False)
class State:
    """State of a batch of texts.

    Attributes:
        tensors: Arrays by name without prefix, such as ``position`` and ``0.kv``; the first axis is the batch.
        model_sha256: What :func:`identify_model` says of the bundle; empty for zeros, which fit every model.
        growing: The axis that has a place for each token, by the names of the tensors that have one.
    """

    tensors: Mapping[str, np.ndarray]
    model_sha256: str = ""
    growing: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what holds for every state, whatever the model.

        Raises:
            StateError: There is no position, a position is negative, a tensor has another batch, a value is NaN or
                infinite, or growing tensors differ in their places or have fewer than there are tokens.
        """
        position = self.tensors.get(POSITION)
        if position is None or position.dtype != np.int64 or position.shape[1:] != (1,) or position.size == 0:
            got = "none" if position is None else f"{position.dtype} {position.shape}"
            raise StateError(f"a state needs {POSITION} as int64 (batch, 1), got {got}; start from State.zeros")
        if position.min() < 0:
            raise StateError(f"{POSITION} of the state is {position.min()}, below 0; start again from the prompt")
        for name, value in self.tensors.items():
            if value.shape[:1] != position.shape[:1]:
                raise StateError(
                    f"{name} of the state has shape {value.shape}, {POSITION} says {position.size} rows; "
                    "use select, replace and fork, which change all tensors at once"
                )
            if not np.isfinite(value).all():
                raise StateError(f"{name} of the state holds NaN or infinite values; start again from the prompt")
        places = {self.tensors[name].shape[axis] for name, axis in self.growing.items()}
        if len(places) > 1 or min(places, default=position.max()) < position.max():
            raise StateError(
                f"the state has {', '.join(map(str, sorted(places)))} places for {position.max()} tokens; "
                "start again from the prompt"
            )

    @classmethod
    def zeros(cls, graph: GraphSpec, batch: int, *, model_sha256: str = "") -> State:
        """Return the state of ``batch`` texts that have not begun.

        Args:
            graph: Contract of the ``prefill`` or ``decode`` graph.
            batch: Number of rows.
            model_sha256: The model it is for; empty: any with such a contract.
        """
        places = graph.axes[PAST].min if PAST in graph.axes else 0
        tensors = {
            name: np.zeros([batch, *(places if size == PAST else int(size) for size in spec.shape[1:])], spec.dtype)
            for name, spec in iterate_specs(graph)
        }
        return cls(tensors, model_sha256, find_growing(graph))

    @classmethod
    def from_outputs(cls, graph: GraphSpec, outputs: Mapping[str, np.ndarray], *, model_sha256: str = "") -> State:
        """Return the state among the outputs of a run of a graph."""
        tensors = {
            name.removeprefix(NEW_STATE_PREFIX): value
            for name, value in outputs.items()
            if name.startswith(NEW_STATE_PREFIX)
        }
        return cls(tensors, model_sha256, find_growing(graph))

    @property
    def batch(self) -> int:
        """Number of rows."""
        return self.position.size

    @property
    def position(self) -> Int[np.ndarray, " batch"]:
        """Number of tokens that each row has consumed."""
        return self.tensors[POSITION][:, 0]

    @property
    def num_places(self) -> int | None:
        """Number of tokens of a row that there is room for; None: any."""
        return next((self.tensors[name].shape[axis] for name, axis in self.growing.items()), None)

    def reserve(self, graph: GraphSpec, num_tokens: int | Int[np.ndarray, " batch"]) -> State:
        """Return a state that has room for further tokens in every row; itself if it has.

        Room is doubled, so that a text that grows token by token is copied a few times alone.

        Args:
            graph: Contract of the graph that will be run.
            num_tokens: How many are about to be read, of every row or of each.

        Raises:
            StateError: The text becomes longer than the graph takes.
        """
        num_places, needed = self.num_places, int((self.position + num_tokens).max())
        if num_places is None or needed <= num_places:
            return self
        most = graph.axes[PAST].max
        if needed > most:
            raise StateError(
                f"the text has {needed} tokens, {graph.file} takes {most} at most; use a shorter one, or export again "
                f"with --max-seq-len {needed} if the model has as many positions"
            )
        return self._resize(min(max(needed, 2 * num_places), most))

    def _resize(self, num_places: int) -> State:
        """Return a state with zeros behind the places that there are."""

        def pad(name: str, value: np.ndarray) -> np.ndarray:
            axis = self.growing.get(name)
            widths = [(0, num_places - size if one == axis else 0) for one, size in enumerate(value.shape)]
            return value if axis is None else np.pad(value, widths)

        tensors = {name: pad(name, value) for name, value in self.tensors.items()}
        return dataclasses.replace(self, tensors=tensors)

    def to_inputs(self) -> dict[str, np.ndarray]:
        """Return the tensors under their names as graph inputs."""
        return {f"{STATE_PREFIX}{name}": value for name, value in self.tensors.items()}

    def select(self, rows: Sequence[int] | Int[np.ndarray, " rows"]) -> State:
        """Return a copy of these rows, in this order; a row may come more than once.

        Raises:
            StateError: There is no such row.
        """
        indices = np.asarray(rows, dtype=np.int64)
        if indices.size == 0 or indices.min() < 0 or indices.max() >= self.batch:
            raise StateError(f"rows {indices.tolist()} cannot be selected; use one or more of 0 to {self.batch - 1}")
        return dataclasses.replace(self, tensors={name: value[indices] for name, value in self.tensors.items()})

    def replace(self, rows: Sequence[int] | Int[np.ndarray, " rows"], state: State) -> State:
        """Return a copy in which these rows are the rows of another state of the same model.

        It has room for as many tokens as the one of the two that has more.

        Raises:
            StateError: The other state has other tensors or another number of rows, or there is no such row.
        """
        indices = np.asarray(rows, dtype=np.int64)
        if indices.size != state.batch or len(set(indices.tolist())) != indices.size:
            raise StateError(f"{state.batch} rows cannot replace rows {indices.tolist()}; name as many different rows")
        if indices.min() < 0 or indices.max() >= self.batch:
            raise StateError(f"rows {indices.tolist()} cannot be replaced; the state has rows 0 to {self.batch - 1}")
        if self._describe() != state._describe():
            raise StateError("a state cannot take rows of a state of another model; use states of one model")
        num_places = max(self.num_places or 0, state.num_places or 0)
        old, new = self._resize(num_places), state._resize(num_places)
        tensors = {name: value.copy() for name, value in old.tensors.items()}
        for name, value in tensors.items():
            value[indices] = new.tensors[name]
        return State(tensors, self.model_sha256 or state.model_sha256, self.growing)

    def fork(self, batch: int, *, row: int = 0) -> State:
        """Return ``batch`` copies of one row: many texts that go on from one prompt.

        Raises:
            StateError: There is no such row, or ``batch`` is below 1.
        """
        if batch < 1:
            raise StateError(f"batch={batch} is not usable; fork to at least 1 row")
        return self.select([row] * batch)

    def save(self, path: Path) -> None:
        """Write the state as safetensors, in one step.

        Raises:
            StateError: It is not known which model the state belongs to.
            BundleError: The file cannot be written; it is then as it was.
        """
        if not self.model_sha256:
            raise StateError("a state of no known model cannot be saved; feed a prompt first, or give model_sha256")
        metadata = {"format": FILE_FORMAT, "format_version": FILE_FORMAT_VERSION, "model_sha256": self.model_sha256}
        tensors = {name: np.ascontiguousarray(value) for name, value in self.tensors.items()}
        write_file(path, save(tensors, metadata))

    @classmethod
    def load(cls, path: Path, bundle: Bundle) -> State:
        """Read a state that :meth:`save` wrote.

        Raises:
            StateError: The file is missing, damaged, of another format version or of another model than the bundle's.
            ConfigError: Its path is no UTF-8.
        """
        cure = "give a file that was saved as a state"
        check_utf8(path)
        check_plain_file(path, StateError, cure)
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                names = file.keys()
                tensors = {name: file.get_tensor(name) for name in names}
        except (OSError, SafetensorError, TypeError, ValueError, AttributeError) as error:
            raise StateError(f"{path} cannot be read as safetensors ({describe_reason(error)}); {cure}") from error
        found = (metadata.get("format"), metadata.get("format_version"))
        if found != (FILE_FORMAT, FILE_FORMAT_VERSION):
            raise StateError(
                f"{path} has format {found[0]} {found[1]}, this version reads {FILE_FORMAT} {FILE_FORMAT_VERSION}; "
                "read the text again, with a bundle of this version, and save the state then"
            )
        _check_model(metadata.get("model_sha256", ""), identify_model(bundle))
        graphs = bundle.manifest.graphs
        growing = find_growing(graphs[DECODE]) if DECODE in graphs else {}
        return cls(tensors, metadata["model_sha256"], {name: axis for name, axis in growing.items() if name in tensors})

    def _describe(self) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """Return dtype and sizes of the tensors, batch and places apart."""
        shapes = {
            name: tuple(size for axis, size in enumerate(value.shape) if axis not in (0, self.growing.get(name)))
            for name, value in self.tensors.items()
        }
        return {name: (value.dtype, shapes[name]) for name, value in self.tensors.items()}


def identify_model(bundle: Bundle) -> str:
    """Return a hash of the config and weights in a bundle, which two exports of one model share."""
    digest = hashlib.sha256()
    for name in _MODEL_FILES:
        digest.update(bundle.manifest.files[name].encode())
    return digest.hexdigest()


def check_state(state: State, graph: GraphSpec, *, batch: int, model_sha256: str) -> None:
    """Check that a state can be fed to a graph.

    Raises:
        StateError: It is of another model, has another batch, or other tensors than the graph takes.
    """
    if state.model_sha256:
        _check_model(state.model_sha256, model_sha256)
    specs = dict(iterate_specs(graph))
    if state.tensors.keys() != specs.keys():
        odd = ", ".join(sorted(state.tensors.keys() ^ specs.keys())[:3])
        raise StateError(f"the state has other tensors than the graph takes ({odd}); make it with the same backend")
    for name, spec in specs.items():
        value = state.tensors[name]
        sizes = tuple(PAST if axis == state.growing.get(name) else size for axis, size in enumerate(value.shape))
        if (str(value.dtype), sizes[1:]) != (spec.dtype, spec.shape[1:]):
            raise StateError(
                f"{name} of the state is {value.dtype} {value.shape}, the graph takes {spec.dtype} {spec.shape}; "
                "start again from the prompt"
            )
    if state.batch != batch:
        raise StateError(f"the state has a batch of {state.batch}, the run has {batch}; fork one row, or select some")


def iterate_specs(graph: GraphSpec) -> Iterator[tuple[str, TensorSpec]]:
    """Return name without prefix and contract of each state input."""
    return ((spec.name.removeprefix(STATE_PREFIX), spec) for spec in graph.state_inputs)


def find_growing(graph: GraphSpec) -> dict[str, int]:
    """Return the axis that has a place for each token, by the names of the state's tensors that have one."""
    found = {name: spec.find_axis(PAST) for name, spec in iterate_specs(graph)}
    return {name: axis for name, axis in found.items() if axis is not None}


def _check_model(found: str, wanted: str) -> None:
    if found != wanted:
        raise StateError(
            f"the state belongs to another model ({found[:12]}..., this one is {wanted[:12]}...); "
            "use the bundle that it was made with, or start again from the prompt"
        )


def is_updated_in_place(name: str) -> bool:
    """Tell whether decode may write a tensor of the state, such as ``0.kv``, where it reads it."""
    return name.rpartition(".")[2] in _IN_PLACE
