"""Generating text: prefill, decode, the state between them, sampling."""
