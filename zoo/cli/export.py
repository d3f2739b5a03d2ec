"""`zoo export`: a run or checkpoint as one file that other programs run."""

import argparse
import re
from pathlib import Path
from typing import Any

from zoo.cli.train import find_run
from zoo.errors import UserError
from zoo.files import is_program


def add(commands: Any) -> Any:
    command = commands.add_parser(
        "export",
        help="a run or checkpoint as one .onnx or .pt2 file, compared with the model",
        description="Write a model as one file: from pixels in [0, 1] to the answer, any batch, height and width."
        " The file is run at several sizes and compared with the model before it takes its name.",
    )
    command.add_argument("model", metavar="RUN", help="a run's or checkpoint's folder, or a recipe's: its newest run")
    command.add_argument(
        "-o", "--out", metavar="FILE", required=True, type=Path, help="model.onnx, or model.pt2 (torch.export)"
    )
    command.add_argument("--size", metavar="HxW", type=_size, help="fix the size, for nets that take no open one")
    command.add_argument("--opset", type=int, default=20, help="of ONNX (default: 20)")
    command.add_argument("--force", action="store_true", help="replace FILE where it exists")
    command.set_defaults(run=export)
    return command


def export(args: argparse.Namespace) -> int:
    """`zoo export RUN -o FILE`."""
    if not is_program(args.out):  # told before anything slow is imported
        raise UserError(f"{str(args.out)!r} ends in {args.out.suffix or 'nothing'!r}; programs are .onnx or .pt2.")
    run = find_run(args.model)
    import zoo

    facts = zoo.export(zoo.load_model(run), args.out, size=args.size, opset=args.opset, force=args.force)
    check = facts["check"]
    sizes = ", ".join(f"{height}x{width}" for height, width in check["sizes"])
    batches = " and ".join(map(str, check["batches"]))
    largest = ", ".join(f"{name} {value:.1e}" for name, value in check["largest"].items())
    size = "x".join(map(str, facts["size"])) if facts["size"] else "any"
    print(f"{args.out}   size: {size}, batch: any; gives {', '.join(facts['outputs'])}")
    print(f"largest difference from the model, at {sizes} in batches of {batches}: {largest}")
    return 0


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or "0" in match.groups():
        raise argparse.ArgumentTypeError(f"{text!r} is no HEIGHTxWIDTH, such as 512x512")
    return int(match[1]), int(match[2])
