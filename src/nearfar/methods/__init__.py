"""Methods: what a batch is turned into, and what is asked of its embeddings."""
