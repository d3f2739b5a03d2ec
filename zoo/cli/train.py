"""`zoo train` and `zoo test`."""

import argparse
from pathlib import Path
from typing import Any

from zoo.errors import UserError, nearest
from zoo.files import is_program
from zoo.processes import is_first


def add_train(commands: Any) -> Any:
    command = commands.add_parser(
        "train",
        help="train a recipe; the run lies in runs/RECIPE/1, 2, ...",
        description="Train a recipe: a name of `zoo list recipes`, or a .yaml file. Every key of it can be set here.",
        epilog="`zoo train RECIPE --help` lists a recipe's keys, what they do and their values.\n"
        "`zoo train --resume RUN` goes on with a run that was stopped; --resume_anyway with changed keys.",
        usage="zoo train RECIPE [--key value ...]\n       zoo train --resume RUN [--resume_anyway] [--key value ...]",
    )
    command.add_argument("recipe", metavar="RECIPE", help="such as segmentation/demo, or a path to a .yaml")
    return command


def add_test(commands: Any) -> Any:
    command = commands.add_parser(
        "test",
        help="measure a run on its held-out images",
        description="Measure a run on the held-out images of its data, or of others: --data.root FOLDER.",
        usage="zoo test RUN [--split SPLIT] [--data.root FOLDER] [--data.key value ...]",
    )
    command.add_argument("path", metavar="RUN", help="a run's folder, or a recipe's, runs/RECIPE: its newest run")
    command.add_argument("--split", help="a split of the data card (default: test)")
    command.set_defaults(run=test)
    return command


def train(command: argparse.ArgumentParser, argv: list[str]) -> int:
    """`zoo train RECIPE [--key value ...]`; with --help, the recipe's keys; with --resume, a run goes on."""
    argv = [part for word in argv for part in (word.split("=", 1) if word.startswith("--resume=") else [word])]
    if not argv or argv[0] in ("-h", "--help"):
        command.print_help()
        return 0 if argv else 2
    if "--resume" in argv:
        return _resume(argv)
    if argv[0].startswith("-"):
        raise UserError(f"{argv[0]!r} stands before the recipe; write `zoo train RECIPE {' '.join(argv[:2])}`.")
    from zoo.training.recipe import load_recipe

    recipe = load_recipe(argv[0], [word for word in argv[1:] if word not in ("-h", "--help")])
    if len(argv) > 1 and {"-h", "--help"} & set(argv[1:]):
        print_keys(argv[0], recipe)
        return 0
    from zoo.training.run import train as train_recipe

    train_recipe(recipe)
    return 0


def _resume(argv: list[str]) -> int:
    if argv[0] != "--resume" or len(argv) == 1 or argv[1].startswith("-"):
        raise UserError(
            "--resume stands in place of the recipe, before a run's folder: `zoo train --resume RUN [--key value ...]`."
        )
    from zoo.training.recipe import load_recipe

    run, overrides = find_run(argv[1], "recipe.yaml"), [word for word in argv[2:] if word != "--resume_anyway"]
    load_recipe(run / "recipe.yaml", overrides)  # a wrong key is told before anything slow is imported
    from zoo.training.resume import resume

    resume(run, overrides, anyway="--resume_anyway" in argv)
    return 0


def test(args: argparse.Namespace) -> int:
    """`zoo test RUN`: the figures of each split, and of each class."""
    from zoo.training.recipe import load_recipe

    path = find_run(args.path)
    if not (path / "recipe.yaml").is_file():
        raise UserError(f"{args.path!r} holds no recipe.yaml, so it says nothing of data to test on; give a run.")
    load_recipe(path / "recipe.yaml", args.overrides)  # a wrong key is told before anything slow is imported
    from zoo.training.measure import test as test_run

    scores = test_run(path, args.split, args.overrides)  # prints each split's figures
    classes = {name: value for name, value in scores.items() if "iou/" in name}
    width = max(map(len, classes), default=0)
    for name, value in classes.items() if is_first() else ():
        print(f"{name:{width}}  {value:.4f}")
    return 0


def find_run(name: str, file: str = "config.json") -> Path:
    """The folder of a run or checkpoint; of a recipe's folder, runs/RECIPE, its newest run that has a checkpoint.

    file: what it must hold; a checkpoint's config.json, or the recipe.yaml that a run has from its start.
    Raises UserError with the runs that there are.
    """
    path = Path(name)
    if is_program(name) and path.is_file():
        raise UserError(f"{name!r} is an exported program; `zoo predict` takes it, and `zoo show` tells what it is.")
    if (path / file).is_file():
        return path
    numbered = [found.parent for found in path.glob(f"*/{file}") if found.parent.name.isdigit()]
    if numbered:
        newest = max(numbered, key=lambda run: int(run.name))
        if is_first():
            print(f"The newest run of {name}: {newest}")
        return newest
    runs = sorted(str(found.parent) for found in Path("runs").glob(f"**/{file}"))
    below = [run for run in runs if Path(run).is_relative_to(path)]
    there = below or runs
    known = (
        f" Runs here: {', '.join(there[-8:])}." if there else " Nothing has been trained here yet: `zoo train RECIPE`."
    )
    what = f"{name!r} is no run (a folder with {file})"
    if file == "config.json":
        what = f"{name!r} is no run or checkpoint (a folder with config.json and model.safetensors)"
        if not path.exists():
            what = f"There is no run or checkpoint {name!r} (a model's name alone has no trained weights)"
    raise UserError(f"{what}{nearest(name, runs) or '.'}{known}")


def print_keys(name: str, recipe: Any) -> None:
    """Every key of a recipe with its value and what it does."""
    from zoo.training.keys import TRAINER_KEYS
    from zoo.training.recipe import recipe_keys

    print(f"usage: zoo train {name} [--key value ...]\n\nkeys, with their values in this recipe:\n")
    for key, value, doc in recipe_keys(recipe):
        print(f"  --{key} {value}\n        {doc}")
    print(f"\n  --trainer.KEY takes any of: {', '.join(TRAINER_KEYS)}")
    print("  options of parts are keys too: --model.decoder.upsample bilinear")
