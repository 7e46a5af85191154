from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from flash_export.bundle.manifest import EngineManifest, ProfileShapes
from flash_export.config import FORWARD
from flash_export.errors import BackendUnavailableError, ConfigError
from flash_export.files import hash_file
from flash_export.runtime.backends import find_target
from flash_export.validators.backends import list_backends
from flash_export.validators.lengths import Cell
from flash_export.validators.validate import validate_bundle
from flash_export.validators.validation_options import ValidationOptions
from tests.runtime.test_trt import VERSION

if TYPE_CHECKING:
    from flash_export.bundle.bundle import Bundle


def add_engine(bundle: Bundle, name: str, graph: str = "forward") -> None:
    """Store an engine that no GPU could run, with two profiles."""
    spec = bundle.get_graph()
    shapes = (
        ProfileShapes((1, 1), (1, 8), (2, 16)),
        ProfileShapes((4, 1), (4, 4), (4, 4)),
    )
    plan = b"not an engine"
    engine = EngineManifest(
        name=name,
        flavour="tensorrt-rtx",
        version="1.0",
        targets=("8.9",),
        graph=graph,
        graph_sha256=hash_file(bundle.get_graph_path()),
        engine_sha256="0" * 64,
        profiles=tuple({item.name: shape for item in spec.inputs} for shape in shapes),
        inputs=spec.inputs,
        outputs=spec.outputs,
        num_layers=1,
    )
    bundle.write_engine(engine, plan)


def test_default_is_every_provider_and_engine(bundle: Bundle) -> None:
    add_engine(bundle, "small")
    add_engine(bundle, "big")
    assert [one.name for one in list_backends(bundle)] == [
        *("ort-cpu", "ort-cuda", "trt-network", "trt:big", "trt:small")
    ]


def test_trt_means_every_engine_and_names_are_not_repeated(bundle: Bundle) -> None:
    add_engine(bundle, "big")
    assert [one.name for one in list_backends(bundle, ["trt:big", "trt", "ort-cpu", "ort-cpu"])] == [
        "trt:big",
        "ort-cpu",
    ]


def test_unknown_engine_is_refused_with_the_known_ones(bundle: Bundle) -> None:
    add_engine(bundle, "big")
    with pytest.raises(ConfigError, match=r"unknown backend 'trt:small'; use one of .*trt:big"):
        list_backends(bundle, ["trt:small"])


@pytest.mark.parametrize(
    ("batch", "seq_len", "fits"), [(1, 1, True), (2, 16, True), (4, 4, True), (1, 17, False), (3, 4, False)]
)
def test_shapes_outside_of_every_profile_are_described(bundle: Bundle, batch: int, seq_len: int, fits: bool) -> None:
    add_engine(bundle, "big")
    (backend,) = list_backends(bundle, ["trt"])
    reason = backend.describe_misfit(Cell(batch, seq_len, masked=False))

    assert (reason is None) == fits
    assert fits or reason == (
        f"input_ids of {batch} x {seq_len} is outside of the engine's profiles (1 x 1 to 2 x 16, 4 x 1 to 4 x 4); "
        "build one for it with 'flash-export trt'"
    )


def test_graph_of_onnxruntime_has_no_profile(bundle: Bundle) -> None:
    (backend,) = list_backends(bundle, ["ort-cpu"])
    assert backend.describe_misfit(Cell(4, 96, masked=False)) is None


def test_engine_of_another_graph_is_not_compared(bundle: Bundle) -> None:
    add_engine(bundle, "decoder", graph="decode")
    (backend,) = list_backends(bundle, ["trt"])
    with pytest.raises(BackendUnavailableError, match="no engine of the forward graph"):
        backend.open()


def test_engine_without_a_gpu_is_a_skipped_row_beside_the_graph(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    add_engine(bundle, "big")
    # The engine's hash is checked before the GPU is looked for, so give it the right one.
    folder = bundle.path / "engines"
    text = (folder / "big.json").read_text().replace("0" * 64, hash_file(folder / "big.engine"))
    (folder / "big.json").write_text(text)
    options = ValidationOptions(seq_lens=(4,), batches=(1,), backends=("ort-cpu", "trt"), threads=1, latency_budget_s=0)
    # One that another version built is no fault of the bundle either.
    for version, reason in (("1.0", "must not be loaded here: it was built by"), (VERSION, "no CUDA device here")):
        (folder / "big.json").write_text(text.replace('"version": "1.0"', f'"version": "{version}"'))
        report = validate_bundle(bundle, options)
        assert report
        assert [(row.backend, row.status) for row in report.rows] == [
            ("ort-cpu", "passed"),
            ("ort-cpu", "passed"),
            ("trt:big", "skipped"),
        ]
        assert reason in str(report.rows[-1].reason)


def test_engine_is_found_by_name_and_alone_by_that_of_the_backend(bundle: Bundle) -> None:
    with pytest.raises(BackendUnavailableError, match="no engine of the forward graph"):
        find_target(bundle, "trt", FORWARD)
    add_engine(bundle, "small")
    assert find_target(bundle, "trt", FORWARD).name == "trt:small"
    add_engine(bundle, "big")
    assert find_target(bundle, "trt:big", FORWARD).name == "trt:big"
    with pytest.raises(ConfigError, match=r"'trt' means 2 engines of this bundle; name one of trt:big, trt:small"):
        find_target(bundle, "trt", FORWARD)
