"""Training: from a configuration to a run folder, and the one loop that comparisons run too."""
