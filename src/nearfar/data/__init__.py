"""Data: where they come from (``sources``), and how batches (``samplers``) and pairs (``datasets``) are drawn."""
