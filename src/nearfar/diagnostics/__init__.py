"""What embeddings look like: alignment, uniformity, spectrum, collapse."""
