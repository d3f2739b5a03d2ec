"""All of timm as encoders: every architecture at four image sizes, and the table of plans that travels in the package.

    python -m benchmarks.encoders [--out runs/benchmarks/encoders.jsonl] [--names resnet18 ...]
    python -m benchmarks.encoders --plans zoo/encoders/plans.jsonl.gz --table docs/encoders.md

Each net is asked anew (`zoo.encoders.probe`), then built and run on the meta device: at its native size, 320x320,
512x768 and 250x333 for strides 4 to 32, and in training mode with 5 channels and strides 1 to 32, where a gradient must
reach every parameter. A seeded twentieth also runs on the CPU with real numbers. A line of JSON for each name
is appended to --out; names that are there are not run again. --plans and --table write what is there, and run nothing.
"""

import argparse
import json
import math
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import timm
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.encoders import plans, probe
from zoo.encoders.pyramid import Pyramid
from zoo.encoders.timm import _plan, create

STRIDES = (4, 8, 16, 32)
EVERY_STRIDE = (1, 2, *STRIDES)
SIZES = ((320, 320), (512, 768), (250, 333))
REAL_SHARE, REAL_SIZE, REAL_PARAMETERS = 0.05, (97, 131), 350e6
START, END = "<!-- families -->", "<!-- end of families -->"  # between which --table writes
LIMIT = 900  # seconds for a name
PATIENCE = ("sequencer", "gemma4_vit")  # an LSTM is run step by step on the meta device; values, so the CPU


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/encoders.jsonl"))
    parser.add_argument("--names", nargs="+", help="these alone; run again where they are in --out")
    parser.add_argument("--plans", type=Path, metavar="FILE", help="write the package's table of plans")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the table of families into this page")
    args = parser.parse_args()
    if not (args.plans or args.table):
        sweep(args.out, args.names)
    done = read(args.out)
    failed = {name: line["failure"] for name, line in done.items() if line["failure"]}
    run = f"{len(done)} of {len(timm.list_models())} architectures run, {len(failed)} failed; timm {timm.__version__}"
    if args.plans:
        found = [(name, plans.parsed(line["facts"])) for name, line in done.items() if line["facts"]]
        plans.write_table(args.plans, found)
    if args.table:
        before, rest = args.table.read_text(encoding="utf-8").split(START)
        after = rest.split(END)[1]
        args.table.write_text(f"{before}{START}\n{run}.\n\n{families(done)}\n{END}{after}", encoding="utf-8")
    real = Counter(line["real"] for line in done.values() if line["real"])
    print(run)
    print("with real numbers:", "; ".join(f"{n} {what}" for what, n in real.most_common()))
    for name, failure in failed.items():
        print(f"  {name}: {failure}")


def sweep(out: Path, names: list[str] | None) -> None:
    """Run the names that are not in `out` yet, one of every family first."""
    every = timm.list_models()
    sample = set(random.Random(0).sample(every, round(REAL_SHARE * len(every))))
    done, remembering = {} if names else read(out), Remembering()
    out.parent.mkdir(parents=True, exist_ok=True)
    for name in names or in_turn(every):
        if name not in done:
            line = checked(name, remembering, with_real_numbers=name in sample)
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(name, line["seconds"], line["failure"] or "", line["real"] or "", flush=True)


def read(out: Path) -> dict[str, dict[str, Any]]:
    """The lines by name; of a name that was run twice the last."""
    lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
    return {line["name"]: line for line in map(json.loads, lines)}


def in_turn(names: list[str]) -> list[str]:
    """The first of every family, the second of every family, and so on; families that take minutes a net at the end."""
    seen: Counter[str] = Counter()
    turns = []
    for name in names:
        turns.append((family(name) in PATIENCE, seen[family(name)], name))
        seen[family(name)] += 1
    return [name for *_, name in sorted(turns)]


def family(name: str) -> str:
    """The file of timm's that the architecture stands in."""
    return timm.model_entrypoint(name).__module__.rpartition(".")[2]


def checked(name: str, remembering: "Remembering", *, with_real_numbers: bool) -> dict[str, Any]:
    """One line of --out: the facts that were found, and the first thing that is wrong."""
    line: dict[str, Any] = {"name": name, "family": family(name), "facts": None, "failure": None, "real": None}
    start = time.monotonic()
    try:
        with at_most(LIMIT), remembering:
            facts = probe.find(name, {})
            line["facts"] = asdict(facts)
            with patch.object(plans, "find", lambda *_: facts):
                _plan.cache_clear()
                line["failure"] = probe.without_memory(lambda: wrong(name))
        if with_real_numbers and not line["failure"]:
            with at_most(LIMIT), patch.object(plans, "find", lambda *_: facts):
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


class Remembering(TorchDispatchMode):
    """Operators on the meta device answered from what they gave for the same shapes and strides before.

    Their rules are written in Python and take most of the time. Weights are not drawn at all.
    """

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[Any, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in DRAWING and args[0].is_meta:
            return args[0]
        if func not in SLOW:
            return func(*args, **kwargs)
        key = (func, described(args), described(tuple(kwargs.items())))
        if key not in self.known:
            result = func(*args, **kwargs)
            if not all(
                tensor is None or tensor.is_meta for tensor in (result if isinstance(result, tuple) else [result])
            ):
                return result
            self.known[key] = described(result)
        return remade(self.known[key])


class Described(NamedTuple):
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: str


def described(value: Any) -> Any:
    """Tensors by their layout, also in lists."""
    if isinstance(value, torch.Tensor):
        return Described(tuple(value.shape), value.stride(), value.dtype, value.device.type)
    return tuple(map(described, value)) if isinstance(value, list | tuple) else value


def remade(value: Any) -> Any:
    if isinstance(value, Described):
        return torch.empty_strided(value.shape, value.stride, dtype=value.dtype, device=value.device)
    return tuple(map(remade, value)) if isinstance(value, tuple) else value


DRAWING = {getattr(torch.ops.aten, name).default for name in ("clamp_", "erfinv_", "uniform_", "normal_")}
SLOW = {
    *(
        getattr(torch.ops.aten, name).default
        for name in (
            *("native_layer_norm", "native_batch_norm", "native_group_norm", "linalg_vector_norm", "_safe_softmax"),
            *("addmm", "bmm", "cat", "stack", "roll", "gelu", "relu", "hardswish", "hardsigmoid", "clamp_min"),
        )
    ),
    *(getattr(torch.ops.aten, name).Tensor for name in ("add", "sub", "mul", "div")),
    *(torch.ops.aten.mul.Scalar, torch.ops.aten.mean.dim),
}


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


def families(done: dict[str, dict[str, Any]]) -> str:
    """The families in Markdown: how many of their nets are of which kind, and what is notable."""
    rows = ["| family | nets | any size | padded to multiples of | resized to | remarks |", "|---|---|---|---|---|---|"]
    total: Counter[str] = Counter()
    for name in sorted({line["family"] for line in done.values()}):
        lines = [line for line in done.values() if line["family"] == name]
        every = [plans.parsed(line["facts"]) for line in lines if line["facts"]]
        padded = [f"{facts.multiple}" for facts in every if facts.multiple > 1]
        resized = [f"{facts.size[0]}x{facts.size[1]}" for facts in every if facts.size]
        free = len(every) - len(padded) - len(resized)
        remarks = "; ".join(notable(every, [line for line in lines if line["failure"]]))
        rows.append(f"| {name} | {len(lines)} | {free or ''} | {counted(padded)} | {counted(resized)} | {remarks} |")
        total.update(nets=len(lines), free=free, padded=len(padded), resized=len(resized))
    rows.append(f"| all | {total['nets']} | {total['free']} | {total['padded']} | {total['resized']} | |")
    return "\n".join(rows)


def counted(values: list[str]) -> str:
    """16 (12 nets), 14 (3); the most frequent first."""
    return ", ".join(f"{value} ({n})" for value, n in Counter(values).most_common())


def notable(every: list[probe.Facts], failed: list[dict[str, Any]]) -> Iterator[str]:
    """What the nets of a family have that most have not."""
    single = sorted({round(facts.strides[0]) for facts in every if facts.quarters})
    if single:
        yield f"one stride: {', '.join(map(str, single))}"
    staged = [facts for facts in every if not facts.quarters]
    for level in (4, 8, 16, 32):
        if n := sum(all(abs(math.log2(s / level)) >= 0.5 for s in facts.strides) for facts in staged):
            yield f"no map of stride {level} ({n})"
    if n := sum(max(facts.strides) > 45 for facts in staged):
        yield f"a stage deeper than 32 ({n})"
    if least := max((max(facts.min_sides) for facts in every if max(facts.min_sides) > facts.multiple), default=0):
        yield f"sides of {least} or more"
    if n := sum(not facts.any_channels for facts in every):
        yield f"3 channels alone ({n})"
    if n := sum(any(place == len(facts.taps) - 1 for place, *_ in facts.unused) for facts in every):
        yield f"parameters that do not feed the last map ({n})"
    if failed:
        yield f"**failed** ({len(failed)})"


if __name__ == "__main__":
    sys.exit(main())
