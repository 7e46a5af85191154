"""What is written into a model repository, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from flash_export.bundle.bundle import ENGINE_FOLDER, Bundle
from flash_export.bundle.manifest import EngineManifest, ProfileShapes
from flash_export.errors import BundleError, ConfigError
from flash_export.files import hash_file
from flash_export.serving.options import FORMS, TritonOptions
from flash_export.serving.repository import RECORD_FILE, write_repository

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import PrecisionExporter


def read_config(repository: Path, name: str) -> Any:
    text = (repository / name / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def list_files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hash_file(path) for path in folder.rglob("*") if path.is_file()}


def test_all_forms_stand_side_by_side(causal_byte_bundle: Bundle, tmp_path: Path) -> None:
    written = write_repository(causal_byte_bundle, tmp_path, TritonOptions(forms=FORMS, name="m"))

    assert [(one.name, one.form) for one in written.models] == [
        ("m", "forward"),
        ("m-ragged", "ragged"),
        ("m-sequence", "sequence"),
        ("m-generate", "generate"),
    ]
    for one in written.models:
        assert read_config(tmp_path, one.name).name == one.name
        assert list_files(tmp_path / one.name / "1") == one.files
        record = json.loads((tmp_path / one.name / RECORD_FILE).read_text())
        assert record == {
            "form": one.form,
            "config_sha256": hash_file(tmp_path / one.name / "config.pbtxt"),
            "versions": {"1": one.files},
        }


def test_forward_is_the_interface(causal_byte_bundle: Bundle, tmp_path: Path) -> None:
    options = TritonOptions(name="m", threads=2, instances=3, max_batch=2, queue_delay_us=500, max_waiting=7)
    write_repository(causal_byte_bundle, tmp_path, options)
    config = read_config(tmp_path, "m")

    assert (config.platform, config.default_model_filename, config.max_batch_size) == (
        "onnxruntime_onnx",
        "model.onnx",
        2,
    )
    assert [(one.name, one.data_type, list(one.dims)) for one in config.input] == [
        ("input_ids", model_config_pb2.TYPE_INT64, [-1])
    ]
    assert [(one.name, one.data_type, list(one.dims)) for one in config.output] == [
        ("logits", model_config_pb2.TYPE_FP32, [-1, 257])
    ]
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 7
    assert [(one.count, one.kind) for one in config.instance_group] == [
        (3, model_config_pb2.ModelInstanceGroup.KIND_CPU)
    ]
    assert config.version_policy.latest.num_versions == 1
    parameters = {name: value.string_value for name, value in config.parameters.items()}
    assert parameters["intra_op_thread_count"] == "2"
    assert parameters["flash_export.ranges"] == "batch 1 to 4, seq 1 to 96"
    assert [list(one.inputs["input_ids"].dims) for one in config.model_warmup] == [[8], [16], [32]]  # chunks of 8
    for name in ("model.onnx", "model.onnx.data"):
        source, copied = causal_byte_bundle.path / name, tmp_path / "m" / "1" / name
        assert copied.read_bytes() == source.read_bytes()
        assert source.stat().st_nlink == 1, "ONNX refuses weights that have another name"


def test_sequence_has_the_state_of_the_extend_graph(causal_byte_bundle: Bundle, tmp_path: Path) -> None:
    options = TritonOptions(forms=("sequence",), name="m", slots=9, timeout_s=1.5)
    write_repository(causal_byte_bundle, tmp_path, options)
    config, graph = read_config(tmp_path, "m-sequence"), causal_byte_bundle.get_graph("extend")

    assert [one.name for one in config.input] == ["input_ids", "lengths"]
    assert list(config.input[1].dims) == [1]
    assert config.input[1].HasField("reshape")
    assert [one.name for one in config.output] == ["logits"]
    assert config.sequence_batching.oldest.max_candidate_sequences == 9
    assert config.sequence_batching.max_sequence_idle_microseconds == 1_500_000
    states = config.sequence_batching.state
    assert [one.input_name for one in states] == [spec.name for spec in graph.state_inputs]
    assert [list(one.dims) for one in states] == [list(spec.shape[1:]) for spec in graph.state_inputs]
    assert all(one.output_name == f"new_{one.input_name}" and one.initial_state[0].zero_data for one in states)


def test_a_model_that_is_there_gets_a_further_version(causal_byte_bundle: Bundle, tmp_path: Path) -> None:
    versions = [
        write_repository(causal_byte_bundle, tmp_path, TritonOptions(name="m", keep=2)).models[0] for _ in range(3)
    ]

    assert [(one.version, one.kept) for one in versions] == [(1, ()), (2, (1,)), (3, (2,))]
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["2", "3", "config.pbtxt", RECORD_FILE]
    again = write_repository(causal_byte_bundle, tmp_path, TritonOptions(name="m", keep=1, version=3, force=True))
    assert [(one.version, one.kept) for one in again.models] == [(3, ())]


@pytest.mark.parametrize("version", [1, 2])
def test_a_version_that_would_not_be_served_is_refused(
    causal_byte_bundle: Bundle, tmp_path: Path, version: int
) -> None:
    write_repository(causal_byte_bundle, tmp_path, TritonOptions(name="m", version=2))
    before = list_files(tmp_path)

    with pytest.raises(BundleError, match=r"has version 2.*leave --version out"):
        write_repository(causal_byte_bundle, tmp_path, TritonOptions(name="m", version=version))
    assert list_files(tmp_path) == before


def test_what_others_wrote_is_left_alone(causal_byte_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "m-ragged").mkdir()
    with pytest.raises(BundleError, match=r"has no flash-export.json, so flash-export did not write it"):
        write_repository(causal_byte_bundle, tmp_path, TritonOptions(forms=("forward", "ragged"), name="m"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m-ragged"]


def test_a_config_that_was_changed_is_kept_unless_forced(causal_byte_bundle: Bundle, tmp_path: Path) -> None:
    write_repository(causal_byte_bundle, tmp_path, TritonOptions(name="m"))
    path = tmp_path / "m" / "config.pbtxt"
    path.write_text(changed := path.read_text() + "optimization { }\n")

    with pytest.raises(BundleError, match=r"was changed by hand.*--force"):
        write_repository(causal_byte_bundle, tmp_path, TritonOptions(name="m"))
    assert path.read_text() == changed
    write_repository(causal_byte_bundle, tmp_path, TritonOptions(name="m", force=True))
    assert "optimization" not in path.read_text()


def test_a_kept_version_that_was_changed_is_refused(causal_byte_bundle: Bundle, tmp_path: Path) -> None:
    write_repository(causal_byte_bundle, tmp_path, TritonOptions(forms=("ragged",), name="m"))
    (tmp_path / "m-ragged" / "1" / "model.py").write_text("import os")

    with pytest.raises(BundleError, match=r"model.py was changed since it was written"):
        write_repository(causal_byte_bundle, tmp_path, TritonOptions(forms=("ragged",), name="m"))


@pytest.mark.parametrize("versions", [{"01": {}}, {"../1": {}}, {"1": {"../../x": ""}}, {"1": {"/etc/passwd": ""}}])
def test_a_record_that_leads_elsewhere_is_refused(
    causal_byte_bundle: Bundle, tmp_path: Path, versions: dict[str, dict[str, str]]
) -> None:
    write_repository(causal_byte_bundle, tmp_path, TritonOptions(name="m"))
    record = json.loads((tmp_path / "m" / RECORD_FILE).read_text())
    (tmp_path / "m" / RECORD_FILE).write_text(json.dumps({**record, "versions": versions}))

    with pytest.raises(BundleError, match=r"flash-export.json is damaged: .*remove .*/m, or choose another --name"):
        write_repository(causal_byte_bundle, tmp_path, TritonOptions(name="m"))


def test_another_form_under_a_name_is_refused(causal_byte_bundle: Bundle, tmp_path: Path) -> None:
    write_repository(causal_byte_bundle, tmp_path, TritonOptions(forms=("ragged",), name="m"))
    with pytest.raises(BundleError, match=r"is of the form ragged, this one is forward"):
        write_repository(causal_byte_bundle, tmp_path, TritonOptions(name="m-ragged"))


@pytest.mark.parametrize("name", ["", "a/b", ".", "a b", "-a"])
def test_a_name_that_triton_does_not_take_is_refused(causal_byte_bundle: Bundle, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="give --name"):
        write_repository(causal_byte_bundle, tmp_path, TritonOptions(name=name))


@pytest.mark.parametrize(
    ("form", "message"), [("sequence", "has no graph extend"), ("generate", "holds a model that is not causal")]
)
def test_a_model_without_state_writes_no_text(
    masked_byte_bundle: Bundle, tmp_path: Path, form: str, message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        write_repository(masked_byte_bundle, tmp_path, TritonOptions(forms=(form,)))


@pytest.mark.parametrize("form", FORMS)
def test_bf16_is_not_for_a_cpu(export_half: PrecisionExporter, tmp_path: Path, form: str) -> None:
    with pytest.raises(BundleError, match=r"no bf16 kernels on a CPU; give --device gpu, or export it again"):
        write_repository(export_half("bf16"), tmp_path, TritonOptions(forms=(form,)))
    assert list(tmp_path.iterdir()) == []
    write_repository(export_half("bf16"), tmp_path, TritonOptions(forms=(form,), name="m", device="gpu"))


def test_fp16_state_has_its_types(export_half: PrecisionExporter, tmp_path: Path) -> None:
    bundle = export_half("fp16")
    write_repository(bundle, tmp_path, TritonOptions(forms=("sequence",), name="m"))
    types = {"float16": model_config_pb2.TYPE_FP16, "float32": model_config_pb2.TYPE_FP32}
    types["int64"] = model_config_pb2.TYPE_INT64
    states = read_config(tmp_path, "m-sequence").sequence_batching.state
    specs = bundle.get_graph("extend").state_inputs
    assert [one.data_type for one in states] == [types[spec.dtype] for spec in specs]
    assert len({one.data_type for one in states}) > 1


def test_more_slots_than_the_graphs_take_are_refused(causal_byte_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"slots=5 is not usable; prefill.onnx takes 1 to 4 rows"):
        write_repository(causal_byte_bundle, tmp_path, TritonOptions(forms=("generate",), slots=5))


@pytest.mark.parametrize(
    ("flavour", "name", "message"),
    [
        ("tensorrt-rtx", "e", r"is of tensorrt-rtx, and Triton's backend loads tensorrt alone"),
        ("tensorrt", "f", r"has no engine 'f'; it has e"),
    ],
)
def test_an_engine_that_triton_cannot_load_is_refused(
    causal_byte_bundle: Bundle, tmp_path: Path, flavour: str, name: str, message: str
) -> None:
    bundle = add_engine(causal_byte_bundle, tmp_path / "bundle", flavour)
    with pytest.raises(BundleError, match=message):
        write_repository(bundle, tmp_path / "repository", TritonOptions(engine=name))


def test_an_engine_has_an_instance_for_each_profile(causal_byte_bundle: Bundle, tmp_path: Path) -> None:
    """The configuration alone: no server here can load an engine."""
    bundle = add_engine(causal_byte_bundle, tmp_path / "bundle", "tensorrt")
    written = write_repository(bundle, tmp_path / "repository", TritonOptions(name="m", engine="e", device="gpu"))
    config = read_config(tmp_path / "repository", "m")

    assert (config.platform, config.default_model_filename, config.max_batch_size) == ("tensorrt_plan", "model.plan", 3)
    assert [(one.kind, list(one.profile)) for one in config.instance_group] == [
        (model_config_pb2.ModelInstanceGroup.KIND_GPU, ["0"]),
        (model_config_pb2.ModelInstanceGroup.KIND_GPU, ["1"]),
    ]
    assert [(one.batch_size, list(one.inputs["input_ids"].dims)) for one in config.model_warmup] == [
        (1, [8]),
        (2, [64]),
    ]
    assert list(written.models[0].files) == ["model.plan"]
    assert (tmp_path / "repository" / "m" / "1" / "model.plan").read_bytes() == b"engine"


def add_engine(bundle: Bundle, folder: Path, flavour: str) -> Bundle:
    """Copy a bundle, and put an engine of two profiles into it."""
    copied = Bundle.open(shutil.copytree(bundle.path, folder))
    graph = copied.get_graph()
    (copied.path / ENGINE_FOLDER).mkdir()
    (copied.path / ENGINE_FOLDER / "e.engine").write_bytes(b"engine")
    profiles = (
        {"input_ids": ProfileShapes((1, 1), (1, 8), (1, 16))},
        {"input_ids": ProfileShapes((1, 16), (2, 64), (3, 96))},
    )
    manifest = EngineManifest(
        name="e",
        flavour=flavour,
        version="11.4",
        targets=("9.0",),
        graph="forward",
        graph_sha256=copied.manifest.files[graph.file],
        engine_sha256=hash_file(copied.path / ENGINE_FOLDER / "e.engine"),
        profiles=profiles,
        inputs=graph.inputs,
        outputs=graph.outputs,
        num_layers=1,
    )
    (copied.path / ENGINE_FOLDER / "e.json").write_text(manifest.to_json())
    return copied


def test_graphs_of_one_batch_are_not_batched(causal_byte_bundle: Bundle, tmp_path: Path) -> None:
    graph = causal_byte_bundle.get_graph()
    fixed = dataclasses.replace(graph, axes={**graph.axes, "batch": dataclasses.replace(graph.axes["batch"], min=4)})
    manifest = dataclasses.replace(causal_byte_bundle.manifest, graphs={"forward": fixed})
    write_repository(dataclasses.replace(causal_byte_bundle, manifest=manifest), tmp_path, TritonOptions(name="m"))
    config = read_config(tmp_path, "m")

    assert (config.max_batch_size, config.HasField("dynamic_batching")) == (0, False)
    assert [list(one.dims) for one in (*config.input, *config.output)] == [[4, -1], [4, -1, 257]]
    assert [list(one.inputs["input_ids"].dims) for one in config.model_warmup] == [[4, 8], [4, 16], [4, 32]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"forms": ("forwards",)}, r"form='forwards' is unknown.*did you mean forward"),
        ({"forms": ()}, "name one or more"),
        ({"forms": ("forward", "forward")}, "each once"),
        ({"device": "tpu"}, "device='tpu' is unknown"),
        ({"keep": 0}, "keep=0 is not usable"),
        ({"queue_delay_us": -1}, "queue_delay_us=-1 is not usable"),
        ({"timeout_s": float("nan")}, "timeout_s=nan is not usable"),
        ({"forms": ("ragged",), "engine": "e"}, "add --form forward"),
    ],
)
def test_options_out_of_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TritonOptions(**values)
