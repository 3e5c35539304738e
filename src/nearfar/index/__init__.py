"""Embed a data set, store the vectors, search and verify with them."""
