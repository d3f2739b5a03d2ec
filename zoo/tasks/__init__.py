"""Tasks: what goes in, what is learned and what comes out. Importing this registers the built-in ones."""

from zoo.tasks.segmentation import Segmentation

__all__ = ["Segmentation"]
