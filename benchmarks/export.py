"""Exported programs beside the model: ONNX Runtime, torch.compile and what `predict` runs, against the eager model.

python -m benchmarks.export [--threads 2] [--pairs 11] [--size 512] [--models resnet34 convnext_tiny]
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import zoo
from benchmarks.pairs import ratio

MODELS = ("resnet34", "convnext_tiny")


def ways(encoder: str, size: int, folder: str) -> tuple[Callable[[], Any], dict[str, Callable[[], Any]]]:
    """The eager model on one image, and the other ways to its raw outputs."""
    torch.manual_seed(0)
    model = zoo.create_model("unet", encoder=encoder).eval()
    image = torch.rand(1, 3, size, size)
    channels_last = image.contiguous(memory_format=torch.channels_last)
    folded, compiled = model.ready(model.device), torch.compile(model)
    found = {"predict (folded, channels-last)": lambda: folded(channels_last), "torch.compile": lambda: compiled(image)}
    for kind, name in (("onnx", "ONNX Runtime"), ("pt2", "exported program")):
        zoo.export(model, Path(folder) / f"model.{kind}")
        program = zoo.load_program(Path(folder) / f"model.{kind}", device="cpu")
        found[name] = lambda program=program: program(image)
    return lambda: model(image), found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=11)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--models", nargs="+", default=MODELS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for encoder in args.models:
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            with torch.inference_mode(False):
                eager, found = ways(encoder, args.size, folder)
            for name, way in found.items():
                r = ratio(way, eager, args.pairs)
                print(
                    f"unet/{encoder} {args.size}x{args.size}, batch 1: {name} / eager: {r['ratio']:.3f}"
                    f" [{r['low']:.3f}, {r['high']:.3f}] n={r['n']:.0f} ({r['ours_s'] * 1e3:.0f} ms /"
                    f" {r['theirs_s'] * 1e3:.0f} ms)",
                    flush=True,
                )


if __name__ == "__main__":
    main()
