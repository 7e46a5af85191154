"""Commands: parse, call the library, print, set the exit code.

``python -m`` and ``python -c`` put the current folder on the import path, and that may be a bundle. It is taken off
before the commands import anything.
"""

import sys

from flash_export.isolation import list_import_folders

sys.path[:] = list_import_folders()
