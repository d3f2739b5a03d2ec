"""Decoders: features -> outputs. Importing this package registers the built-in ones."""

import zoo.decoders.smp  # noqa: F401
from zoo.decoders.linear import Linear
from zoo.decoders.reverse_attention import ReverseAttention
from zoo.decoders.self_guided import SelfGuided
from zoo.decoders.unet import Unet
from zoo.decoders.window_upsample import WindowUpsample

__all__ = ["Linear", "ReverseAttention", "SelfGuided", "Unet", "WindowUpsample"]
