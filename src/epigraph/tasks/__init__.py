"""Data, and what counts as good. No torch."""
