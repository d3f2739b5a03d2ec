"""What a frozen encoder saves: time and peak memory of a training step, frozen against trained, same weights.

python -m benchmarks.frozen [--threads 2] [--pairs 11] [--size 224] [--batch 4]
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch

import zoo
from benchmarks.pairs import grown, peak_memory, ratio

MODELS = (("vit_small_patch14_dinov2", "linear"), ("resnet34", "unet"))


def step(encoder: str, decoder: str, frozen: bool) -> Callable[[int, int], None]:
    """A training step (batch, size) with the task's loss and AdamW, whose state its first call makes."""
    torch.manual_seed(0)
    model = zoo.create_model(encoder={"name": encoder, "frozen": frozen}, decoder=decoder)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def run(batch: int, size: int) -> None:
        image, mask = torch.rand(batch, 3, size, size), torch.randint(2, (batch, size, size))
        model.task.loss(model(image), {"image": image, "mask": mask})["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def memory(encoder: str, decoder: str, frozen: bool, batch: int, size: int) -> str:
    step(encoder, decoder, frozen)(2, 56)  # first: what the libraries load when they are first used is nobody's
    return grown(partial(step(encoder, decoder, frozen), batch, size))  # with the weights


def compare(encoder: str, decoder: str, batch: int, size: int, pairs: int, threads: int) -> None:
    frozen, trained = (partial(step(encoder, decoder, frozen), batch, size) for frozen in (True, False))
    found = ratio(frozen, trained, pairs)
    print(
        f"{encoder} + {decoder}, batch {batch}, {size}x{size}, time of a step, frozen / trained:"
        f" {found['ours_s'] * 1e3:.0f} / {found['theirs_s'] * 1e3:.0f} ms"
        f" = {found['ratio']:.3f} [{found['low']:.3f}, {found['high']:.3f}] n={found['n']}"
    )
    settings = ["--threads", str(threads), "--batch", str(batch), "--size", str(size)]
    a, b = (
        statistics.median(
            peak_memory("benchmarks.frozen", *settings, "--memory", encoder, decoder, which)["MiB"] for _ in range(3)
        )
        for which in ("frozen", "trained")
    )
    print(
        f"{encoder} + {decoder}, peak memory of model and step, median of 3 processes, frozen / trained:"
        f" {a:.0f} / {b:.0f} MiB = {a / b:.3f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=11)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory:
        encoder, decoder, which = args.memory
        print(memory(encoder, decoder, which == "frozen", args.batch, args.size))
        return

    for encoder, decoder in MODELS:
        compare(encoder, decoder, args.batch, args.size, args.pairs, args.threads)


if __name__ == "__main__":
    main()
