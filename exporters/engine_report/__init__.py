"""What TensorRT made of a graph: its layers, where they came from, how large they are, and what they cost."""
