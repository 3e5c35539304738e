"""Data: where they come from (``open``, ``sources``), how batches (``loading``, ``samplers``), views and pairs are drawn."""
