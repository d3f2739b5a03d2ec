"""`zoo data check`: what is wrong with a data set, before an hour of training says so."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.cli.terminal import print_table
from zoo.errors import UserError, nearest

if TYPE_CHECKING:
    from zoo.datasets.card import Card
    from zoo.datasets.check import Report

SHOWN = 5  # files of a problem that are printed; the rest are counted
SAMPLES = 24  # on the contact sheet


def add(commands: Any, parser_class: Any) -> Any:
    command = commands.add_parser("data", help="check a data set", description="Look into a data set.")
    actions = command.add_subparsers(metavar="ACTION", title="actions", required=True, parser_class=parser_class)
    checking = actions.add_parser(
        "check",
        help="find faults in files, masks and splits",
        description="Read every image and mask of a data set once; tell what is wrong, which lines of a data card solve"
        " it, and what is there. Nothing is changed.",
        epilog="exit code: 0; 1 where there are problems; 2 for a mistake",
    )
    checking.add_argument(
        "data", metavar="CARD|FOLDER", help="a folder with images/ and masks/, a name of `zoo list data`, or a .yaml"
    )
    checking.add_argument("--root", metavar="FOLDER", type=Path, help="the folder of the card's files")
    checking.add_argument("--write", metavar="CARD.yaml", type=Path, help="write the card that trains on what is sound")
    checking.add_argument("--sheet", metavar="FILE.png", type=Path, help=f"draw {SAMPLES} images with their masks")
    checking.add_argument("--num_workers", type=_workers, default=2, help="threads that read files (default: 2)")
    checking.set_defaults(run=check)
    return checking


def check(args: argparse.Namespace) -> int:
    """`zoo data check CARD|FOLDER`: 0 without problems, 1 with some."""
    card = _card(args.data, args.root)
    for flag, file, endings in (("--write", args.write, (".yaml", ".yml")), ("--sheet", args.sheet, (".png",))):
        if file is not None:
            _refuse_file(flag, file, endings)
    from zoo.datasets.check import check as check_card

    report = check_card(card, args.num_workers)
    _print_problems(report)
    _print_contents(report)
    if args.sheet:
        _draw(report, args.sheet)
    if args.write:
        _write(report, args.write)
    if report.problems:
        number = f"{len(report.problems)} problem{'s' * (len(report.problems) > 1)}"
        print(f"\n{number}{'' if args.write else '; --write card.yaml writes a card with these lines'}.")
    else:
        print("\nNo problems.")
    return 1 if report.problems else 0


def _card(name: str, root: Path | None) -> "Card":
    from zoo.datasets.card import list_cards, load_card

    if not name.endswith((".yaml", ".yml")) and name not in list_cards():
        if not Path(name).expanduser().is_dir():
            raise UserError(
                f"There is no folder and no data card {name!r}{nearest(name, list_cards()) or '.'} Give a folder with"
                " images/ and masks/, a name of `zoo list data`, or a .yaml."
            )
        if root is not None:
            raise UserError(f"{name!r} is a folder already; leave --root out, or name a data card.")
        name, root = "folder", Path(name)
    card = load_card(name, root)
    if card.root is None and card.prepare is None:
        how = f" To get the files: {' '.join(card.get.split())}" if card.get else ""
        raise UserError(f"The data card {name!r} needs a folder; give --root FOLDER.{how}")
    if card.root is not None and card.prepare is None and not Path(card.root).is_dir():
        raise UserError(f"There is no folder {card.root}; give the folder of the data set as --root.")
    return card


def _refuse_file(flag: str, file: Path, endings: tuple[str, ...]) -> None:
    if file.suffix not in endings:
        raise UserError(f"{flag} {str(file)!r} doesn't end in {endings[0]}; name it {file.name}{endings[0]}.")
    if file.exists():
        raise UserError(f"{str(file)!r} exists and is left as it is; name another file for {flag}.")
    if not file.parent.is_dir():
        raise UserError(f"There is no folder {str(file.parent)!r} for {flag}; make it, or name another.")


def _print_problems(report: "Report") -> None:
    for problem in report.problems:
        print(f"{problem.what}")
        for file in problem.files[:SHOWN]:
            print(f"  {file}")
        if len(problem.files) > SHOWN:
            print(f"  ... and {len(problem.files) - SHOWN} more")
        print(f"  {problem.way_out}")
        if problem.optional and problem.lines:
            print("  (--write leaves this to you)")
        for line in _yaml(problem.lines):
            print(f"      {line}")
        print()


def _yaml(lines: dict[str, Any]) -> list[str]:
    """The lines as they stand in a card; of many names, the first."""
    from zoo.datasets.card import yaml_lines

    names = lines.get("exclude", [])
    shown = lines | ({"exclude": names[:SHOWN]} if names else {})
    more = f"      # and {len(names) - SHOWN} more, which --write writes" if len(names) > SHOWN else ""
    return (yaml_lines(shown).rstrip() + more).splitlines()


def _print_contents(report: "Report") -> None:
    print(f"{report.card.root}   {sum(map(len, report.pairs.values()))} pairs")
    for note in report.notes:
        print(f"  {note}")
    print()
    if not any(report.pairs.values()):
        return
    table: list[tuple[str, ...]] = []
    for split, pairs in report.pairs.items():
        sizes = report.sizes(split)
        (common, times), *others = sizes.most_common() or [((0, 0), 0)]
        smallest, largest = (pick(sizes, key=lambda hw: hw[0] * hw[1], default=(0, 0)) for pick in (min, max))
        more = f"{len(others) + 1} sizes, {_by(smallest)} to {_by(largest)}" if others else "all"
        table.append((split, str(len(pairs)), _by(common) if times else "-", more if times else "-"))
    print_table(("split", "pairs", "height x width", "sizes"), table, piped_header=True)
    print("\nshare of labelled pixels, and of images that show the class")
    splits = [split for split, pairs in report.pairs.items() if pairs]
    table = []
    for k, name in enumerate([*report.classes, "ignored"]):
        cells = [name]
        for row, split in enumerate(report.pairs):
            if split in splits:
                whole = report.pixels[row].sum() if name == "ignored" else report.pixels[row, :-1].sum()
                cells += [_percent(report.pixels[row, k], whole), _percent(report.images[row, k], _read(report, split))]
        table.append(tuple(cells))
    header = ("class", *(f"{split} {what}" for split in splits for what in ("pixels", "images")))
    print_table(header, table, piped_header=True)


def _read(report: "Report", split: str) -> int:
    return sum(report.scans[pair.image].mask is not None for pair in report.pairs[split])


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.3g} %" if whole else "-"


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _draw(report: "Report", file: Path) -> None:
    from zoo.cli.terminal import track
    from zoo.datasets.check import choose_samples, read_sample
    from zoo.prediction import default_colors
    from zoo.report.figures import Sample, contact_sheet

    chosen = choose_samples(report, SAMPLES)
    if not chosen:
        raise UserError(f"No pair is sound enough to be drawn, so {str(file)!r} is not written.")
    card, names = report.card, report.classes[1:] if report.card.num_classes == 1 else report.classes

    def read() -> Any:
        for split, pair in chosen:
            image, mask = read_sample(pair, card)
            yield Sample(image, mask, mask, card.ignore_index, f"{split}: {pair.name}")

    colors = list(card.colors) or default_colors(len(names))
    contact_sheet(track(read(), len(chosen), "Drawing"), names, colors, file)
    print(f"\n{file}   {len(chosen)} of the pairs, with their masks")


def _write(report: "Report", file: Path) -> None:
    """Write the card, after loading it again as training would."""
    from zoo.datasets.card import card_text, load_card
    from zoo.datasets.check import fixed_card
    from zoo.datasets.look import check_sizes, resolve
    from zoo.datasets.splits import split_pairs
    from zoo.files import aside

    card = fixed_card(report)
    if card.name == "folder":  # what that card says of folders in general
        card = replace(card, title=Path(card.root or ".").resolve().name, licence="", get="")
    with aside(file) as temporary:
        temporary.write_text(card_text(card, file), encoding="utf-8")
        pairs = split_pairs(resolve(load_card(str(temporary))))
        check_sizes([pair for some in pairs.values() for pair in some])
    print(f"\n{file}   train with it: zoo train segmentation/unet_folder --data.card {file}")


def _workers(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of threads; give 0, 1, 2, ...")
    return int(text)
