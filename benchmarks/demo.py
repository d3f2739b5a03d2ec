"""The demo's held-out mean IoU with and without ImageNet weights, several seeds.

python -m benchmarks.demo [--seeds 0 1 2]
"""

import argparse
import json
import statistics

from zoo.training.recipe import load_recipe
from zoo.training.run import train


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    for weights in ("pypi", "null"):
        found = []
        for seed in args.seeds:
            keys = ["--seed", str(seed), "--model.encoder_weights", weights, "--data.root", "runs/demo_data"]
            run = train(load_recipe("segmentation/demo", [*keys, "--name", f"benchmarks/demo_{weights}"]))
            found.append(json.loads((run / "test.json").read_text())["test"]["mean_iou"])
        spread = f" +- {statistics.stdev(found):.4f}" if len(found) > 1 else ""
        told = ", ".join(f"{score:.4f}" for score in found)
        print(f"encoder_weights {weights}: test mean IoU {statistics.mean(found):.4f}{spread} (n={len(found)}: {told})")


if __name__ == "__main__":
    main()
