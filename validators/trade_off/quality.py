"""What the predictions of each bundle are worth: the same text through the model in float64 and all of the bundles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flash_export.config import Tolerance
from flash_export.validators.accuracy import compare_outputs
from flash_export.validators.backends import GRAPH
from flash_export.validators.bits_per_byte import sum_window_bits
from flash_export.validators.cells import describe_exception
from flash_export.validators.plan import Cell, CellInputs, build_cell_inputs, build_graph_inputs, get_axis
from flash_export.validators.trade_off.results import Quality

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from jaxtyping import Bool, Float, Int

    from flash_export.heldout import Heldout
    from flash_export.runtime.runner import Runner
    from flash_export.validators.trade_off.candidates import Candidate

RANDOM_PIECES, RANDOM_SEQ_LEN = 8, 1024
# Nothing is refused here: how far a bundle may be off is the reader's to say.
_ANY = Tolerance(atol=float("inf"), rtol=0.0)


@dataclass(frozen=True)
class Piece:
    """Tokens that every bundle reads.

    Attributes:
        input_ids: The tokens.
        compared: Whose logits count.
        window: Which window of the held-out text it is; None for random tokens.
    """

    input_ids: Int[np.ndarray, "1 seq"]
    compared: Bool[np.ndarray, "1 seq"]
    window: int | None = None


@dataclass
class _Sums:
    """What adds up over the pieces; ``reason`` ends it."""

    bits: float = 0.0
    agreeing: float = 0.0
    kl_bits: float = 0.0
    reason: str | None = None


class QualityMeter:
    """Feeds one piece after the other to the model in float64 and to every candidate, and adds up what comes out."""

    def __init__(self, reference: Runner, candidates: Sequence[Candidate], heldout: Heldout | None) -> None:
        """Start with nothing.

        Args:
            reference: The model in float64.
            candidates: The bundles, the one that the others are compared with first.
            heldout: The text that the pieces are windows of; None for random tokens.
        """
        self._reference = reference
        self._candidates = candidates
        self._heldout = heldout
        self._sums = [_Sums(reason=candidate.reason) for candidate in candidates]
        self._predictions = 0
        self._predicted_bytes = 0
        self._reference_bits = 0.0

    @property
    def predictions(self) -> int:
        """How many predictions were compared."""
        return self._predictions

    @property
    def reference_bits_per_byte(self) -> float | None:
        """Bits per byte of the model in float64; None without a held-out text."""
        return self._reference_bits / self._predicted_bytes if self._predicted_bytes else None

    def read(self, piece: Piece) -> None:
        """Compare what the model and every candidate predict for a piece."""
        expected = self._reference.run({"input_ids": piece.input_ids})["logits"]
        count = int(piece.compared.sum())
        self._predictions += count
        if self._heldout is not None and piece.window is not None:
            self._predicted_bytes += int(self._heldout.targets[piece.window].sum())
            self._reference_bits += sum_window_bits(self._heldout, piece.window, expected[0])
        for candidate, sums in zip(self._candidates, self._sums, strict=True):
            if sums.reason is None:
                try:
                    self._add(candidate, sums, piece, expected, count)
                except Exception as error:  # whatever a bundle raises, the others still have something to tell
                    sums.reason = describe_exception(error, candidate.bundle.path)

    def summarise(self) -> list[Quality]:
        """Return what was found, a candidate each."""
        first = self._sums[0]
        found = []
        for sums in self._sums:
            if sums.reason is not None:
                found.append(Quality(sums.reason))
                continue
            has_text = self._predicted_bytes > 0
            comparable = has_text and first.reason is None and first.bits > 0
            found.append(
                Quality(
                    bits_per_byte=sums.bits / self._predicted_bytes if has_text else None,
                    change=sums.bits / first.bits - 1 if comparable else None,
                    top1_agreement=sums.agreeing / self._predictions,
                    kl_bits=sums.kl_bits / self._predictions,
                )
            )
        return found

    def _add(
        self,
        candidate: Candidate,
        sums: _Sums,
        piece: Piece,
        expected: Float[np.ndarray, "1 seq vocab"],
        count: int,
    ) -> None:
        actual = _predict(candidate, piece)
        result = compare_outputs(expected, expected, actual, piece.compared, _ANY, dtype=str(actual.dtype))
        if not result:
            sums.reason = f"{result.reason} at {piece.input_ids.shape[1]} tokens"
            return
        sums.agreeing += count * (result.top1_agreement or 0.0)
        sums.kl_bits += count * (result.kl_bits or 0.0)
        if self._heldout is not None and piece.window is not None:
            sums.bits += sum_window_bits(self._heldout, piece.window, actual[0])


def list_text_pieces(heldout: Heldout, windows: int | None) -> Iterator[Piece]:
    """Yield the windows of the held-out text, or the first of them; what counts is what predicts a byte."""
    for window in range(len(heldout.inputs))[:windows]:
        compared = np.zeros(heldout.inputs.shape[1], dtype=bool)
        compared[heldout.find_predictors(window)] = True
        yield Piece(heldout.inputs[window][None], compared[None], window)


def list_random_pieces(candidates: Sequence[Candidate], vocab_size: int, windows: int | None) -> Iterator[Piece]:
    """Yield pieces of random tokens that all graphs can take, of which everything counts."""
    longest = min(get_axis(candidate.bundle.get_graph(GRAPH), "seq").max for candidate in candidates)
    cell = Cell(1, min(longest, RANDOM_SEQ_LEN), masked=False)
    for seed in range(windows or RANDOM_PIECES):
        inputs = build_cell_inputs(cell, vocab_size, seed=seed)
        yield Piece(inputs.input_ids, inputs.valid)


def _predict(candidate: Candidate, piece: Piece) -> Float[np.ndarray, "1 seq vocab"]:
    """Run a piece; a graph for one larger batch gets it in every row."""
    assert candidate.runner is not None  # a candidate without one has a reason, and is not run
    graph = candidate.bundle.get_graph(GRAPH)
    rows = get_axis(graph, "batch").min
    input_ids = np.repeat(piece.input_ids, rows, axis=0)
    inputs = CellInputs(input_ids, np.full(rows, input_ids.shape[1]))
    return candidate.runner.run(build_graph_inputs(graph.inputs, inputs))[graph.outputs[0].name][:1]
