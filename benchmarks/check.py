"""`zoo data check` on ten thousand pairs: seconds and memory, in a process of its own.

python -m benchmarks.check [--pairs 10000] [--root FOLDER]      the folder is made where it is missing
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image


def make(root: Path, pairs: int) -> None:
    """JPEG photographs' size and noise, 320x240, each its own; masks of three classes."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    for i in range(pairs):
        random = np.random.default_rng(i)
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        image = np.asarray(coarse.resize((320, 240), Image.Resampling.BICUBIC), np.int16)
        image = (image + random.integers(-8, 9, image.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"{i:05}.jpg", quality=90)
        mask = Image.fromarray(random.integers(0, 3, (6, 8), dtype=np.uint8)).resize(
            (320, 240), Image.Resampling.NEAREST
        )
        mask.save(root / "masks" / f"{i:05}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--root", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = args.root or Path(temporary) / "photos"
        if not root.exists():
            make(root, args.pairs)
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "zoo", "data", "check", str(root)], capture_output=True, text=True)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print("\n".join(done.stdout.splitlines()[:6] + done.stderr.splitlines()[:3]))
    print(f"{args.pairs} pairs checked in {seconds:.1f} s, exit code {done.returncode}, {peak:.0f} MiB at most")


if __name__ == "__main__":
    main()
