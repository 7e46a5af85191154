"""The bundle: the folder that an export writes, and everything that is a file of it."""
