"""Every system of the study at its size: exported to 4,096 tokens, validated over the whole plan, and compiled.

    python benchmarks/systems.py --json FILE [--plan quick] [--quick]

Weights are random: none of this depends on them. Each system is validated on onnxruntime and on what TensorRT's parser
makes of the graph, over all lengths of the plan (``full``: up to the longest that the graph takes; ``quick``: to 1,024
tokens; ``--quick`` is that of three systems exported to 512); a check that is skipped is one that did not pass. A
result is kept in FILE when it is there, and what FILE has is not measured again.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from flash_export import BuildOptions, build_engine, export_onnx
from flash_export.config import TENSORRT_RTX, ExportOptions
from flash_export.exporters.analysis import analyse_graph
from flash_export.study.config import ModelEntry, list_default_models
from flash_export.study.measuring import validate_bundle_on
from flash_export.study.objective import VOCAB_SIZES
from flash_export.study.systems import SYSTEMS, Size, build_config, count_parameters
from flash_export.study.training import build_model
from harness.report import make_parser

BACKENDS = ("ort-cpu", "trt-network")
MAX_SEQ_LEN, QUICK_SEQ_LEN = 4096, 512


def measure_system(entry: ModelEntry, folder: Path, max_seq_len: int, plan: str) -> dict[str, object]:
    """Export, validate and compile one model."""
    vocab_size = VOCAB_SIZES[entry.objective]
    config = build_config(entry.system, Size(max_positions=max_seq_len), vocab_size=vocab_size, causal=entry.is_causal)
    build_model(config, entry.seed).save_pretrained(folder / "checkpoint")
    bundle = export_onnx(
        folder / "checkpoint", folder / "bundle", options=ExportOptions(max_seq_len=max_seq_len, graphs=("forward",))
    )
    checks = {
        backend: validate_bundle_on(bundle.path, backend, plan, max_seq_len, None, lambda _: None)
        for backend in BACKENDS
    }
    engine = build_engine(bundle, options=BuildOptions(flavour=TENSORRT_RTX.name)).engine
    return {
        "title": SYSTEMS[entry.system].title,
        "objective": entry.objective,
        "plan": plan,
        "parameters": count_parameters(config).constant,
        "nodes": analyse_graph(bundle.get_graph_path()).num_nodes,
        "checks": checks,
        "engine_mib": round(engine.size_bytes / 2**20, 1),
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure what is not in the file yet, and say what passed."""
    parser = make_parser(__doc__)
    parser.add_argument("--plan", choices=("quick", "full"), default="full", help="which lengths are tried")
    options = parser.parse_args(arguments)
    plan = "quick" if options.quick else options.plan
    max_seq_len = QUICK_SEQ_LEN if options.quick else MAX_SEQ_LEN
    path = options.json
    results = json.loads(path.read_text()) if path is not None and path.exists() else {}
    for entry in list_default_models()[:: 5 if options.quick else 1]:
        if entry.name not in results:
            with tempfile.TemporaryDirectory() as folder:
                results[entry.name] = measure_system(entry, Path(folder), max_seq_len, plan)
            if path is not None:
                path.write_text(json.dumps(results, indent=2) + "\n")
        checks = results[entry.name]["checks"]
        said = ", ".join(f"{name} {one['passed']} passed, {one['failed']} failed" for name, one in checks.items())
        print(f"{entry.name}: {said}", flush=True)
    if not all(check["is_right"] for one in results.values() for check in one["checks"].values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
