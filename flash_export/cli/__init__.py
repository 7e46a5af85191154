"""Commands: parse, call the library, print, set the exit code."""
