"""U-Net against segmentation_models_pytorch's, same weights: forward, training step, what `predict` runs, memory.

python -m benchmarks.unet [--threads 2] [--pairs 21] [--size 512]
"""

import argparse
import statistics

import segmentation_models_pytorch as smp
import torch
from torch.utils.flop_counter import FlopCounterMode

import zoo
from benchmarks.pairs import grown, peak_memory, ratio, told
from zoo.inference.folding import faster

ENCODERS = ("resnet34", "resnet50")


def models(encoder: str) -> tuple[zoo.Model, torch.nn.Module]:
    """Ours with theirs' weights, and theirs."""
    torch.manual_seed(0)
    theirs = smp.Unet(encoder, encoder_weights=None)
    ours = zoo.create_model("unet", encoder=encoder, mean=[0, 0, 0], std=[1, 1, 1])
    ours.load_state_dict(zoo.convert_weights("unet", theirs.state_dict(), encoder=encoder))
    return ours, theirs


def step(model: torch.nn.Module, image: torch.Tensor) -> None:
    """Forward and backward of one training step, without an optimiser."""
    out = model(image)
    (out["logits"] if isinstance(out, dict) else out).mean().backward()
    model.zero_grad(set_to_none=True)


def memory(which: str, encoder: str, mode: str, size: int) -> str:
    torch.manual_seed(0)
    build = {
        "ours": lambda: zoo.create_model("unet", encoder=encoder, mean=[0, 0, 0], std=[1, 1, 1]),
        "theirs": lambda: smp.Unet(encoder, encoder_weights=None),
    }
    model = build[which]()
    image = torch.rand(1 if mode == "eval" else 2, 3, size, size)
    model.train(mode == "train")
    small = torch.rand(2, 3, 64, 64)  # first: what the libraries load when they are first used is nobody's
    if mode == "eval":
        with torch.inference_mode():
            model(small)
            return grown(lambda: model(image))
    step(model, small)
    return grown(lambda: step(model, image))


def compare(encoder: str, size: int, pairs: int) -> None:
    ours, theirs = models(encoder)
    ours.eval(), theirs.eval()
    image = torch.rand(1, 3, size, size)
    with torch.inference_mode():
        scale = theirs(image).abs().max()
        off = (ours(image)["logits"] - theirs(image)).abs().max() / scale
        print(f"{encoder}: off by {off:.1e} of the largest logit, {flops(ours, image)} / {flops(theirs, image)} GFLOPs")
        print(told(f"{encoder} eval forward", ratio(lambda: ours(image), lambda: theirs(image), pairs), 1.02))
        fast = faster(ours, torch.rand(1, 3, 64, 96))
        last = image.contiguous(memory_format=torch.channels_last)
        off = (fast(last)["logits"] - theirs(image)).abs().max() / scale
        figures = ratio(lambda: fast(last), lambda: theirs(image), pairs)
        print(told(f"{encoder} what predict runs (off by {off:.1e})", figures, 0.9))
    ours.train(), theirs.train()
    batch = torch.rand(2, 3, size, size)
    figures = ratio(lambda: step(ours, batch), lambda: step(theirs, batch), pairs)
    print(told(f"{encoder} training step, batch 2", figures, 1.05))
    for mode in ("eval", "train"):
        a, b = (
            statistics.median(
                peak_memory("benchmarks.unet", "--size", str(size), "--memory", which, encoder, mode)["MiB"]
                for _ in range(5)
            )
            for which in ("ours", "theirs")
        )
        print(
            f"{encoder} {mode} peak memory, median of 5 processes: {a:.0f} / {b:.0f} MiB = {a / b:.3f}; target <= 1.02",
            flush=True,
        )


def flops(model: torch.nn.Module, image: torch.Tensor) -> str:
    with FlopCounterMode(display=False) as counter:
        model(image)
    return f"{counter.get_total_flops() / 1e9:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=21)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory:
        print(memory(*args.memory, size=args.size))
        return

    for encoder in ENCODERS:
        compare(encoder, args.size, args.pairs)


if __name__ == "__main__":
    main()
