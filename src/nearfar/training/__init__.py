"""Training: the loop that ``compare`` runs."""
