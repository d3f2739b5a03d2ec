"""Which decoder answers on which kind of encoder, at every size and number of channels: writes docs/interchange.md.

    python -m benchmarks.interchange [--out docs/interchange.md]

Tiny parts, one of every kind (`tests/interchange/parts.py`); random weights. A few minutes on one core.
"""

import argparse
from pathlib import Path

import torch

from tests.interchange.parts import CHANNELS, KINDS, SIZES, WHAT, decoders, faults
from zoo.files import aside

PAGE = """# Any decoder on any encoder

{runs} runs, {wrong} failures: every decoder on one encoder of every kind, for images of {sizes}
pixels with {channels} channels. A cell is "ok" where each answer has the image's size, float32 and no NaN; else it
has the first reason. Printed by `python -m benchmarks.interchange`, with torch {torch}; `pytest -m slow
tests/interchange` asserts the same. `pytest tests/interchange`, part of `make test`, holds every pair of decoder,
encoder, size and channels, and that each part compiles, exports, trains, takes bfloat16 and comes back from its config.

{table}

| kind | stands for | tested with |
|---|---|---|
{kinds}
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("docs/interchange.md"))
    args = parser.parse_args()
    rows, wrong = [f"| | {' | '.join(KINDS)} |", "|---" * (len(KINDS) + 1) + "|"], 0
    for decoder in decoders():
        cells = []
        for kind in KINDS:
            told = list(faults(decoder, kind))
            wrong += len(told)
            cells.append(told[0].replace("|", "/") if told else "ok")
        rows.append(f"| {decoder} | {' | '.join(cells)} |")
        print(rows[-1], flush=True)
    page = PAGE.format(
        runs=len(decoders()) * len(KINDS) * len(SIZES) * len(CHANNELS),
        wrong=wrong,
        sizes=", ".join(f"{height}x{width}" for height, width in SIZES),
        channels=", ".join(map(str, CHANNELS)),
        torch=torch.__version__.split("+")[0],
        table="\n".join(rows),
        kinds="\n".join(f"| {kind} | {what} | `{KINDS[kind]['name']}` |" for kind, what in WHAT.items()),
    )
    with aside(args.out) as path:
        path.write_text(page)


if __name__ == "__main__":
    main()
