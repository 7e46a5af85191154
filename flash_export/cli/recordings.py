"""``flash-export enhance`` and ``separate``: an exported model on recordings, from audio file to audio file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from flash_export.cli.options import REPORT, output_options
from flash_export.report.document import Document, Pairs, Section

if TYPE_CHECKING:
    from flash_export.audio.recordings import Processed
    from flash_export.cli.output import Output

BACKEND = click.option(
    "--backend",
    metavar="NAME",
    default="ort-cpu",
    show_default=True,
    help="ort-cpu, ort-cuda, ort-tensorrt, ort-tensorrt-rtx, openvino or trt.",
)
THREADS = click.option("--threads", type=int, help="CPU threads of one operator.")


@click.command("enhance", short_help="Clean the speech in a recording.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--window", "window_s", type=float, default=4.0, show_default=True, help="Seconds of a window.")
@BACKEND
@THREADS
@output_options(*REPORT)
def enhance_command(
    output: Output, bundle: Path, source: Path, target: Path, window_s: float, backend: str, threads: int | None
) -> Processed:
    """Write what is said in the recording SOURCE to the file TARGET, without the noise.

    BUNDLE is an export of MossFormer2_SE_48K. Any sample rate and number of channels is kept; each channel is processed
    alone. Recordings of up to 20 s are processed as a whole, longer ones in windows, in memory of a constant size.

    \b
    Examples:
      flash-export enhance BUNDLE noisy.wav clean.wav
      flash-export enhance BUNDLE noisy.flac clean.flac --backend openvino
    """
    from flash_export.audio.recordings import enhance
    from flash_export.audio.session import open_enhancer
    from flash_export.bundle.bundle import Bundle

    with open_enhancer(Bundle.open(bundle), backend, threads) as session, output.show_progress("Enhancing") as progress:
        result = enhance(session, source, target, backend=backend, window_s=window_s, progress=progress)
    output.show(describe_processed(result, "flash-export enhance"))
    return result


@click.command("separate", short_help="Tell the speakers of a recording apart.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder to write to.",
)
@click.option("--window", "window_s", type=float, default=2.0, show_default=True, help="Seconds of a window.")
@BACKEND
@THREADS
@output_options(*REPORT)
def separate_command(
    output: Output, bundle: Path, source: Path, folder: Path, window_s: float, backend: str, threads: int | None
) -> Processed:
    """Write what each speaker says in the recording SOURCE to a file of its own.

    BUNDLE is an export of a MossFormer2 that separates, such as MossFormer2_SS_16K. The files are called NAME_s1.wav
    and so on. Any sample rate and number of channels is kept; each channel is processed alone, in windows, in memory of
    a constant size.

    \b
    Examples:
      flash-export separate BUNDLE mix.wav -o speakers
      flash-export separate BUNDLE mix.wav -o speakers --window 8
    """
    from flash_export.audio.recordings import separate
    from flash_export.audio.session import open_separator
    from flash_export.bundle.bundle import Bundle

    with (
        open_separator(Bundle.open(bundle), backend, threads) as session,
        output.show_progress("Separating") as progress,
    ):
        result = separate(session, source, folder, backend=backend, window_s=window_s, progress=progress)
    output.show(describe_processed(result, "flash-export separate"))
    return result


def describe_processed(result: Processed, command: str) -> Document:
    """Return the report of what was made of a recording."""
    pairs = [("file", name) for name in result.files]
    pairs += [
        ("length", f"{result.seconds:.1f} s"),
        ("took", f"{result.elapsed_s:.1f} s on {result.backend}, {result.real_time_factor:.2f} times the length"),
    ]
    return Document(
        f"{result.source} in windows of {result.window_s:g} s", command, sections=(Section("", Pairs(tuple(pairs))),)
    )
