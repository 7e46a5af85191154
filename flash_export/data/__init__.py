"""What models are fed with: batches, and the sources that give them."""
