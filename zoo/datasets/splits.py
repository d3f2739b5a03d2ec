"""Files into pairs, pairs into splits: patterns, name lists, and seeded shares that keep groups together."""

import hashlib
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from zoo.datasets.card import Card
from zoo.datasets.pixels import SUFFIXES
from zoo.errors import UserError


@dataclass(frozen=True)
class Pair:
    """An image file and its mask file; `name` is what {name} matched."""

    name: str
    image: Path
    mask: Path


def choose_layout(card: Card, root: Path) -> dict[str, Any]:
    """The images, masks and splits of the first layout whose training images exist under `root`, else of the card."""
    own = {"images": card.images, "masks": card.masks, "splits": card.splits}
    for layout in card.layouts:
        merged = own | layout
        folders = [c for c in _choices(merged["splits"].get("train", "")) if isinstance(c, str) and not _is_list(c)]
        if any(_find(root, merged["images"], folder) for folder in folders or [""]):
            return merged
    return own | (card.layouts[-1] if card.layouts else {})


def drop_maskless(card: Card) -> tuple[Card, str]:
    """The card without those choices of its splits that are folders of images and no masks, and a note on them.

    Competitions hand out such a test folder. Only where a card lists choices, as `folder` does, not where it names
    the one folder that a split is.
    """
    root = Path(card.root or ".")
    splits, notes = dict(card.splits), []
    for split, choices in card.splits.items():
        if split == "train" or not isinstance(choices, list | tuple):
            continue
        maskless = [
            choice
            for choice in choices
            if isinstance(choice, str)
            and not _is_list(choice)
            and _find(root, card.images, choice)
            and not _find(root, card.masks, choice)
        ]
        splits[split] = [choice for choice in choices if choice not in maskless]
        notes += [f"The images in {choice!r} have no masks, so they are not used." for choice in maskless]
    return replace(card, splits={split: choices for split, choices in splits.items() if choices != []}), " ".join(notes)


def split_pairs(card: Card) -> dict[str, list[Pair]]:
    """All splits of a resolved card, each sorted by name; deterministic for given files, names and seed.

    A share is drawn from train by the hash of seed and name (or group): rounded, but at least one image of two (val)
    or three (val and test). Splits whose folder or list does not exist are left out.
    Raises UserError for images without masks and the other way round, empty folders, lists or listed names that are
    missing, and images or groups that lie in two splits.
    """
    root = Path(card.root or ".")
    splits = dict(card.splits)
    seed = splits.pop("seed", 0)
    pairs: dict[str, list[Pair]] = {}
    shares: dict[str, float] = {}
    listed: set[str] = set()
    by_folder = any("{split}" in pattern for pattern in card.images)
    for split in sorted(splits, key=lambda s: s == "train"):  # train last: without a list of its own, it is the rest
        for choice in _choices(splits[split]):
            if not isinstance(choice, str):
                shares[split] = choice
            elif _is_list(choice) and (root / choice).is_file():
                pairs[split] = _listed(card, root, choice)
                listed.update(pair.name for pair in pairs[split])
            elif not _is_list(choice) and _find(root, card.images, choice):
                if not by_folder:
                    raise UserError(
                        f"splits.{split} of the data card {card.name!r} is the folder {choice!r}, but images is"
                        f" {card.images[0]!r} without {{split}}; put {{split}} there or split by list or share."
                    )
                pairs[split] = _paired(card, root, choice, split)
            else:
                continue
            break
        else:
            _refuse_missing_list(card, root, split)
    if "train" not in splits:
        everything = _paired(card, root, "train" if by_folder else "")
        pairs["train"] = [pair for pair in everything if pair.name not in listed]
    elif "train" not in pairs:
        _nothing_found(card, root, str(_choices(splits["train"])[0]))
    total = len(pairs["train"])
    for split in (s for s in splits if s in shares):
        pairs[split], pairs["train"] = _drawn(card, pairs["train"], max(1, round(shares[split] * total)), seed)
    ordered = {split: sorted(pairs[split], key=lambda p: p.name) for split in ("train", *splits) if split in pairs}
    _refuse_leaks(card, ordered)
    return {split: some for split, some in ordered.items() if some or split == "train"}


def _choices(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _is_list(choice: str) -> bool:
    return choice.endswith(".txt")


def _find(root: Path, patterns: Iterable[str], split: str) -> dict[str, Path]:
    """name -> file of the first pattern that finds any."""
    return next((found for pattern in patterns if (found := _match(root, pattern, split))), {})


def _match(root: Path, pattern: str, split: str) -> dict[str, Path]:
    """name -> image file for all files under `root` that match the pattern. Raises UserError for two of one name.

    Names are in Unicode's composed form (NFC): a Mac's zip holds them decomposed.
    """
    filled = pattern.replace("{split}", split)
    parts = filled.split("/")
    fixed = next(i for i, part in enumerate(parts) if "{name}" in part or "*" in part)
    base = root.joinpath(*parts[:fixed])
    expression = (
        re.escape(_composed("/".join(parts[fixed:]))).replace(r"\{name\}", "(?P<name>.+)", 1).replace(r"\*", "[^/]*")
    )
    found: dict[str, Path] = {}
    for folder, subfolders, files in os.walk(base, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for file in sorted(files):
            path = Path(folder, file)
            if file.startswith(".") or path.suffix.lower() not in SUFFIXES:
                continue
            if match := re.fullmatch(expression, _composed(path.relative_to(base).as_posix())):
                if match["name"] in found:
                    raise UserError(f"{found[match['name']]} and {path} have one name; keep one of them.")
                found[match["name"]] = path
    return found


def _paired(card: Card, root: Path, split: str, name: str = "train") -> list[Pair]:
    """Every image in the folder `split` with its mask; the mask pattern with most matches counts."""
    images = _find(root, card.images, split)
    if not images:
        _nothing_found(card, root, split)
    masks = max((_match(root, pattern, split) for pattern in card.masks), key=lambda found: len(found.keys() & images))
    where = f"{root / split}" if split else f"{root}"
    if not _find(root, card.masks, split):
        tried = " or ".join(pattern.replace("{split}", split) for pattern in card.masks[:3])
        way_out = "" if name == "train" else f" To do without this split: --data.card.splits '{{{name}: null}}'."
        raise UserError(
            f"There are {len(images)} images but no masks in {where}: looked for {tried} in {root}.{way_out}"
        )
    for lonely, kind, other in ((images.keys() - masks, "image", "mask"), (masks.keys() - images, "mask", "image")):
        if lonely:
            some = ", ".join((images if kind == "image" else masks)[name].name for name in sorted(lonely)[:3])
            raise UserError(
                f"In {where}, {len(lonely)} {kind}{'s have' if len(lonely) > 1 else ' has'} no {other} of that name:"
                f" {some}{', ...' if len(lonely) > 3 else ''}. Images and masks must match up to the suffix; add the"
                f" missing {other}s or move the {kind}s away."
            )
    return [Pair(name, images[name], masks[name]) for name in sorted(images)]


def _listed(card: Card, root: Path, file: str) -> list[Pair]:
    """The pairs that a text file names: one a line, as a name, a file name or a path; further columns are skipped."""
    images = _find(root, card.images, "")
    masks = _find(root, card.masks, "")
    try:
        lines = (root / file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The list {root / file} can't be read ({error}); it is a text file in UTF-8.") from None
    pairs = []
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        name = next((c for c in _candidates(_composed(line.strip())) if c in images), None)
        if name is None or name not in masks:
            what = "image" if name is None else "mask"
            raise UserError(
                f"{root / file} names {line.strip()!r}, but there is no such {what} in {root}; correct the list."
            )
        pairs.append(Pair(name, images[name], masks[name]))
    if not pairs:
        raise UserError(f"{root / file} names no images; write one name a line.")
    return list(dict.fromkeys(pairs))


def _candidates(line: str) -> list[str]:
    """The names that a list's line may mean, the likeliest first: names hold spaces, and spaces divide columns."""
    first = line.split()[0]
    texts = [first] if first.lower().endswith(SUFFIXES) else [line, first]
    exact_first = [line, *(part for text in texts for part in (text, Path(text).name))]
    return [name for text in exact_first for name in (text, _bare(text))] + [Path(first).stem]


def _bare(name: str) -> str:
    return str(Path(name).with_suffix("")) if name.lower().endswith(SUFFIXES) else name


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _refuse_missing_list(card: Card, root: Path, split: str) -> None:
    choices = _choices(card.splits[split])
    if any(_is_list(choice) for choice in choices):
        raise UserError(
            f"There is no {root / choices[0]}, the list of the split {split!r} of the data card {card.name!r};"
            " write it with one name a line, or change --data.card.splits."
        )


def _drawn(card: Card, rest: list[Pair], wanted: int, seed: int) -> tuple[list[Pair], list[Pair]]:
    """(about `wanted` pairs in whole groups, the others); at least one group stays with the others."""
    groups: dict[str, list[Pair]] = defaultdict(list)
    for pair in rest:
        groups[group_of(card, pair.name)].append(pair)
    # the order by hash, not by a shuffle: a file more or less changes few others' places
    order = sorted(groups, key=lambda group: hashlib.sha256(f"{seed}/{group}".encode()).digest())
    taken: list[str] = []
    for group in order[: len(order) - 1]:
        if sum(len(groups[g]) for g in taken) + len(groups[group]) <= wanted:
            taken.append(group)
    if not taken and len(order) > 1:
        taken = [min(order, key=lambda group: len(groups[group]))]
    chosen = {pair.name for group in taken for pair in groups[group]}
    return [p for p in rest if p.name in chosen], [p for p in rest if p.name not in chosen]


def group_of(card: Card, name: str) -> str:
    """What keeps images together: the match of the card's `group` in the name, or the name itself."""
    if not card.group:
        return name
    match = re.search(card.group, name)
    if not match:
        raise UserError(f"group {card.group!r} of the data card {card.name!r} does not match the image {name!r}.")
    return "/".join(part or "" for part in match.groups()) or match[0]


def _refuse_leaks(card: Card, splits: dict[str, list[Pair]]) -> None:
    images: dict[Path, str] = {}
    groups: dict[str, str] = {}
    for split, pairs in splits.items():
        for pair in pairs:
            if (other := images.setdefault(pair.image, split)) != split:
                raise UserError(f"{pair.image} lies in two splits, {other} and {split}; list it in one of them.")
            if card.group and (other := groups.setdefault(group_of(card, pair.name), split)) != split:
                raise UserError(
                    f"The group {group_of(card, pair.name)!r} lies in two splits, {other} and {split} ({pair.name});"
                    " put all its images into one, or drop `group` from the card."
                )


def _nothing_found(card: Card, root: Path, split: str) -> NoReturn:
    pattern = card.images[0].replace("{split}", split)
    folder = root / pattern.split("{name}")[0].rpartition("/")[0]
    why = "is empty" if folder.is_dir() else "does not exist"
    there = ", ".join(sorted(entry.name for entry in root.iterdir() if not entry.name.startswith("."))[:6])
    how = f" To get the files: {' '.join(card.get.split())}" if card.get else ""
    raise UserError(
        f"No images found for {pattern}: {folder} {why}. {root} holds {there or 'nothing'}; other places are set by"
        f" --data.card.images and --data.card.masks.{how}"
    )
