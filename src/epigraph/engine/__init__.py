"""Where trained virtual tokens answer requests of many users at once. It never asks which method made them."""
