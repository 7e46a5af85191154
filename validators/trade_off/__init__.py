"""What bundles of one model cost and lose: size, latency, bits per byte, agreement and divergence side by side."""
