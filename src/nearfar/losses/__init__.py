"""Losses, one file a family: each a pure function, a thin module, and a row of the table."""
