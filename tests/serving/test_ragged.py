"""Requests of any lengths that share a run are answered as if each were alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from flash_export.errors import InputError
from flash_export.runtime.backends import BACKENDS
from flash_export.serving.ragged import check_request, group_requests, join_requests, make_example, split_outputs

if TYPE_CHECKING:
    from flash_export.bundle.bundle import Bundle


def test_the_example_of_a_request_is_one(masked_byte_bundle: Bundle) -> None:
    graph, interface = masked_byte_bundle.get_graph(), masked_byte_bundle.manifest.interface
    example = make_example(graph, interface)
    assert example["input_ids"].shape == (1, interface.chunk_size)
    check_request(graph, interface, example)


def draw(rows: int, seq_len: int) -> dict[str, np.ndarray]:
    return {"input_ids": np.random.default_rng(seq_len).integers(0, 257, (rows, seq_len))}


@pytest.mark.parametrize("fixture", ["causal_byte_bundle", "masked_byte_bundle"])
def test_joined_requests_are_answered_as_alone(request: pytest.FixtureRequest, fixture: str) -> None:
    bundle: Bundle = request.getfixturevalue(fixture)
    interface, graph = bundle.manifest.interface, bundle.get_graph()
    requests = [draw(1, 5), draw(2, 37), draw(1, 8)]
    (target,) = BACKENDS["ort-cpu"].find(bundle, "forward")
    with target.open(threads=1) as runner:
        batch = join_requests(interface, requests)
        answers = split_outputs(interface, requests, runner.run(batch.to_inputs(graph.inputs)))
        alone = [runner.run(join_requests(interface, [one]).to_inputs(graph.inputs)) for one in requests]
    assert (batch.size, batch.seq_len, batch.lengths.tolist()) == (4, 37, [5, 37, 37, 8])
    for answer, expected in zip(answers, alone, strict=True):
        assert answer["logits"].shape == expected["logits"].shape
        scale = np.abs(expected["logits"]).max()
        np.testing.assert_allclose(answer["logits"], expected["logits"], rtol=0, atol=1e-5 * scale)


def test_no_request_is_padded_to_more_than_twice_its_chunks(causal_byte_bundle: Bundle) -> None:
    lengths = [90, 1, 8, 9, 24, 17, 96, 33]  # in chunks of 8: 12, 1, 1, 2, 3, 3, 12, 5
    groups = group_requests(causal_byte_bundle.manifest.interface, [draw(1, size) for size in lengths])
    assert [[lengths[index] for index in group] for group in groups] == [[1, 8, 9], [24, 17, 33], [90, 96]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((1, 97), np.int64), "seq_len=97 exceeds the graph's maximum 96"),
        (np.zeros((1, 0), np.int64), "seq_len=0 is below"),
        (np.full((1, 3), 257), "has 257, token ids are 0 to 256"),
    ],
)
def test_a_request_out_of_range_is_refused(causal_byte_bundle: Bundle, values: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_request(causal_byte_bundle.get_graph(), causal_byte_bundle.manifest.interface, {"input_ids": values})
