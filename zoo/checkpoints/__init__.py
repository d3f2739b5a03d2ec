"""Checkpoints: what is read, written and converted. Nothing here builds a model."""
