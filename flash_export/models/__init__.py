"""The model families: configs, reference modules, checkpoints."""
