"""`zoo list`, `zoo show` and `zoo copy`: what there is, what is known of it, and a recipe to change."""

import argparse
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from zoo.cli.terminal import print_table
from zoo.errors import UserError, nearest
from zoo.files import is_program
from zoo.registry import matching

KINDS = ("models", "encoders", "decoders", "recipes", "data")


def add_list(commands: Any) -> Any:
    command = commands.add_parser(
        "list",
        help="models, encoders, decoders, recipes or data",
        description="List what there is, one on a line.",
    )
    command.add_argument("kind", metavar="KIND", help=", ".join(KINDS))
    command.add_argument("pattern", metavar="PATTERN", nargs="?", default="", help="a part of the name, or '*net*'")
    command.add_argument("--task", help="models and decoders that serve this task")
    command.set_defaults(run=list_names)
    return command


def add_show(commands: Any) -> Any:
    command = commands.add_parser(
        "show",
        help="what is known of a model, encoder, decoder, recipe, data card, run or exported program",
        description="Show a model, encoder or decoder (paper, parts, parameters, MACs, licences), a recipe or a card,"
        " a run or checkpoint, or a .onnx or .pt2 file.",
    )
    command.add_argument("name", metavar="NAME")
    command.set_defaults(run=show)
    return command


def add_copy(commands: Any) -> Any:
    command = commands.add_parser(
        "copy",
        help="a recipe's file, to change it",
        description="Copy a recipe's file, remarks included; train it with `zoo train FILE`.",
    )
    command.add_argument("recipe", metavar="RECIPE")
    command.add_argument("file", metavar="FILE", nargs="?", type=Path, help="default: the recipe's own name, here")
    command.set_defaults(run=copy)
    return command


def list_names(args: argparse.Namespace) -> int:
    """`zoo list KIND [PATTERN]`."""
    if args.kind not in KINDS:
        raise UserError(
            f"There is no list of {args.kind!r}{nearest(args.kind, KINDS) or '.'} Lists: {', '.join(KINDS)}."
        )
    if args.task and args.kind not in ("models", "decoders"):
        raise UserError(f"--task chooses among models and decoders; {args.kind} are listed without it.")
    rows = _rows(args.kind, args.pattern, args.task)
    if not rows:
        raise UserError(f"No {args.kind} match {args.pattern!r}; `zoo list {args.kind}` shows them all.")
    print_table(("name", "what it is")[: len(rows[0])], rows)
    return 0


def show(args: argparse.Namespace) -> int:
    """`zoo show NAME`: a recipe's or card's file as it is; of a part, run or program, what is known."""
    from zoo.datasets.card import list_cards
    from zoo.training.recipe import list_recipes, recipe_text

    name, recipes, cards = args.name, list_recipes(), list_cards()
    if name in recipes or name.endswith((".yaml", ".yml")):
        print(recipe_text(name), end="")
        return 0
    if name in cards:
        print((files("zoo.cards") / f"{name}.yaml").read_text(encoding="utf-8"), end="")
        return 0
    if is_program(name):
        from zoo.cli.saved import program_facts

        return _told(program_facts(name))
    if (Path(name) / "config.json").is_file() or ("/" in name and Path(name).is_dir()):
        from zoo.cli.saved import run_facts

        return _told(run_facts(name))
    if "/" in name and name.partition("/")[0] in {recipe.partition("/")[0] for recipe in recipes}:
        recipe_text(name)  # raises, with the nearest recipe
    from zoo.cli.parts import facts, part_names

    known = part_names()
    if name not in known:
        same_end = [recipe for recipe in recipes if recipe.endswith(f"/{name}")]
        near = nearest(name, [*recipes, *cards, *known]) if not same_end else f" - did you mean {same_end[0]!r}?"
        raise UserError(
            f"There is nothing called {name!r}{near or '.'} `zoo list {'|'.join(KINDS)}` shows what there is."
        )
    return _told(facts(name))


def _told(found: Sequence[tuple[str, str]]) -> int:
    width = max(len(key) for key, _ in found)
    for key, value in found:
        print(f"{key:{width}}  {value}")
    return 0


def copy(args: argparse.Namespace) -> int:
    """`zoo copy RECIPE [FILE]`; a file that exists is left as it is."""
    from zoo.training.recipe import recipe_text

    text = recipe_text(args.recipe)
    file = args.file or Path(f"{args.recipe.removesuffix('.yaml').rpartition('/')[2]}.yaml")
    if file.is_dir():
        file = file / f"{args.recipe.removesuffix('.yaml').rpartition('/')[2]}.yaml"
    if file.suffix not in (".yaml", ".yml"):
        raise UserError(f"{str(file)!r} doesn't end in .yaml, by which `zoo train` knows a file; name it {file}.yaml.")
    try:
        with file.open("x", encoding="utf-8") as copied:
            copied.write(text.replace(f"zoo train {args.recipe}", f"zoo train {file}"))
    except FileExistsError:
        raise UserError(
            f"{str(file)!r} exists and is left as it is; name another: zoo copy {args.recipe} FILE."
        ) from None
    except OSError as error:
        raise UserError(f"{str(file)!r} cannot be written: {error.strerror}.") from None
    print(f"{file}   train it with: zoo train {file}")
    return 0


def _rows(kind: str, pattern: str, task: str | None) -> list[tuple[str, ...]]:
    if kind == "recipes":
        from zoo.training.recipe import list_recipes, recipe_text

        return [(name, _summary(recipe_text(name))) for name in matching(list_recipes(), pattern)]
    if kind == "data":
        from zoo.datasets.card import list_cards, load_card

        return [(name, load_card(name).title) for name in matching(list_cards(), pattern)]
    import zoo

    if kind == "encoders":
        return [(name,) for name in zoo.list_encoders(pattern)]
    from zoo.registry import DECODERS, MODELS

    if kind == "models":
        return [(name, MODELS.entries[name].summary) for name in zoo.list_models(pattern, task=task)]
    return [(name, DECODERS.entries[name].summary) for name in zoo.list_decoders(pattern, task=task)]


def _summary(text: str) -> str:
    """What a recipe's file says of itself: its first remark that is no command."""
    remarks = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]
    return next((remark for remark in remarks if not remark.startswith("zoo ")), "")
