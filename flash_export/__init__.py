"""Take trained FLASH models from PyTorch to ONNX to TensorRT, and prove that they are still the same model.

The names below are the public API. They are imported on first use, so that ``import flash_export`` loads neither
PyTorch nor ONNX. Nothing at all is imported here: a command is still to take the current folder, which may be a bundle,
off the import path.
"""

TYPE_CHECKING = False  # type checkers take it for that of typing

if TYPE_CHECKING:
    from flash_export.bundle.bundle import Bundle as Bundle
    from flash_export.config import BuildOptions as BuildOptions
    from flash_export.config import ExportOptions as ExportOptions
    from flash_export.config import QuantizeOptions as QuantizeOptions
    from flash_export.doctor import diagnose as diagnose
    from flash_export.errors import FlashExportError as FlashExportError
    from flash_export.exporters.engine import build_engine as build_engine
    from flash_export.exporters.engine_report.report import report_engine as report_engine
    from flash_export.exporters.export import export_onnx as export_onnx
    from flash_export.exporters.inspection import inspect_path as inspect_path
    from flash_export.generation.batcher import Batcher as Batcher
    from flash_export.generation.batcher import Request as Request
    from flash_export.generation.generate import Generator as Generator
    from flash_export.generation.sampling import SamplingOptions as SamplingOptions
    from flash_export.generation.state import State as State
    from flash_export.limits import Tolerance as Tolerance
    from flash_export.models.checkpoint import load_checkpoint as load_checkpoint
    from flash_export.models.flash import FlashConfig as FlashConfig
    from flash_export.models.flash import FlashModel as FlashModel
    from flash_export.models.gau import GauConfig as GauConfig
    from flash_export.models.gau import GauModel as GauModel
    from flash_export.quantization.quantize import quantize_bundle as quantize_bundle
    from flash_export.runtime.engine_check import check_engine as check_engine
    from flash_export.serving.options import TritonOptions as TritonOptions
    from flash_export.serving.repository import write_repository as write_repository
    from flash_export.validators.bisect.bisect import BisectOptions as BisectOptions
    from flash_export.validators.bisect.bisect import bisect_bundle as bisect_bundle
    from flash_export.validators.ranges.profile import RangesOptions as RangesOptions
    from flash_export.validators.ranges.profile import profile_ranges as profile_ranges
    from flash_export.validators.report.comparison import compare_reports as compare_reports
    from flash_export.validators.report.files import read_report as read_report
    from flash_export.validators.trade_off.compare import CompareOptions as CompareOptions
    from flash_export.validators.trade_off.compare import compare_bundles as compare_bundles
    from flash_export.validators.validate import validate_bundle as validate_bundle
    from flash_export.validators.validation_options import ValidationOptions as ValidationOptions
    from flash_export.version import __version__ as __version__

_MODULES = {
    "__version__": "flash_export.version",
    "Batcher": "flash_export.generation.batcher",
    "BisectOptions": "flash_export.validators.bisect.bisect",
    "Bundle": "flash_export.bundle.bundle",
    "BuildOptions": "flash_export.config",
    "CompareOptions": "flash_export.validators.trade_off.compare",
    "ExportOptions": "flash_export.config",
    "FlashConfig": "flash_export.models.flash",
    "FlashExportError": "flash_export.errors",
    "FlashModel": "flash_export.models.flash",
    "GauConfig": "flash_export.models.gau",
    "GauModel": "flash_export.models.gau",
    "Generator": "flash_export.generation.generate",
    "Request": "flash_export.generation.batcher",
    "QuantizeOptions": "flash_export.config",
    "RangesOptions": "flash_export.validators.ranges.profile",
    "SamplingOptions": "flash_export.generation.sampling",
    "State": "flash_export.generation.state",
    "Tolerance": "flash_export.limits",
    "TritonOptions": "flash_export.serving.options",
    "ValidationOptions": "flash_export.validators.validation_options",
    "bisect_bundle": "flash_export.validators.bisect.bisect",
    "build_engine": "flash_export.exporters.engine",
    "check_engine": "flash_export.runtime.engine_check",
    "compare_bundles": "flash_export.validators.trade_off.compare",
    "compare_reports": "flash_export.validators.report.comparison",
    "diagnose": "flash_export.doctor",
    "export_onnx": "flash_export.exporters.export",
    "inspect_path": "flash_export.exporters.inspection",
    "load_checkpoint": "flash_export.models.checkpoint",
    "profile_ranges": "flash_export.validators.ranges.profile",
    "quantize_bundle": "flash_export.quantization.quantize",
    "read_report": "flash_export.validators.report.files",
    "report_engine": "flash_export.exporters.engine_report.report",
    "validate_bundle": "flash_export.validators.validate",
    "write_repository": "flash_export.serving.repository",
}
__all__ = [*_MODULES]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in _MODULES:
        raise AttributeError(f"module 'flash_export' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_MODULES[name]), name)
