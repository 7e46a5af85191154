"""What a product can be computed in, one scheme per file; ``registry.py`` lists them."""
