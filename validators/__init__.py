"""Proving that an exported model is the model: accuracy, latency and what they mean, over a range of lengths."""
