"""``python -m flash_export``: the command ``flash-export``, of the Python that is named."""

from flash_export.cli.main import main

main(prog_name="flash-export")
