"""The version, which whoever is below the public API asks for here."""

__version__ = "0.1.0"
