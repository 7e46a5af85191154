"""What a product can be computed in, one scheme a file; ``registry.py`` lists them."""
