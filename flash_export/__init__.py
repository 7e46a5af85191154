"""Take trained FLASH models from PyTorch to ONNX to TensorRT, and prove that they are still the same model."""

__version__ = "0.1.0"
