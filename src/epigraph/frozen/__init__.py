"""The frozen base models: the only package that imports transformers."""
