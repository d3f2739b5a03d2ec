"""Weights and inputs of the parity vectors, drawn again instead of stored.

A tensor is fixed by its key, its shape and a seed: PCG64's raw stream, which NumPy promises never to change, seeded
with the key's CRC-32. The official networks were filled so and run once; their answers are kept beside this file.
"""

from collections.abc import Mapping, Sequence
from math import prod, sqrt
from zlib import crc32

import numpy as np


def uniform(key: str, shape: Sequence[int], low: float, high: float, seed: int = 0) -> np.ndarray:
    """float64 values in [low, high)."""
    stream = np.random.PCG64([crc32(key.encode()), seed]).random_raw(prod(shape))
    fraction = (np.asarray(stream, dtype=np.uint64) >> np.uint64(11)).astype(np.float64) / 2.0**53
    return (low + (high - low) * fraction).reshape(tuple(shape))


def tensor(key: str, shape: Sequence[int], seed: int = 0, gain: float = 1.0) -> np.ndarray:
    """One entry of a state_dict: kernels of variance gain**2 / fan_in, norms near identity, counters 0."""
    if key.endswith("num_batches_tracked"):
        return np.zeros(tuple(shape), dtype=np.int64)
    if key.endswith("running_var"):
        return uniform(key, shape, 0.5, 1.5, seed)
    if len(shape) > 1:
        bound = gain * sqrt(3.0 / prod(shape[1:]))
        return uniform(key, shape, -bound, bound, seed)
    return uniform(key, shape, *((0.5, 1.5) if key.endswith("weight") else (-0.2, 0.2)), seed)


def fill(shapes: Mapping[str, Sequence[int]], seed: int = 0, gain: float = 1.0) -> dict[str, np.ndarray]:
    """A whole state_dict from its keys and shapes."""
    return {key: tensor(key, shape, seed, gain) for key, shape in shapes.items()}


def image(key: str, shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """float64 values in [-1, 1): smooth waves plus noise, so that a wrong resize or padding shows."""
    *lead, height, width = shape
    planes = prod(lead)
    y, x = np.mgrid[:height, :width]
    waves = uniform(f"{key}/waves", (planes, 3), 0.5, 4.0, seed)
    smooth = [np.sin(a * 2 * np.pi * y / height + c) * np.cos(b * 2 * np.pi * x / width) for a, b, c in waves]
    noise = uniform(key, (planes, height, width), -0.3, 0.3, seed)
    return (0.7 * np.stack(smooth) + noise).reshape(tuple(shape))
