"""All of timm as encoders: every architecture at four image sizes, and the table of plans that travels in the package.

    python -m benchmarks.encoders [--out runs/benchmarks/encoders.jsonl] [--names resnet18 ...]
    python -m benchmarks.encoders --plans zoo/encoders/plans.jsonl.gz --table docs/encoders.md

Each net is asked anew (`zoo.encoders.probe`), then built and run on the meta device: at its native size, 320x320, 512x768
and 250x333 for strides 4 to 32, and in training mode with 5 channels and strides 1 to 32, where every parameter must be
reached by a gradient. A seeded twentieth also runs on the CPU with real numbers. One line of JSON is appended to --out for
each name; names that are there are not run again. --plans and --table write what is there, and run nothing.
"""

import argparse
import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest.mock import patch

import timm
import torch

from zoo.encoders import plans, probe
from zoo.encoders.pyramid import Pyramid
from zoo.encoders.timm import _plan, create

STRIDES = (4, 8, 16, 32)
EVERY_STRIDE = (1, 2, *STRIDES)
SIZES = ((320, 320), (512, 768), (250, 333))
REAL_SHARE, REAL_SIZE, REAL_PARAMETERS = 0.05, (97, 131), 350e6
LIMIT = 900  # seconds for a name


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/encoders.jsonl"))
    parser.add_argument("--names", nargs="+", help="these alone; run again where they are in --out")
    parser.add_argument("--plans", type=Path, metavar="FILE", help="write the package's table of plans")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the page of families")
    args = parser.parse_args()
    if not (args.plans or args.table):
        sweep(args.out, args.names)
    done = read(args.out)
    if args.plans:
        found = [(name, plans.parsed(line["facts"])) for name, line in done.items() if line["facts"]]
        plans.write_table(args.plans, found)
    if args.table:
        args.table.write_text(page(done), encoding="utf-8")
    failed = {name: line["failure"] for name, line in done.items() if line["failure"]}
    real = Counter(line["real"] for line in done.values() if line["real"])
    print(f"{len(done)} of {len(timm.list_models())} architectures, {len(failed)} failed; timm {timm.__version__}")
    print("with real numbers:", "; ".join(f"{n} {what}" for what, n in real.most_common()))
    for name, failure in failed.items():
        print(f"  {name}: {failure}")


def sweep(out: Path, names: list[str] | None) -> None:
    """Run the names that are not in `out` yet, one of every family first."""
    every = timm.list_models()
    sample = set(random.Random(0).sample(every, round(REAL_SHARE * len(every))))
    done = {} if names else read(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    for name in names or in_turn(every):
        if name not in done:
            line = checked(name, with_real_numbers=name in sample)
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(name, line["seconds"], line["failure"] or "", line["real"] or "", flush=True)


def read(out: Path) -> dict[str, dict[str, Any]]:
    """The lines by name; of a name that was run twice the last."""
    lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
    return {line["name"]: line for line in map(json.loads, lines)}


def in_turn(names: list[str]) -> list[str]:
    """The first of every family, the second of every family, and so on."""
    seen: Counter[str] = Counter()
    turns = []
    for name in names:
        turns.append((seen[family(name)], name))
        seen[family(name)] += 1
    return [name for _, name in sorted(turns)]


def family(name: str) -> str:
    """The file of timm's that the architecture stands in."""
    return timm.model_entrypoint(name).__module__.rpartition(".")[2]


def checked(name: str, *, with_real_numbers: bool) -> dict[str, Any]:
    """One line of --out: the facts that were found, and the first thing that is wrong."""
    line: dict[str, Any] = {"name": name, "family": family(name), "facts": None, "failure": None, "real": None}
    start = time.monotonic()
    try:
        with at_most(LIMIT):
            facts = probe.find(name, {})
            line["facts"] = asdict(facts)
            with patch.object(plans, "find", lambda *_: facts):
                _plan.cache_clear()
                line["failure"] = probe.without_memory(lambda: wrong(name))
                if with_real_numbers and not line["failure"]:
                    line["real"] = real(name)
    except Exception as error:  # what a net says is what is wanted
        line["failure"] = f"{type(error).__name__}: {probe.first_line(error)}"
    line["seconds"] = round(time.monotonic() - start, 2)
    return line


def wrong(name: str) -> str | None:
    """What is wrong with the encoder without memory, or None."""
    encoder = create(name, strides=STRIDES).eval()
    native = probe.own_size(timm.get_pretrained_cfg(name).input_size, {})
    for size in dict.fromkeys((native, *SIZES)):
        with torch.no_grad():
            if fault := misshapen(encoder, torch.empty(1, 3, *size)):
                return fault
    encoder = create(name, strides=EVERY_STRIDE, in_channels=5).train()
    image = torch.empty(2, 5, *SIZES[-1])
    if fault := misshapen(encoder, image):
        return fault
    reached = set().union(*(probe.leaves(feature) for feature in encoder(image)))
    idle = [key for key, p in encoder.named_parameters() if p.requires_grad and id(p) not in reached]
    return f"{len(idle)} parameters get no gradient: {', '.join(idle[:3])}" if idle else None


def real(name: str) -> str:
    """Run with real numbers on the CPU; an odd size."""
    with probe.quietly_on("meta"):
        parameters = sum(p.numel() for p in timm.create_model(name).parameters())
    if parameters > REAL_PARAMETERS:
        return f"skipped, over {REAL_PARAMETERS / 1e6:.0f} M parameters"
    torch.manual_seed(0)
    encoder = create(name, strides=STRIDES).eval()
    image = torch.rand(1, 3, *REAL_SIZE)
    with torch.no_grad():
        if fault := misshapen(encoder, image):
            raise ValueError(f"with real numbers {fault}")
        if not all(feature.isfinite().all() for feature in encoder(image)):
            raise ValueError("with real numbers some are not finite")
    return "ran"


def misshapen(encoder: Pyramid, image: torch.Tensor) -> str | None:
    """The first level that is not (B, channels, ceil(H/s), ceil(W/s))."""
    for feature, channels, stride in zip(encoder(image), encoder.channels, encoder.strides, strict=True):
        expected = (len(image), channels, -(-image.shape[-2] // stride), -(-image.shape[-1] // stride))
        if tuple(feature.shape) != expected:
            return f"{tuple(image.shape)} gives {tuple(feature.shape)} at stride {stride}, not {expected}"
    return None


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raises TimeoutError in what takes longer."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"took over {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def page(done: dict[str, dict[str, Any]]) -> str:
    return ""


if __name__ == "__main__":
    sys.exit(main())
