"""A graph says of itself what the manifest says, so that a file that was found alone can be used."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import onnx
import pytest
from click.testing import CliRunner

from flash_export.bundle.manifest import METADATA_PREFIX
from flash_export.cli.main import main
from flash_export.config import DECODE, EXTEND, FORWARD, PREFILL, WEIGHTS_FILE
from flash_export.exporters.self_description import describe_facts, describe_tensor
from flash_export.interface import (
    Bins,
    Content,
    Features,
    Lengths,
    Logits,
    Mask,
    Positions,
    TensorSpec,
    TokenIds,
    Waveform,
)
from flash_export.version import __version__

if TYPE_CHECKING:
    from flash_export.bundle.bundle import Bundle

CONTENTS: dict[Content, str] = {
    TokenIds(7): "token ids, 0 to 6",
    Mask(): "1 for what is real, 0 for padding, which stands on the right",
    Lengths("seq", 0): "how many tokens of each row are real, 0 to seq",
    Positions(8): "state: how many tokens each row has read before, in multiples of 8",
    Features(): "features, real numbers",
    Waveform(16000): "sound, 16000 samples a second, 1 is full scale",
    Logits(): "logits over the vocabulary",
    Bins(2.0): "scores of positions, 2 a pixel",
}


def test_every_content_is_described(causal_byte_bundle: Bundle) -> None:
    assert {type(content) for content in CONTENTS} == set(get_args(Content))
    interface = causal_byte_bundle.manifest.interface
    for content, wanted in CONTENTS.items():
        assert describe_tensor(TensorSpec("x", "float32", ("batch",), content), interface) == wanted


@pytest.mark.parametrize("name", [FORWARD, PREFILL, EXTEND, DECODE])
def test_metadata_are_those_of_the_manifest(causal_byte_bundle: Bundle, name: str) -> None:
    graph, manifest = causal_byte_bundle.get_graph(name), causal_byte_bundle.manifest
    path = causal_byte_bundle.get_graph_path(name)
    model = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(path)
    found = {entry.key: entry.value for entry in model.metadata_props}
    facts = describe_facts(name, graph, manifest.interface, family="flash", weights_sha256=manifest.files[WEIGHTS_FILE])
    assert found == {f"{METADATA_PREFIX}{key}": value for key, value in facts.items()}
    assert (facts["version"], facts["graph"], facts["chunk_size"]) == (__version__, name, "8")
    assert ("state" in facts) == (name != FORWARD)
    assert ("start" in facts) == (name == PREFILL)
    assert ("padding" in facts) == (name != DECODE)
    assert model.doc_string.startswith(f"{name} of a flash model (tokens)")
    values = {value.name: value.doc_string for value in (*model.graph.input, *model.graph.output)}
    for spec in (*graph.inputs, *graph.outputs):
        assert values[spec.name] == describe_tensor(spec, manifest.interface) != ""


def test_padding_says_what_the_mask_is_for(masked_byte_bundle: Bundle) -> None:
    graph, interface = masked_byte_bundle.get_graph(), masked_byte_bundle.manifest.interface
    facts = describe_facts(FORWARD, graph, interface, family="flash", weights_sha256="0")
    assert facts["padding"] == "on the right, where it changes nothing, if attention_mask says so"


def test_inspect_shows_what_a_lone_graph_says(causal_byte_bundle: Bundle) -> None:
    shown = CliRunner().invoke(main, ["inspect", str(causal_byte_bundle.get_graph_path(PREFILL))]).output
    assert "positions that are multiples of 8; elsewhere the logits are NaN" in " ".join(shown.split())
    assert "weights_sha256" in shown
    assert "weights_sha256" not in CliRunner().invoke(main, ["inspect", str(causal_byte_bundle.path)]).output
