"""`zoo compare`: runs against the first of them, on the images that all have measured; a table and a page."""

import argparse
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zoo.cli.terminal import print_table
from zoo.cli.train import find_run
from zoo.errors import UserError


def add(commands: Any) -> Any:
    command = commands.add_parser(
        "compare",
        help="runs side by side, with intervals of their differences",
        description="Compare tested runs with the first of them, on the images that all have measured: figures,"
        " differences with 95 %% intervals (paired bootstrap over images), recipes and curves.",
        usage="zoo compare RUN RUN ... [--split SPLIT] [-o PAGE.html]",
    )
    command.add_argument("runs", metavar="RUN", nargs="+", help="a run's folder, or a recipe's: its newest run")
    command.add_argument("--split", help="a split that all were tested on (default: every such split)")
    command.add_argument("-o", "--out", type=Path, metavar="PAGE", default=Path("compare.html"), help="(compare.html)")
    command.set_defaults(run=compare)
    return command


def compare(args: argparse.Namespace) -> int:
    """`zoo compare RUN RUN ...`"""
    folders = {find_run(name, "recipe.yaml").resolve(): None for name in args.runs}
    if len(folders) < 2:
        raise UserError("There is nothing to compare one run with; name two runs or more that are not the same.")
    if args.out.is_dir() or not args.out.parent.is_dir():
        raise UserError(f"{str(args.out)!r} cannot be a page; -o names a file in a folder that exists.")
    from zoo.report import compare as report
    from zoo.training.recipe import load_recipe

    runs = []
    for folder in folders:
        near = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
        name = near.relative_to("runs").as_posix() if near.is_relative_to("runs") else str(near)
        runs.append(report.read_run(name, near, asdict(load_recipe(folder / "recipe.yaml"))))
    found = report.compare(runs, args.split)
    for one in found:
        print(
            f"On the {one.split} split, n = {one.images} image{'s' * (one.images != 1)}, differences to {runs[0].name}:"
        )
        rows = []
        for row in one.rows:
            if "/" not in row.metric:
                less = row.difference
                told = [_told(less.value), _told(less.low, less.high)] if less else ["", ""]
                rows.append([row.metric, row.run, _told(row.value.value, sign=""), *told])
        print_table(["metric", "run", "figure", "difference", "95 % interval"], rows, piped_header=True)
        for note in one.notes:
            print(f"Note: {note}")
    print(f"The page is {report.write_comparison(runs, found, args.out)}")
    return 0


def _told(*numbers: float, sign: str = "+") -> str:
    """A number, or an interval of two; "-" where there is none."""
    if any(map(math.isnan, numbers)):
        return "-"
    text = ", ".join(f"{number:{sign}.4f}" for number in numbers)
    return f"[{text}]" if len(numbers) > 1 else text
