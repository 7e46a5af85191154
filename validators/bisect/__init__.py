"""Finding the first quantity inside a model that an exported graph computes wrongly."""
