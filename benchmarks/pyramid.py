"""What an encoder costs beside timm's own net: creating it with the plan known, and its forward against features_only.

python -m benchmarks.pyramid [--pairs 21] [--threads 2] [--size 224]
"""

import argparse

import timm
import torch

from benchmarks.pairs import ratio, told
from zoo.encoders import create_encoder, plans
from zoo.encoders.timm import _plan

CREATED = "resnet34"
RUN = {
    "resnet50": (1, 2, 3, 4),
    "convnext_tiny": (0, 1, 2, 3),
    "vit_small_patch16_224": (2, 5, 8, 11),  # the blocks that ours takes; timm's default is the last three
}


def ours() -> None:
    """An encoder as a fresh process makes its first: the table is read, nothing is kept."""
    plans.table.cache_clear()
    _plan.cache_clear()
    create_encoder({"name": CREATED})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=21)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=224)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    figures = ratio(ours, lambda: timm.create_model(CREATED), args.pairs)
    print(told(f"create {CREATED}, ours / timm's", figures, 1.1))
    for name, taps in RUN.items():
        theirs = timm.create_model(name, features_only=True, out_indices=taps).eval()
        encoder = create_encoder({"name": name}).eval()
        image = torch.rand(1, 3, args.size, args.size)
        with torch.no_grad():
            figures = ratio(lambda e=encoder, x=image: e(x), lambda t=theirs, x=image: t(x), args.pairs)
        print(told(f"{name} forward, ours / features_only", figures, 1.03))


if __name__ == "__main__":
    main()
