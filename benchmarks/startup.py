"""What it costs to begin: importing and creating a model against timm's own, and `zoo --help`; in fresh processes.

python -m benchmarks.startup [--pairs 21]
"""

import argparse
import subprocess
import sys

from benchmarks.pairs import ratio, told

OURS = "import zoo; zoo.create_model('unet', encoder='resnet34')"
THEIRS = "import timm; timm.create_model('resnet34')"


def python(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=21)
    args = parser.parse_args()
    print(
        told("import and create, ours / timm's", ratio(lambda: python(OURS), lambda: python(THEIRS), args.pairs), 1.1)
    )
    figures = ratio(
        lambda: subprocess.run([sys.executable, "-m", "zoo", "--help"], check=True, capture_output=True),
        lambda: python("pass"),
        args.pairs,
    )
    print(f"zoo --help: {figures['ours_s'] * 1e3:.0f} ms (python itself {figures['theirs_s'] * 1e3:.0f} ms)")


if __name__ == "__main__":
    main()
