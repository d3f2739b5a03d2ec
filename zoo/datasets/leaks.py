"""Images of the training splits that lie, equal or nearly so, in a split that is tested on.

Near-identical by dHash (the signs of differences of neighbouring pixels of a 9x8 grey thumbnail, N. Krawetz 2013,
hackerfactor.com): files saved again, resized or slightly corrected, and neighbouring frames of a video.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NEAR = 4  # of 64 bits; on CamVid's frames, polyps and cells all pairs found were frames of one video
ALIKE = 0.95  # correlation of the thumbnails, so that equal signs of noise in flat pictures don't count
FLAT = 1.0  # grey levels of standard deviation below which a thumbnail shows nothing to compare
ROWS = 1024  # compared at once


@dataclass(frozen=True)
class Leak:
    """Image `index` is like image `other` of a later split; identical: byte by byte."""

    index: int
    other: int
    identical: bool


def find_leaks(splits: Sequence[int], tested: int, digests: Sequence[bytes], thumbs: np.ndarray) -> list[Leak]:
    """For each image of a split below `tested` its likest image in a later split, where that is like it.

    splits: each image's split, by number, in the order of training, validation, tests; tested: the first that is a test
    (images that two tests share are none's fault). digests: of the files; thumbs: (N, 8, 9).
    """
    order = np.asarray(splits)
    last: dict[bytes, int] = {}
    for index in np.argsort(order, kind="stable").tolist():
        last[digests[index]] = index
    found = {}
    for index in np.flatnonzero(order < tested).tolist():
        other = last[digests[index]]
        if order[other] > order[index]:
            found[index] = Leak(index, other, True)
    signs, pictures = _signs(thumbs), _standardised(thumbs)
    shown = thumbs.reshape(len(thumbs), 72).std(axis=1) >= FLAT
    for split in range(min(tested, int(order.max(initial=-1)))):
        rows, columns = np.flatnonzero((order == split) & shown), np.flatnonzero((order > split) & shown)
        if not len(columns):
            continue
        for start in range(0, len(rows), ROWS):
            some = rows[start : start + ROWS]
            near = signs[some] @ signs[columns].T >= 64 - 2 * NEAR
            likeness = np.where(near, pictures[some] @ pictures[columns].T, -1)
            best = likeness.argmax(axis=1)
            for row in np.flatnonzero(likeness[np.arange(len(some)), best] >= ALIKE):
                index = int(some[row])
                found.setdefault(index, Leak(index, int(columns[best[row]]), False))
    return [found[index] for index in sorted(found)]


def _signs(thumbs: np.ndarray) -> np.ndarray:
    """(N, 64) float32 of -1 and 1: the product of two rows is 64 minus twice the number of unlike bits."""
    brighter = thumbs[:, :, 1:] > thumbs[:, :, :-1]
    return np.where(brighter, np.float32(1), np.float32(-1)).reshape(len(thumbs), 64)


def _standardised(thumbs: np.ndarray) -> np.ndarray:
    """(N, 72) float32 rows of mean 0 and length 1: the product of two is their correlation."""
    flat: np.ndarray = thumbs.reshape(len(thumbs), 72).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    lengths: np.ndarray = np.linalg.norm(flat, axis=1, keepdims=True)
    flat /= np.maximum(lengths, np.float32(1e-6))
    return flat
