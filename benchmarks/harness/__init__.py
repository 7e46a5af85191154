"""What the benchmarks share: models and peers, timing in turn, memory, planted faults, tables and JSON."""
