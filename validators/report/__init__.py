"""Rendering a validation report: a terminal table, JSON and one HTML file. Nothing here measures anything."""
