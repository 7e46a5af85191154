"""A folder that runs a model without PyTorch and without this package: graphs, and a client for each plain runtime."""
