"""Tiles against one pass: time and peak memory, each in a process of its own.

python -m benchmarks.tiles [--side 2048] [--encoder resnet34] [--decoder unet] [--threads 2]
"""

import argparse
import json
import time

import numpy as np
import torch

import zoo
from benchmarks.pairs import grown, peak_memory


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--side", type=int, default=2048)
    parser.add_argument("--encoder", default="resnet34")
    parser.add_argument("--decoder", default="unet")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory is not None:
        print(measured(args.encoder, args.decoder, args.side, args.threads, args.memory))
        return
    settings = [f"--{key}={value}" for key, value in vars(args).items() if value is not None]
    whole = peak_memory("benchmarks.tiles", *settings, "--memory=0")
    quarter = int(whole["MiB"] * 2**20 / 4)
    tiled = peak_memory("benchmarks.tiles", *settings, f"--memory={quarter}")
    print(
        f"{args.encoder} + {args.decoder}, {args.side}x{args.side}: whole {whole['MiB']:.0f} MiB {whole['s']:.1f} s;"
        f" tiled with memory={quarter / 2**20:.0f} MiB: {tiled['MiB']:.0f} MiB {tiled['s']:.1f} s;"
        f" memory {tiled['MiB'] / whole['MiB']:.3f}, time {tiled['s'] / whole['s']:.2f}"
    )


def measured(encoder: str, decoder: str, side: int, threads: int, memory: int) -> str:
    """Peak memory beyond the model in MiB, and seconds, as JSON; 0 is whole."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = zoo.create_model(decoder, encoder=encoder, num_classes=2).eval()
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    model.predict(image[:64, :64])
    start = time.perf_counter()
    found = json.loads(grown(lambda: model.predict(image, memory=memory or 10**13)))
    return json.dumps({**found, "s": time.perf_counter() - start})


if __name__ == "__main__":
    main()
