"""Calibration: whether what a model calls 80 % likely is right in 80 % of the pixels.

Source: expected calibration error, Guo et al. 2017, arXiv 1706.04599, section 2.
"""

from typing import Any

import numpy as np

from zoo.metrics.counts import Array

STEPS = 1000  # confidences are counted in steps of 1/1000, whole numbers that add up exactly over processes
BINS = 10


def reliability(histogram: Array, bins: int = BINS) -> dict[str, Any]:
    """The bins of a reliability diagram, and the expected calibration error.

    histogram: counts (STEPS + 1, 2) of wrong and right decisions by confidence, to the nearest step. Gives `pixels`,
    `confidence` (mean) and `right` (share), a list for each of the equally wide bins, null in empty ones; and `ece`,
    the mean distance of confidence and share over all pixels, null where there are none.
    """
    levels = np.arange(STEPS + 1)
    place = np.minimum(levels * bins // STEPS, bins - 1)
    pixels = np.bincount(place, weights=histogram.sum(axis=1), minlength=bins)
    confidence = np.bincount(place, weights=histogram.sum(axis=1) * levels / STEPS, minlength=bins)
    right = np.bincount(place, weights=histogram[:, 1], minlength=bins)
    total = pixels.sum()
    return {
        "pixels": [int(n) for n in pixels],
        "confidence": [float(c / n) if n else None for c, n in zip(confidence, pixels, strict=True)],
        "right": [float(r / n) if n else None for r, n in zip(right, pixels, strict=True)],
        "ece": float(np.abs(confidence - right).sum() / total) if total else None,
    }
