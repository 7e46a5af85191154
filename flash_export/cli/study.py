"""``flash-export study``: the paper's systems at equal size, exported, validated, scored and timed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from flash_export.cli.options import REPORT, output_options

if TYPE_CHECKING:
    from flash_export.cli.output import Output
    from flash_export.study.results import Study


@click.command("study", short_help="Compare systems of the paper, trained alike and deployed.")
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "folder", type=click.Path(path_type=Path), required=True, help="Folder of the study; resumed."
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Tasks side by side; those that time run alone.",
)
@click.option("--ray", metavar="ADDRESS", help="Run on this Ray cluster in place of --jobs; local starts one.")
@output_options(*REPORT, verdict=lambda study: study.complete)
def study_command(output: Output, config: Path, folder: Path, jobs: int, ray: str | None) -> Study:
    """Compare the systems of the paper at equal size: train, export, validate, score and time each as deployed.

    CONFIG is a JSON file; {} compares all. What is there already is not done again, so that the same command
    goes on with an interrupted study. The folder gets report.html and report.json.

    Exit code 0 if every model was validated, scored and timed, 1 if not, 2 for bad input.

    \b
    Examples:
      flash-export study study.json -o study/
      flash-export study study.json -o study/ --jobs 2
      flash-export study study.json -o /shared/study/ --ray 10.0.0.7:6379
      flash-export study study.json -o study/ --json - | jq '.crossings'
    """
    from flash_export.files import write_file
    from flash_export.locks import lock_folder
    from flash_export.printable import encode_text
    from flash_export.report.html import render_html
    from flash_export.study.comparing import plan_study
    from flash_export.study.config import read_config
    from flash_export.study.executors import LocalExecutor, RayExecutor
    from flash_export.study.page import describe_study
    from flash_export.study.results import collect_study
    from flash_export.study.schedule import prepare_folder, run_tasks

    study_config = read_config(config)
    planned = plan_study(study_config, config.parent)
    prepare_folder(folder, study_config)
    with lock_folder(folder, timeout_s=0):
        executor = RayExecutor(ray) if ray is not None else LocalExecutor(jobs, folder / "logs")
        with output.show_progress("Study") as progress:
            found = run_tasks(study_config, planned, folder, config.parent, executor, progress)
        study = collect_study(study_config, found)
        document = describe_study(study, str(folder))
        write_file(folder / "report.json", study.to_json().encode())
        write_file(folder / "report.html", encode_text(render_html(document)))
    output.show(document)
    output.echo(f"Report: {folder / 'report.html'}")
    return study
