"""Writing a bundle of the same model whose graphs are quantized: from the graphs of the bundle that there is."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

from flash_export.bundle.bundle import GRAPH_FILE, MANIFEST_FILE, QUANTIZATION_FILE, Bundle
from flash_export.config import WEIGHTS_FILE
from flash_export.exporters.output import check_graphs, read_versions
from flash_export.exporters.quantization.source import SourceGraph
from flash_export.exporters.self_description import describe_in_graph
from flash_export.exporters.serialization import SplitModels, write_models
from flash_export.files import hash_folder, replace_folder

if TYPE_CHECKING:
    from pathlib import Path

    from flash_export.bundle.manifest import GraphSpec
    from flash_export.exporters.quantization.recipe import QuantizationRecipe, Scheme


def describe_quantized(bundle: Bundle, scheme: Scheme) -> dict[str, GraphSpec]:
    """Return the contracts of the quantized graphs, at an opset that the scheme has operators in."""
    return {
        name: replace(graph, precision=scheme.name, unquantized=graph.precision, opset=max(graph.opset, scheme.opset))
        for name, graph in bundle.manifest.graphs.items()
    }


def write_quantized(
    bundle: Bundle,
    output: Path,
    recipe: QuantizationRecipe,
    record: str,
    *,
    exact: SourceGraph | None = None,
    force: bool = False,
) -> Bundle:
    """Quantize every graph of a bundle, and keep all else that it holds of the model.

    Args:
        bundle: The bundle.
        output: Folder to create.
        recipe: What is quantized.
        record: Text of ``quantization.json``: how the recipe came about.
        exact: The forward graph in fp32, where the bundle is half.
        force: Replace a bundle that is there, with its engines and reports.

    Returns:
        The new bundle, opened and checked.

    Raises:
        BundleError: ``output`` cannot be written; it is then as it was before.
        GraphError: A graph breaks one of its promises.
    """
    before, graphs = bundle.manifest, describe_quantized(bundle, recipe.scheme)
    data_file = f"{GRAPH_FILE}.data"
    replaced = {data_file, *(graph.file for graph in graphs.values())}
    with replace_folder(output, overwrite=force) as staging:
        for name in before.files.keys() - replaced:
            shutil.copyfile(bundle.path / name, staging / name)
        models = SplitModels(data_file)
        for name, graph in graphs.items():
            model = SourceGraph.read(bundle.get_graph_path(name), graph, exact).quantize(recipe)
            describe_in_graph(
                model,
                name,
                graph,
                before.interface,
                family=bundle.read_config()["model_type"],
                weights_sha256=before.files[WEIGHTS_FILE],
            )
            models.add(graph.file, model)
        check_graphs(models, graphs)
        write_models(models, staging)
        (staging / QUANTIZATION_FILE).write_text(record, encoding="utf-8")
        manifest = replace(before, versions=read_versions(), graphs=graphs, files=hash_folder(staging))
        (staging / MANIFEST_FILE).write_text(manifest.to_json(), encoding="utf-8")
    return Bundle.open(output)
