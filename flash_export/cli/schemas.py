"""The result of each command, and where its JSON Schema lies: ``flash_export/schemas``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "schemas"
# Written by hand, because it says more than types do.
VALIDATE = "validate"


@dataclass(frozen=True)
class Outcome:
    """What one of two validations said."""

    bundle: str
    passed: bool


def make_schemas() -> dict[str, dict[str, Any]]:
    """Return the schemas that follow from the results' types, by the name of their files."""
    from flash_export.audio.recordings import Processed
    from flash_export.bundle.manifest import EngineManifest
    from flash_export.bundle.quantization_record import QuantizationRecord
    from flash_export.cli.demo import Demonstration
    from flash_export.cli.engine_document import Engines
    from flash_export.cli.generate import Continuation
    from flash_export.doctor import Diagnosis
    from flash_export.exporters.engine_report.results import EngineReport
    from flash_export.exporters.inspection import Inspection
    from flash_export.exporters.profile_use import ProfileUse
    from flash_export.generation.prompt_records import Answers
    from flash_export.models.catalogue import Catalogue
    from flash_export.runtime.engine_check import EngineStatus
    from flash_export.schema import make_schema
    from flash_export.serving.repository import Repository
    from flash_export.standalone.standalone import Standalone
    from flash_export.study.results import Study
    from flash_export.study.tuning_results import Tuning
    from flash_export.validators.bisect.results import BisectReport
    from flash_export.validators.ranges.results import RangesReport
    from flash_export.validators.report.comparison import Comparison
    from flash_export.validators.results import ValidationReport
    from flash_export.validators.trade_off.results import TradeOff

    results: dict[str, tuple[type, dict[str, Any]]] = {
        "doctor": (Diagnosis, {"can_export": bool}),
        "demo": (Demonstration, {"passed": bool, "bundle": str, "report": dict[str, Any]}),
        "families": (Catalogue, {}),
        "inspect": (Inspection, {}),
        "report": (Comparison, {"passed": bool, "before": Outcome, "after": Outcome}),
        "bisect": (BisectReport, {"clean": bool, "finding": str}),
        "profile-ranges": (RangesReport, {}),
        "quantize": (QuantizationRecord, {}),
        "compare": (TradeOff, {"complete": bool}),
        "tune": (Tuning, {}),
        "study": (Study, {"complete": bool}),
        "trt": (Engines, {}),
        "engine-report": (EngineReport, {}),
        "generate": (Continuation, {}),
        "generate-prompts": (Answers, {}),
        "enhance": (Processed, {"real_time_factor": float}),
        "separate": (Processed, {"real_time_factor": float}),
        "standalone": (Standalone, {}),
        "triton": (Repository, {}),
    }
    shown: tuple[type, ...] = (EngineManifest, EngineStatus, ProfileUse, ValidationReport)
    names = {one.__name__: one for one in shown}
    return {name: make_schema(f"flash-export {name}", kind, extra, names) for name, (kind, extra) in results.items()}


def format_schema(schema: dict[str, Any]) -> str:
    """Return the text of a schema's file."""
    return json.dumps(schema, indent=2) + "\n"
