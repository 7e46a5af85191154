"""From the checkpoints of other libraries to our configs and tensors, one file per library."""
