"""Intervals by the bootstrap over images: of a test's figures, and of the difference of two models on the same images.

An image is drawn whole, since its pixels resemble each other: n images are drawn from the n with replacement, their
counts added up, and the figures computed anew; an interval lies between percentiles of what came out. It tells how far
the figures depend on which images were tested, and nothing of another training's chance.
Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapters 6 and 13.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from zoo.metrics.counts import Array, Counts

RESAMPLES = 2000
SEED = 0
LEVEL = 0.95
FEW = 20  # images, below which percentile intervals are known to be too narrow
_AT_ONCE = 4_000_000  # draws held in memory


@dataclass(frozen=True)
class Interval:
    """A figure with the percentile interval of its resamples; nan where it is undefined, or there is but one image."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def intervals(counts: Counts, *, resamples: int = RESAMPLES, seed: int = SEED) -> dict[str, Interval]:
    """Each figure of the split with its 95 % interval."""
    drawn = [counts.resampled(weights) for weights in _draws(len(counts.images), resamples, seed)]
    return _summed_up(counts.resampled(np.ones((1, len(counts.images)))), drawn, len(counts.images))


def differences(one: Counts, other: Counts, *, resamples: int = RESAMPLES, seed: int = SEED) -> dict[str, Interval]:
    """`other` less `one`, figure by figure, on the same images in the same order, which are drawn for both at once."""
    if one.images != other.images:
        raise ValueError("paired differences need the same images in the same order")
    drawn = [_less(other, one, weights) for weights in _draws(len(one.images), resamples, seed)]
    return _summed_up(_less(other, one, np.ones((1, len(one.images)))), drawn, len(one.images))


def _less(other: Counts, one: Counts, weights: Array) -> dict[str, Array]:
    first, second = one.resampled(weights), other.resampled(weights)
    return {name: second[name] - first[name] for name in first}


def _draws(images: int, resamples: int, seed: int) -> Iterator[Array]:
    """How often each image is drawn, (some, n) at a time, `resamples` rows in all; the same for equal arguments."""
    rng = np.random.default_rng(seed)
    at_once = max(1, _AT_ONCE // max(1, images))
    for start in range(0, resamples if images else 0, at_once):
        size = min(at_once, resamples - start)
        yield rng.multinomial(images, np.full(images, 1 / images), size=size).astype(np.float64)


def _summed_up(whole: dict[str, Array], drawn: list[dict[str, Array]], images: int) -> dict[str, Interval]:
    found = {}
    for name, value in whole.items():
        values = np.concatenate([some[name] for some in drawn]) if drawn else np.empty(0)
        values = values[~np.isnan(values)]  # a class may be in no image of a resample
        tail = 100 * (1 - LEVEL) / 2
        bounds = np.percentile(values, [tail, 100 - tail]) if images > 1 and len(values) else (np.nan, np.nan)
        found[name] = Interval(float(value[0]), float(bounds[0]), float(bounds[1]))
    return found
