"""FLASH on one GPU, side by side with what a user would run in its place."""
