from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from flash_export.bundle.bundle import Bundle
from flash_export.bundle.manifest import AxisRange, GraphSpec, Manifest
from flash_export.errors import BundleError
from flash_export.files import hash_file
from flash_export.interface import TensorSpec
from flash_export.models.flash import FlashConfig, FlashModel
from flash_export.models.gau import GauConfig, GauModel
from flash_export.probes import Point, Probe, ProbeMap
from flash_export.typed_json import build
from tests.conftest import INTERFACE, PROVENANCE

if TYPE_CHECKING:
    from pathlib import Path

SIZES: dict[str, Any] = {"vocab_size": 5, "dim": 4, "depth": 2, "hidden_dim": 6, "qk_dim": 2}
PROBES = ProbeMap(
    "forward",
    {"channels": (1, 0)},
    (Probe("layers.0.kv", "layers.0/MatMul_0:0", 0.1, "channels", -2, -2), Probe("logits", "logits")),
)
IDS, LOGITS = TensorSpec("input_ids", "int64", (1, 1)), TensorSpec("logits", "float32", (1, 1, 5))
SPEC = GraphSpec("model.onnx", 20, "fp32", (IDS,), (LOGITS,), {"batch": AxisRange(1, 1), "seq": AxisRange(1, 1)})


def write_bundle(folder: Path, probes: str | None) -> Bundle:
    (folder / "model.onnx").write_bytes(b"graph")
    if probes is not None:
        (folder / "probes.json").write_text(probes)
    files = {path.name: hash_file(path) for path in folder.iterdir()}
    (folder / "manifest.json").write_text(Manifest({}, INTERFACE, {"forward": SPEC}, PROVENANCE, files).to_json())
    return Bundle.open(folder)


def test_file_says_what_was_written(tmp_path: Path) -> None:
    assert write_bundle(tmp_path, PROBES.to_json()).read_probes() == PROBES


def test_empty_map_is_json() -> None:
    values = json.loads(ProbeMap("forward", {}, ()).to_json())
    assert build(values, ProbeMap) == ProbeMap("forward", {}, ())


def test_bundle_of_an_older_version_is_to_be_exported_again(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has no probes\.json.*older version.*export it again"):
        write_bundle(tmp_path, None).read_probes()


ONE = json.loads(PROBES.to_json())["probes"][0]


@pytest.mark.parametrize(
    "change",
    [
        {"probes": 3},
        {"orders": {"channels": ["a"]}},
        {"extra": 1},
        {"orders": {"channels": [0, 0]}},
        {"orders": {}},
        {"probes": [{**ONE, "axis": 1}]},
        {"probes": [{**ONE, "length_power": 10**6}]},
    ],
)
def test_damaged_file_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    values = {**json.loads(PROBES.to_json()), **change}
    with pytest.raises(BundleError, match=r"is damaged: .*export the bundle again"):
        write_bundle(tmp_path, json.dumps(values)).read_probes()


@pytest.mark.parametrize(
    "model", [FlashModel(FlashConfig(**SIZES, chunk_size=2)), GauModel(GauConfig(**SIZES))], ids=["flash", "gau"]
)
def test_reference_models_name_known_quantities_and_keep_their_keys(model: FlashModel | GauModel) -> None:
    names: list[str] = []
    input_ids = torch.tensor([[1, 2, 3]])
    with model.read_probes(lambda name, _: names.append(name)):
        read = model(input_ids)
    assert len(set(names)) == len(names)
    assert {Point.parse(name).quantity for name in names} <= model.config.quantities.keys()
    assert {Point.parse(name).block for name in names} == {None, 0, 1}
    assert not [key for key in model.state_dict() if "probe" in key]
    assert torch.equal(model(input_ids), read)
    assert len(names) == len(set(names)), "nobody looks once the block has ended"


def test_probe_defaults_are_the_identity() -> None:
    probe = Probe("logits", "logits")
    assert dataclasses.asdict(probe) == {
        "name": "logits", "tensor": "logits", "scale": 1.0, "order": None, "axis": -1, "length_power": 0
    }  # fmt: skip
