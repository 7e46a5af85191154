"""Packaging: maps the top-level folders ``exporters`` and ``validators`` into the ``flash_export`` package.

Installed under their own names they would overwrite other packages (PyPI has a popular ``validators``).
"""

from setuptools import find_packages, setup

MAPPED = {"flash_export.exporters": "exporters", "flash_export.validators": "validators"}

packages = find_packages(include=["flash_export", "flash_export.*"], exclude=[f"{name}*" for name in MAPPED])
for name, folder in MAPPED.items():
    packages += [name, *(f"{name}.{child}" for child in find_packages(folder))]

setup(packages=packages, package_dir={"flash_export": "flash_export", **MAPPED})
