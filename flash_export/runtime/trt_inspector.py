"""The layers of a built engine, as TensorRT's inspector tells them: what the builder fused, and what it chose.

An engine can be read on a GPU that it can run on, and nowhere else.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flash_export.errors import BackendUnavailableError, describe_reason
from flash_export.runtime.trt_metadata import parse_metadata

if TYPE_CHECKING:
    from flash_export.runtime.trt_session import LoadedEngine


@dataclass(frozen=True)
class EngineLayer:
    """One layer of an engine.

    Attributes:
        name: Its name, which often joins those of the layers that it was fused from.
        type: TensorRT's layer type; empty if the engine was built with the names of its layers alone.
        nodes: The ONNX nodes it came from, as far as the engine says.
        outputs: Dtype and layout of each output, as TensorRT words it.
    """

    name: str
    type: str
    nodes: tuple[str, ...]
    outputs: tuple[str, ...]


def read_engine_layers(loaded: LoadedEngine) -> tuple[EngineLayer, ...]:
    """Return the layers of an engine.

    Raises:
        BackendUnavailableError: TensorRT says nothing that can be read of them.
    """
    inspector = loaded.engine.create_engine_inspector()
    return parse_engine_information(inspector.get_engine_information(loaded.trt.LayerInformationFormat.JSON))


def parse_engine_information(text: str) -> tuple[EngineLayer, ...]:
    """Return the layers in the JSON of an engine inspector.

    ``Layers`` are objects where an engine was built to tell everything (``ProfilingVerbosity.DETAILED``), else names.

    Raises:
        BackendUnavailableError: It is of another form.
    """
    try:
        return tuple(_read_layer(one) for one in json.loads(text, strict=False)["Layers"])
    except (ValueError, KeyError, TypeError) as error:
        raise BackendUnavailableError(
            f"TensorRT's inspector tells the layers in a form that is not known ({describe_reason(error)})"
        ) from error


def _read_layer(values: Any) -> EngineLayer:
    if isinstance(values, str):
        return EngineLayer(values, "", (), ())
    formats = tuple(str(output.get("Format/Datatype", "")) for output in values.get("Outputs", ()))
    return EngineLayer(
        str(values["Name"]), str(values.get("LayerType", "")), parse_metadata(values.get("Metadata", "")), formats
    )
