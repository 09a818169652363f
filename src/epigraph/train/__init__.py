"""Recipes, the loop, scores and baselines."""
