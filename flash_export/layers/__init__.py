"""The small pieces that the reference models are made of, one idea a file."""
