"""From a checkpoint to a bundle, and from a bundle to a TensorRT engine."""
