"""How good embeddings are: neighbours, retrieval, verification, clusters, probes. Pure functions on tensors."""
