"""Files into pairs, pairs into splits: patterns, name lists, and seeded shares that keep groups together."""

import hashlib
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

from zoo.datasets.card import Card
from zoo.datasets.pixels import SUFFIXES
from zoo.errors import UserError


@dataclass(frozen=True)
class Pair:
    """An image file and its mask file; `name` is what {name} matched, `folder` what {split} stood for."""

    name: str
    image: Path
    mask: Path
    folder: str = ""

    @property
    def key(self) -> str:
        """What `exclude` of a card calls it."""
        return _key(self.name, self.folder)


@dataclass(frozen=True)
class Fault:
    """Files that don't fit together: what `exclude` calls them, the files, and a sentence with the way out."""

    kind: Literal["image without mask", "mask without image", "two of one name", "only listed", "leak"]
    keys: tuple[str, ...]
    files: tuple[Path, ...]
    sentence: str


def refuse(fault: Fault) -> None:
    """The end of the matter, unless a caller collects faults."""
    raise UserError(fault.sentence)


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


def split_pairs(card: Card, tell: Callable[[Fault], None] = refuse) -> dict[str, list[Pair]]:
    """All splits of a resolved card, each sorted by name; deterministic for given files, names and seed.

    A share is drawn from train by the hash of seed and name (or group): rounded, but at least one image of two (val)
    or three (val and test). Splits whose folder or list does not exist are left out.
    tell: gets images without masks and the other way round, two files of one name, listed names that are missing, and
    images or groups that lie in two splits; by default it raises, else the pairs are those without these files.
    Raises UserError for these, and for empty folders and missing lists.
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
                pairs[split] = _listed(card, root, choice, tell)
                listed.update(pair.name for pair in pairs[split])
            elif not _is_list(choice) and _find(root, card.images, choice):
                if not by_folder:
                    raise UserError(
                        f"splits.{split} of the data card {card.name!r} is the folder {choice!r}, but images is"
                        f" {card.images[0]!r} without {{split}}; put {{split}} there or split by list or share."
                    )
                pairs[split] = _paired(card, root, choice, split, tell)
            else:
                continue
            break
        else:
            _refuse_missing_list(card, root, split)
    if "train" not in splits:
        everything = _paired(card, root, "train" if by_folder else "", "train", tell)
        pairs["train"] = [pair for pair in everything if pair.name not in listed]
    elif "train" not in pairs:
        _nothing_found(card, root, str(_choices(splits["train"])[0]))
    total = len(pairs["train"])
    for split in (s for s in splits if s in shares):
        pairs[split], pairs["train"] = _drawn(card, pairs["train"], max(1, round(shares[split] * total)), seed)
    ordered = {split: sorted(pairs[split], key=lambda p: p.name) for split in ("train", *splits) if split in pairs}
    _find_leaks(card, ordered, tell)
    return {split: some for split, some in ordered.items() if some or split == "train"}


def _choices(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _is_list(choice: str) -> bool:
    return choice.endswith(".txt")


def _find(root: Path, patterns: Iterable[str], split: str) -> dict[str, Path]:
    """name -> file of the first pattern that finds any."""
    return next((found for pattern in patterns if (found := _match(root, pattern, split))), {})


def _match(
    root: Path, pattern: str, split: str, exclude: Iterable[str] = (), tell: Callable[[Fault], None] | None = None
) -> dict[str, Path]:
    """name -> image file for all files under `root` that match the pattern, and are not excluded; of two, the first.

    Names are in Unicode's composed form (NFC): a Mac's zip holds them decomposed. tell: gets files of one name.
    """
    left_out = frozenset(exclude)
    folder_of_keys = split if "{split}" in pattern else ""
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
                name = match["name"]
                if left_out and left_out & {name, _key(name, folder_of_keys)}:
                    continue
                first = found.setdefault(name, path)
                if tell and first != path:
                    sentence = f"{first} and {path} have one name; keep one of them."
                    tell(Fault("two of one name", (_key(name, folder_of_keys),), (first, path), sentence))
    return found


def _paired(card: Card, root: Path, split: str, name: str, tell: Callable[[Fault], None]) -> list[Pair]:
    """Every image in the folder `split` with its mask; the mask pattern with most matches counts."""
    images = _images(card, root, split, tell)
    if not images:
        _nothing_found(card, root, split)
    masks = _masks(card, root, split, images, tell)
    where = f"{root / split}" if split else f"{root}"
    if not _find(root, card.masks, split):
        tried = " or ".join(pattern.replace("{split}", split) for pattern in card.masks[:3])
        way_out = "" if name == "train" else f" To do without this split: --data.card.splits '{{{name}: null}}'."
        sentence = f"There are {len(images)} images but no masks in {where}: looked for {tried} in {root}.{way_out}"
        tell(Fault("image without mask", tuple(_key(n, split) for n in images), tuple(images.values()), sentence))
        return []
    for lonely, kind, other in ((images.keys() - masks, "image", "mask"), (masks.keys() - images, "mask", "image")):
        if lonely:
            files = [(images if kind == "image" else masks)[name] for name in sorted(lonely)]
            some = ", ".join(file.name for file in files[:3])
            sentence = (
                f"In {where}, {len(lonely)} {kind}{'s have' if len(lonely) > 1 else ' has'} no {other} of that name:"
                f" {some}{', ...' if len(lonely) > 3 else ''}. Images and masks must match up to the suffix; add the"
                f" missing {other}s or move the {kind}s away."
            )
            which: Any = f"{kind} without {other}"
            tell(Fault(which, tuple(_key(name, split) for name in sorted(lonely)), tuple(files), sentence))
    return [Pair(name, images[name], masks[name], split) for name in sorted(images.keys() & masks)]


def _images(card: Card, root: Path, split: str, tell: Callable[[Fault], None]) -> dict[str, Path]:
    pattern = next((pattern for pattern in card.images if _match(root, pattern, split)), card.images[0])
    return _match(root, pattern, split, card.exclude, tell)


def _masks(
    card: Card, root: Path, split: str, images: dict[str, Path], tell: Callable[[Fault], None]
) -> dict[str, Path]:
    """The files of the mask pattern that matches most images."""
    pattern = max(card.masks, key=lambda one: len(_match(root, one, split).keys() & images.keys()))
    return _match(root, pattern, split, card.exclude, tell)


def _listed(card: Card, root: Path, file: str, tell: Callable[[Fault], None]) -> list[Pair]:
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
        candidates = _candidates(_composed(line.strip()))
        name = next((c for c in candidates if c in images), None)
        if name in card.exclude or (name is None and set(candidates) & set(card.exclude)):
            continue
        if name is None or name not in masks:
            what = "image" if name is None else "mask"
            sentence = f"{root / file} names {line.strip()!r}, but there is no such {what} in {root}; correct the list."
            tell(Fault("only listed", (name or _bare(line.strip()),), (root / file,), sentence))
            continue
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


def _key(name: str, folder: str) -> str:
    return f"{folder}/{name}" if folder else name


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


def _find_leaks(card: Card, splits: dict[str, list[Pair]], tell: Callable[[Fault], None]) -> None:
    images: dict[Path, str] = {}
    groups: dict[str, str] = {}
    for split, pairs in splits.items():
        for pair in pairs:
            sentence = ""
            if (other := images.setdefault(pair.image, split)) != split:
                sentence = f"{pair.image} lies in two splits, {other} and {split}; list it in one of them."
            elif card.group and (other := groups.setdefault(group_of(card, pair.name), split)) != split:
                sentence = (
                    f"The group {group_of(card, pair.name)!r} lies in two splits, {other} and {split} ({pair.name});"
                    " put all its images into one, or drop `group` from the card."
                )
            if sentence:
                tell(Fault("leak", (pair.key,), (pair.image,), sentence))


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
