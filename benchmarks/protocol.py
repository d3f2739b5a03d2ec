"""What PraNet's protocol costs per image, and what its histograms save over 256 passes; one thread.

python -m benchmarks.protocol [--pairs 7]
"""

import argparse
from functools import partial

import numpy as np
import torch

from benchmarks.pairs import ratio
from zoo.metrics.pranet import EPS, Map, Mask, PraNetMetrics, dice_iou_e, written

SIZES = ((288, 384), (576, 768), (966, 1225))  # of CVC-ClinicDB, some of Kvasir-SEG, ETIS-LaribPolypDB


def passes(prediction: Map, truth: Mask) -> None:
    """Dice, IoU and E as the toolbox computes them: all pixels anew for each threshold."""
    g = truth - truth.mean()
    for k in range(255, -1, -1):
        on = prediction >= k / 255
        hit = (on & truth).sum()
        _ = 2 * hit / (on.sum() + truth.sum()), hit / (on | truth).sum()
        b = on - on.mean()
        _ = ((2 * g * b / (g * g + b * b + EPS) + 1) ** 2 / 4).sum() / (truth.size - 1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for height, width in SIZES:
        rng = np.random.default_rng(0)
        y, x = np.mgrid[:height, :width]
        truth = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (height / 5) ** 2
        found = np.clip(0.5 * truth + 0.5 * rng.random((height, width)), 0, 1)
        answer = {"probabilities": torch.from_numpy(found)[None, None]}
        whole = partial(PraNetMetrics().update, answer, {"mask": torch.from_numpy(truth).long()[None]})
        slow = partial(passes, written(found), truth)
        curves = ratio(partial(dice_iou_e, written(found), truth), slow, args.pairs, warmup=1)
        every = ratio(whole, slow, args.pairs, warmup=1)
        print(
            f"{height}x{width}: Dice, IoU and E from histograms {curves['ours_s'] * 1e3:.1f} ms, in 256 passes"
            f" {curves['theirs_s'] * 1e3:.0f} ms = {curves['ratio']:.4f} [{curves['low']:.4f}, {curves['high']:.4f}]"
            f" n={curves['n']}; the whole protocol {every['ours_s'] * 1e3:.1f} ms an image",
            flush=True,
        )


if __name__ == "__main__":
    main()
