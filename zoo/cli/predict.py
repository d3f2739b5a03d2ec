"""`zoo predict`: files, folders and patterns in, masks and overlays out."""

import argparse
import glob
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from zoo.cli.terminal import track
from zoo.cli.train import find_run
from zoo.errors import UserError, nearest
from zoo.files import is_program

SHOWN = 10  # names of failed images that are printed; the rest are counted


def add(commands: Any) -> Any:
    command = commands.add_parser(
        "predict",
        help="answer on images, folders or patterns",
        description="Write for each image NAME.png (class ids, at the image's own size) and NAME_overlay.png into OUT."
        " Subfolders are mirrored.",
        epilog="exit code: 0; 1 where some images could not be read (the others are written); 2 for a mistake",
    )
    command.add_argument(
        "model",
        metavar="RUN",
        help="a run's or checkpoint's folder, a recipe's: its newest run; a .onnx or .pt2 file",
    )
    command.add_argument("inputs", metavar="INPUT", nargs="+", help="an image, a folder or a pattern like 'a/*/*.jpg'")
    command.add_argument("-o", "--out", metavar="OUT", required=True, type=Path, help="the folder to write into")
    command.add_argument(
        "--with",
        dest="others",
        metavar="RUN",
        nargs="+",
        action="extend",
        default=[],
        help="further runs, after the inputs: the answer is the mean of all probabilities, as of a model's folds",
    )
    command.add_argument(
        "--given",
        metavar="NAME=PATH",
        action="append",
        default=[],
        help="what the model takes beside the image, such as hole=holes/: a file, or a folder with files of the same"
        " names",
    )
    command.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the accelerator where there is one)")
    command.add_argument(
        "--batch_size", type=_positive, default=1, help="images of equal size computed together (default: 1)"
    )
    command.add_argument("--precision", default="32", choices=("32", "bf16", "16"), help="(default: 32)")
    command.add_argument("--num_workers", type=int, default=2, help="threads that read images ahead (default: 2)")
    command.add_argument("--threshold", type=float, help="of the decision, in [0, 1] (default: the model's own)")
    command.add_argument(
        "--memory",
        metavar="4GB",
        help="what the work may take; larger images are computed in tiles (default: 3/4 of what is free)",
    )
    command.add_argument(
        "--tta",
        default="none",
        metavar="flips",
        help="average over flips (4) or d4 (all 8 flips and turns) of the image (default: none)",
    )
    command.add_argument("--probabilities", action="store_true", help="also write NAME_probabilities.npz")
    command.hints["INPUT"] = "before --with, which takes every word after it"
    command.set_defaults(run=predict)
    return command


def predict(args: argparse.Namespace) -> int:
    """`zoo predict RUN INPUT... -o OUT [--with RUN...]`."""
    program = is_program(args.model)
    if program and args.others:
        raise UserError("--with averages runs, and an exported program answers alone; name the runs, or leave it out.")
    if program and args.precision != "32":
        raise UserError(f"--precision is {args.precision}, but an exported program computes in float32; leave it out.")
    runs = [] if program else list({find_run(name).resolve(): None for name in (args.model, *args.others)})
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        raise UserError(f"--threshold is {args.threshold}; it lies between 0 and 1.")
    check_out(args.out)
    found = find_inputs(args.inputs, args.out)
    names = name_outputs(found, args.out)

    import torch

    import zoo

    net: Any = (
        zoo.load_program(args.model, device=args.device)
        if program
        else zoo.load_model(runs if len(runs) > 1 else runs[0])
    )
    options: dict[str, Any] = dict(
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        threshold=args.threshold,
        memory=args.memory,
        tta=args.tta,
        drop=() if args.probabilities else ("probabilities",),
    )
    if not program:
        there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
        options |= dict(device=args.device or there, precision=args.precision)
    folders = {(args.out / name).parent for name in names.values()}
    before = {file for folder in folders if folder.is_dir() for file in folder.iterdir()}
    replaced = 0
    failed: list[UserError] = []
    options |= find_given(args.given, [place.with_suffix("").as_posix() for _, place in found])
    predictions = net.predict(iter(names), failed=failed, **options)
    for prediction in track(predictions, len(names), "predicting"):
        paths = prediction.save(args.out, name=names[prediction.path], probabilities=args.probabilities)
        replaced += len(before.intersection(paths))
    for sentence in failed[:SHOWN]:
        print(f"zoo: {sentence}", file=sys.stderr)
    if len(failed) > SHOWN:
        print(f"zoo: ... and {len(failed) - SHOWN} more.", file=sys.stderr)
    done = len(names) - len(failed)
    where = f", in {args.out}" if done else ""
    where += f" ({replaced} file{'s' * (replaced != 1)} of before replaced)" if replaced else ""
    print(f"{done} of {len(names)} image{'s' * (len(names) != 1)} predicted{where}")
    return 0 if not failed else 1 if done else 2


def check_out(out: Path) -> None:
    """Raise UserError where the folder can't be written into, or made, before anything is computed."""
    there = next(folder for folder in (out, *out.absolute().parents) if os.path.lexists(folder))
    if not there.is_dir():
        raise UserError(f"{str(there)!r} is a file; -o names the folder to write into.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"The folder {str(there)!r} may not be written into; choose another -o.")


def find_given(given: Sequence[str], places: Sequence[str]) -> dict[str, list[Path]]:
    """{"hole": [a file for each image]} from ["hole=holes/"]; places: where each image lies, without a suffix.

    Raises UserError for what is no NAME=PATH, doesn't exist, or has nothing for an image.
    """
    from zoo.inference.sources import beside

    files: dict[str, list[Path]] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or not Path(path).exists():
            raise UserError(f"--given is {text!r}; write NAME=PATH, with a file or folder that exists.")
        if Path(path).is_file() and len(places) > 1:
            raise UserError(f"--given {text} is one file for {len(places)} images; name a folder with one for each.")
        files[name] = [Path(path)] if Path(path).is_file() else beside(path, places)
    return files


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not 1 or more")
    return number


def find_inputs(inputs: Sequence[str], out: Path) -> list[tuple[Path, Path]]:
    """(file, its place below the folder or pattern that named it) for each image, once each.

    What lies below `out` is no input of a folder or pattern: it is what an earlier call wrote. Raises UserError for
    what doesn't exist, and for a folder or pattern without images.
    """
    for text in inputs:
        if not Path(text).exists() and not glob.has_magic(text):
            above = Path(text).parent
            beside = [str(other) for other in above.iterdir()] if above.is_dir() else []
            raise UserError(f"There is no image or folder {text!r}{nearest(text, beside) or '.'}")
    from zoo.datasets.pixels import find_images

    found: dict[Path, tuple[Path, Path]] = {}
    for text in inputs:
        path = Path(text)
        if path.is_file():
            pairs = [(path, Path(path.name))]
        else:
            base = path if path.is_dir() else _before_wildcard(path)
            pairs = [(file, file.relative_to(base)) for file in find_images(text) if not file.is_dir()]
            pairs = [(file, place) for file, place in pairs if not file.resolve().is_relative_to(out.resolve())]
            if not pairs:
                raise UserError(f"All images of {text!r} lie in {str(out)!r}, where answers are written; name others.")
        for file, place in pairs:
            found.setdefault(file.resolve(), (file, place))
    return list(found.values())


def name_outputs(inputs: Sequence[tuple[Path, Path]], out: Path) -> dict[Path, str]:
    """The name, below `out` and without a suffix, that each file's outputs get; no two write the same file.

    Equal names from different folders are told apart by their folders, `a.jpg` beside `a.png` by their suffixes
    (`a_jpg`, `a_png`). Raises UserError where an output of any kind might overwrite an input.
    """
    places = dict(inputs)
    if _repeated(place.as_posix() for place in places.values()):
        above = Path(os.path.commonpath([file.resolve().parent for file in places]))
        places = {file: file.resolve().relative_to(above) for file in places}
    stems = {file: place.with_suffix("").as_posix() for file, place in places.items()}
    overlays = {os.path.normcase(f"{stem}_overlay") for stem in stems.values()}
    clashing = _repeated(stems.values()) | overlays
    for file, stem in stems.items():
        if os.path.normcase(stem) in clashing:
            stems[file] = f"{stem}_{file.suffix.removeprefix('.').lower()}"
    if twice := _repeated(stems.values()):
        raise UserError(f"Two inputs would both be written as {min(twice)!r}; predict them into separate folders.")
    from zoo.prediction import stems_of

    written = {(out / stem).parent.resolve() / (out / stem).name for stem in stems.values()}
    for file in places:
        if written & (stems_of(file.resolve()) | stems_of(file.parent.resolve() / file.name)):
            raise UserError(f"{str(file)!r} is an input and would be overwritten; choose another -o.")
    return stems


def _before_wildcard(pattern: Path) -> Path:
    """The folder that a pattern starts from: a/b of a/b/*/x.png."""
    wild = next(i for i, part in enumerate(pattern.parts) if glob.has_magic(part))
    return Path(*pattern.parts[:wild])


def _repeated(names: Iterable[str]) -> set[str]:
    """Names that occur more than once; case counts where it tells files apart."""
    return {name for name, count in Counter(map(os.path.normcase, names)).items() if count > 1}
