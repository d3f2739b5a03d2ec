"""Decoders: features -> outputs. Importing this package registers the built-in ones."""

from zoo.decoders.reverse_attention import ReverseAttention
from zoo.decoders.unet import Unet

__all__ = ["ReverseAttention", "Unet"]
