"""Serving a bundle: model repositories for NVIDIA's Triton Inference Server, and the models that run in it."""
