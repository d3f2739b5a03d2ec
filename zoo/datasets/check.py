"""What is wrong with a data set, what it holds, and the card that would train on what is sound. Changes nothing."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from zoo.datasets.card import Card
from zoo.datasets.diagnose import RARE, Diagnosis, as_keys, diagnose, mask_ids
from zoo.datasets.intensity import Intensity, stored_to_pixels
from zoo.datasets.leaks import find_leaks
from zoo.datasets.look import locate
from zoo.datasets.masks import UNMAPPED, read_mask
from zoo.datasets.pixels import read_stored
from zoo.datasets.scan import Scan, scan
from zoo.datasets.splits import Fault, Pair, split_pairs
from zoo.errors import UserError

EVERYWHERE = 0.99  # the share of all labelled pixels above which a class leaves nothing to learn
MANY = 20  # classes, from which they may be numbers of objects
DARK = range(9, 15)  # bits that 16-bit images fill, from which to which they are of a camera's or scanner's depth
SMOOTH = 8  # strange values in one mask, from which they are smoothed edges or a photograph and no slips


@dataclass(frozen=True)
class Problem:
    """what: one line; files: each with what is wrong about it; way_out: a sentence.

    lines: keys of a card that solve it, as `exclude` or `values`; optional: only the user can say whether they are
    wanted, so they are not written into the card.
    """

    what: str
    files: tuple[str, ...]
    way_out: str
    lines: dict[str, Any] = field(default_factory=dict)
    optional: bool = False


@dataclass(frozen=True)
class Report:
    """The check of a data set.

    card: with root, layout and, where they could be found, the right values. pairs: of each split. scans: by image.
    pixels, images (splits, classes + 1) int64: what is labelled as each class, the ignored last, and the number of
    images that show it. notes: sentences that are no problems.
    """

    card: Card
    pairs: Mapping[str, Sequence[Pair]]
    scans: Mapping[Path, Scan]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    classes: tuple[str, ...]
    pixels: np.ndarray
    images: np.ndarray

    def sizes(self, split: str) -> Counter[tuple[int, int]]:
        """(H, W) -> number of images of the split that can be read."""
        found = (self.scans[pair.image].image for pair in self.pairs[split])
        return Counter(image.shown for image in found if image)


def check(card: Card, num_workers: int = 2) -> Report:
    """Read every pair of the card once and tell what is there and what is wrong.

    num_workers: threads. Raises UserError where there is nothing to check: no files, a card that can't be meant so.
    """
    card, note = locate(card)
    faults: list[Fault] = []
    pairs = split_pairs(card, faults.append)
    every = [pair for some in pairs.values() for pair in some]
    unique = list({pair.image: pair for pair in every}.values())
    scans = dict(zip((pair.image for pair in unique), scan(unique, card, num_workers), strict=True))
    masks = {pair.mask: mask for pair in unique if (mask := scans[pair.image].mask)}
    found = diagnose(card, masks)
    known = found.card or card
    pixels, images = _histogram(known, pairs, scans, found)
    classes = _class_names(known)
    problems = [
        *_unreadable(card, unique, scans),
        *_unpaired(card, len(unique), faults),
        *_other_sizes(card, unique, scans),
        *_dark(card, scans),
        *_wrong_values(card, unique, found),
        *_void(known, unique, scans, found),
        *_leaks(card, pairs, scans),
        *_classes(known, classes, pixels, list(pairs)),
        *_instances(known, images),
    ]
    notes = [found.sentence if found.card else "", note, *_remarks(known, unique, scans, pixels)]
    return Report(known, pairs, scans, tuple(problems), tuple(filter(None, notes)), classes, pixels, images)


def fixed_card(report: Report) -> Card:
    """The card that leaves out the files at fault and says what the values of masks and 16-bit images mean.

    Left-out files change what is drawn for a split, so what leaks then is left out too.
    Raises UserError where no training image remains, or the masks make no sense.
    """
    card = report.card
    exclude: set[str] = set(card.exclude)
    for problem in report.problems:
        if problem.lines and not problem.optional:
            exclude.update(problem.lines.get("exclude", ()))
            card = replace(card, intensity=problem.lines.get("intensity", card.intensity))
    if card.num_classes is None:
        raise UserError("No card can be written: no rule explains what the masks hold; correct the masks first.")
    while True:
        card = replace(card, exclude=tuple(sorted(exclude)))
        faults: list[Fault] = []
        pairs = split_pairs(card, faults.append)
        if not pairs["train"]:
            raise UserError("No card can be written: every training image has a problem; correct the files first.")
        leaking = [problem.lines["exclude"] for problem in _leaks(card, pairs, report.scans)]
        more = {key for keys in [*leaking, *(fault.keys for fault in faults)] for key in keys} - exclude
        if not more:
            used = [mask for mask in card.masks if any(_matches(card, mask, some[0]) for some in pairs.values())]
            return replace(card, masks=tuple(used) or card.masks, values=as_keys(card.values))
        exclude |= more


def choose_samples(report: Report, number: int) -> list[tuple[str, Pair]]:
    """About `number` sound pairs, evenly from all splits and from each split's beginning to its end."""
    sound = {split: [pair for pair in some if _is_sound(report, pair)] for split, some in report.pairs.items()}
    left, chosen = number, []
    for place, (split, some) in enumerate(sorted(sound.items(), key=lambda item: len(item[1]))):
        count = min(len(some), -(-left // (len(sound) - place)))
        left -= count
        chosen += [(split, some[i]) for i in np.linspace(0, len(some) - 1, count).round().astype(int)]
    order = list(report.pairs)
    return sorted(chosen, key=lambda one: order.index(one[0]))


def read_sample(pair: Pair, card: Card) -> tuple[np.ndarray, np.ndarray]:
    """(image (H, W, C), class ids (H, W)) as training gets them."""
    stored, turn = read_stored(pair.image)
    image = stored_to_pixels(stored, turn, Intensity.of(card.intensity), card.channels, str(pair.image))
    return image, read_mask(pair.mask, card, stored.shape[:2], turn)


def _is_sound(report: Report, pair: Pair) -> bool:
    one = report.scans[pair.image]
    if not one.image or not one.mask or one.mask.shown(one.image) != one.image.shown:
        return False
    return report.card.num_classes is not None and not bool((mask_ids(one.mask, report.card) == UNMAPPED).any())


def _unreadable(card: Card, pairs: Iterable[Pair], scans: Mapping[Path, Scan]) -> list[Problem]:
    broken = [pair for pair in pairs if scans[pair.image].errors]
    files = tuple(
        f"{_short(card, path)} {said.removeprefix(f'{path} ')}"
        for pair in broken
        for path, said in scans[pair.image].errors.items()
    )
    return _problem(
        f"{_count(len(files), 'file')} can't be read", files, "Replace the files, or leave the pairs out:", broken
    )


def _unpaired(card: Card, pairs: int, faults: Iterable[Fault]) -> list[Problem]:
    titles = {
        "image without mask": ("image", "has no mask", "have no mask", "Add the masks, or leave the images out:"),
        "mask without image": ("mask", "has no image", "have no image", "Add the images, or leave the masks out:"),
        "two of one name": ("file", "shares its name", "share their names", "Keep one of them, or leave both out:"),
        "only listed": ("name", "is listed without files", "are listed without files", "Correct the lists, or:"),
        "leak": (
            "image",
            "is in two splits or its group is",
            "are in two splits or their groups are",
            "Leave them out:",
        ),
    }
    problems = []
    for kind, (noun, one, many, way_out) in titles.items():
        some = [fault for fault in faults if fault.kind == kind]
        keys = [key for fault in some for key in fault.keys]
        files = tuple(_short(card, file) for fault in some for file in fault.files)
        if kind in ("only listed", "leak"):
            files = tuple(fault.sentence.replace(f"{card.root}/", "") for fault in some)
        if kind == "image without mask" and len(keys) > pairs:
            tried = " or ".join(card.masks[:3])
            way_out = f"Masks were looked for as {tried}. {way_out}"
        problems += _problem(f"{_count(len(keys), noun)} {one if len(keys) == 1 else many}", files, way_out, keys)
    return problems


def _other_sizes(card: Card, pairs: Iterable[Pair], scans: Mapping[Path, Scan]) -> list[Problem]:
    wrong, files = [], []
    for pair in pairs:
        image, mask = scans[pair.image].image, scans[pair.image].mask
        if image and mask and (has := mask.shown(image)) != image.shown:
            wrong.append(pair)
            files.append(f"{_short(card, pair.mask)} is {_size(has)}, its image {_size(image.shown)}")
    what = f"{_count(len(wrong), 'mask')} {'has' if len(wrong) == 1 else 'have'} another size than the image"
    return _problem(what, files, "Make masks of the images' sizes (height x width), or leave the pairs out:", wrong)


def _dark(card: Card, scans: Mapping[Path, Scan]) -> list[Problem]:
    """16-bit images that fill fewer bits: by their full range they are read almost black."""
    images = [image for one in scans.values() if (image := one.image)]
    peaks = [image.peak for image in images if image.peak is not None]
    bits = max(peaks, default=0).bit_length()
    if bits not in DARK or card.intensity.keys() - {"channels"}:
        return []
    shown = f"the largest value of {_count(len(peaks), 'image')} is {max(peaks)} of 65535"
    what, dark = f"16-bit images fill but {bits} bits", "They would be read almost black"
    if len(peaks) < len(images):  # bits would darken those
        return [Problem(what, (shown,), f"{dark}; save them in 8 bits, as the other images are, or stretched to 16.")]
    return [Problem(what, (shown,), f"{dark}; say what is white:", {"intensity": {**card.intensity, "bits": bits}})]


def _wrong_values(card: Card, pairs: Sequence[Pair], found: Diagnosis) -> list[Problem]:
    if found.card is None:
        return [Problem("the masks make no sense", (), found.sentence)] if pairs else []
    odd = [pair for pair in pairs if pair.mask in found.odd]
    files = [f"{_short(card, pair.mask)} is {found.odd[pair.mask]}" for pair in odd]
    what = f"{_count(len(odd), 'mask is', 'masks are')} of another kind than the others or the card"
    problems = _problem(what, files, "Save them as the others are, or leave the pairs out:", odd)
    most = max(1, RARE * len(pairs))
    of_mask = Counter(path for paths in found.strays.values() if len(paths) <= most for path in paths)
    smooth = [pair for pair in pairs if of_mask[pair.mask] >= SMOOTH]
    files = [f"{_short(card, pair.mask)} holds {of_mask[pair.mask]} values that no class has" for pair in smooth]
    what = f"{_count(len(smooth), 'mask looks', 'masks look')} like a photograph or smoothed edges"
    problems += _problem(what, files, "Save them without smoothing, as PNG, or leave the pairs out:", smooth)
    left_out = {pair.mask for pair in smooth}
    held = {value: [path for path in paths if path not in left_out] for value, paths in found.strays.items()}
    files = [f"{value} in {_named(card, paths)}" for value, paths in held.items() if paths]
    if found.values is not None and (files or found.why):
        values = found.values
        if isinstance(values, Mapping):  # values of smoothed masks alone need no line
            values = {key: target for key, target in values.items() if held.get(str(key), [Path()])}
        what = f"{_count(len(files), 'value is', 'values are')} no class" if files else "values don't mean one thing"
        way_out = found.why or "Correct the masks, or say what every value means; ignored pixels count nowhere:"
        lines = {"values": as_keys(values)}
        if card.num_classes is not None and found.card.num_classes != card.num_classes:
            lines["num_classes"] = found.card.num_classes
        problems.append(Problem(what, tuple(files), way_out, lines))
    return problems


def _void(card: Card, pairs: Iterable[Pair], scans: Mapping[Path, Scan], found: Diagnosis) -> list[Problem]:
    empty = []
    for pair in pairs:
        mask = scans[pair.image].mask
        if found.card and mask and pair.mask not in found.odd and (mask_ids(mask, card) == card.ignore_index).all():
            empty.append(pair)
    files = [f"{_short(card, pair.mask)} has {card.ignore_index} or ignored values alone" for pair in empty]
    what = f"{_count(len(empty), 'mask ignores', 'masks ignore')} every pixel"
    return _problem(what, files, "They teach nothing; label them, or leave the pairs out:", empty)


def _leaks(card: Card, pairs: Mapping[str, Sequence[Pair]], scans: Mapping[Path, Scan]) -> list[Problem]:
    """Images of train and val that a later split holds too; those are left out, so that tests stay as they are."""
    order = sorted(pairs, key=lambda split: ("train", "val").index(split) if split in ("train", "val") else 2)
    whole = [(split, pair, image) for split in order for pair in pairs[split] if (image := scans[pair.image].image)]
    numbers = [order.index(split) for split, *_ in whole]
    thumbs = np.stack([image.thumb for *_, image in whole]) if whole else np.zeros((0, 8, 9), np.uint8)
    tested = sum(split in ("train", "val") for split in order)
    found = find_leaks(numbers, tested, [image.digest for *_, image in whole], thumbs)
    problems = []
    for identical, how, way_out in (
        (True, "identical to one of", "Keep each in one split; this leaves the earlier out:"),
        (
            False,
            "nearly identical to one of",
            "Look at them. Frames of one video belong into one split: give `group`, a regular expression on names, or"
            " leave the earlier out:",
        ),
    ):
        some = [leak for leak in found if leak.identical == identical]
        files = [
            f"{_short(card, whole[k.index][1].image)} ({whole[k.index][0]}) is like"
            f" {_short(card, whole[k.other][1].image)} ({whole[k.other][0]})"
            for k in some
        ]
        what = f"{_count(len(some), 'image is', 'images are')} {how} another split"
        problems += _problem(what, files, way_out, [whole[leak.index][1] for leak in some])
    return problems


def _classes(card: Card, names: Sequence[str], pixels: np.ndarray, splits: Sequence[str]) -> list[Problem]:
    totals = pixels[:, :-1].sum(axis=0)
    if not totals.any():
        return []
    problems = []
    absent = [k for k in range(len(names)) if not totals[k]]
    if absent:
        lines = _without(card, absent)
        what = f"{_count(len(absent), 'class is', 'classes are')} in no mask"
        way_out = "Right if other data shows them; else give the others new numbers:" if lines else "Check the masks."
        problems.append(Problem(what, tuple(names[k] for k in absent), way_out, lines, optional=True))
    row = pixels[list(splits).index("train"), :-1] if "train" in splits else totals
    untrained = [k for k in range(len(names)) if totals[k] and not row[k]] if row.any() else []
    if untrained:
        drawn = any(isinstance(choice, float) for choice in card.splits.values())
        lines = {"splits": {**card.splits, "seed": card.splits.get("seed", 0) + 1}} if drawn else {}
        what = f"{_count(len(untrained), 'class is', 'classes are')} in no training mask"
        way_out = "Put images of them into train" + (", or draw the splits anew:" if drawn else ".")
        problems.append(Problem(what, tuple(names[k] for k in untrained), way_out, lines, optional=True))
    for k in range(1, len(names)):
        if totals[k] > EVERYWHERE * totals.sum():
            share = f"{100 * totals[k] / totals.sum():.4g} % of the labelled pixels are {names[k]}"
            values = card.values if isinstance(card.values, dict) else {0: 0, 255: 1} if card.values == "grey" else {}
            swapped = (
                {key: 1 - int(to) if to in (0, 1) else to for key, to in values.items()} if len(names) == 2 else {}
            )
            lines = {"values": as_keys(swapped)} if swapped else {}
            way_out = "Check whether the masks are inverted" + (
                ", which these lines would turn round:" if lines else "."
            )
            problems.append(Problem(f"class {names[k]} is everywhere", (share,), way_out, lines, optional=True))
    return problems


def _instances(card: Card, images: np.ndarray) -> list[Problem]:
    """Numbers that fewer and fewer images reach are counted objects, not classes."""
    reached = images[:, 1:-1].sum(axis=0)
    if len(reached) < MANY or (np.diff(reached) > 0).any():
        return []
    shown = (
        f"1 in {_count(int(reached[0]), 'image')}, {len(reached)} in {reached[-1]}, each number in fewer than the last"
    )
    lines = {"values": {0: 0, "1-65535": 1}, "num_classes": 1}
    return [Problem("masks look like instance numbers", (shown,), "If all are one class:", lines, optional=True)]


def _without(card: Card, absent: Sequence[int]) -> dict[str, Any]:
    """The lines that take classes out and number the others anew; none where fewer than two would stay."""
    kept = [k for k in range(card.num_classes or 0) if k not in absent]
    values = card.values if isinstance(card.values, dict) else {k: k for k in range(card.num_classes or 0)}
    if len(kept) < 2 or isinstance(card.values, str):
        return {}
    numbers = {old: new for new, old in enumerate(kept)}
    mapped = {key: numbers.get(to, to) for key, to in values.items() if to not in absent}
    lines: dict[str, Any] = {"values": as_keys(mapped), "num_classes": len(kept) if len(kept) > 2 else 1}
    if card.classes and len(kept) > 2:
        lines["classes"] = [card.classes[k] for k in kept]
    return lines


def _remarks(card: Card, pairs: Sequence[Pair], scans: Mapping[Path, Scan], pixels: np.ndarray) -> list[str]:
    notes = []
    if (void := pixels[:, -1].sum()) and (total := pixels.sum()):
        notes.append(f"{100 * void / total:.3g} % of the pixels are ignored.")
    masks = [mask for pair in pairs if (mask := scans[pair.image].mask)]
    flat = sum(len(mask.values) == 1 for mask in masks)
    if flat:
        notes.append(f"{_count(flat, 'mask has', 'masks have')} one value alone, as of an image without any object.")
    if lossy := sum(mask.lossy for mask in masks):
        notes.append(f"{_count(lossy, 'mask is', 'masks are')} JPEG, which blurs values; PNG keeps them.")
    copies = Counter(image.digest for pair in pairs if (image := scans[pair.image].image))
    if twice := sum(number - 1 for number in copies.values()):
        notes.append(f"{_count(twice, 'image is an identical copy', 'images are identical copies')} of another.")
    return notes


def _histogram(
    card: Card, pairs: Mapping[str, Sequence[Pair]], scans: Mapping[Path, Scan], found: Diagnosis
) -> tuple[np.ndarray, np.ndarray]:
    """(pixels, images) of each split and class, ignored pixels last; values without a class count nowhere."""
    number = max(card.num_classes or 0, 2)
    pixels: np.ndarray = np.zeros((len(pairs), number + 1), np.int64)
    images: np.ndarray = np.zeros_like(pixels)
    for row, some in enumerate(pairs.values()):
        for pair in some:
            mask = scans[pair.image].mask
            if found.card is None or mask is None or pair.mask in found.odd:
                continue
            ids = mask_ids(mask, card)
            ids = np.where(ids == card.ignore_index, number, ids)
            known = (ids >= 0) & (ids <= number)
            own = np.bincount(ids[known], weights=mask.counts[known], minlength=number + 1).astype(np.int64)
            pixels[row] += own
            images[row] += own > 0
    return pixels, images


def _class_names(card: Card) -> tuple[str, ...]:
    if card.num_classes in (None, 1):
        return "background", card.classes[0] if card.classes else "foreground"
    return card.classes or tuple(map(str, range(card.num_classes or 0)))


def _problem(what: str, files: Sequence[str], way_out: str, left_out: Sequence[Pair] | Sequence[str]) -> list[Problem]:
    """The problem that leaving these out solves; none where there are none."""
    keys = sorted({one.key if isinstance(one, Pair) else one for one in left_out})
    return [Problem(what, tuple(files), way_out, {"exclude": keys})] if keys else []


def _matches(card: Card, pattern: str, pair: Pair) -> bool:
    filled = pattern.replace("{split}", pair.folder).replace("{name}", pair.name)
    start, star, end = filled.partition("*")
    path = _short(card, pair.mask)
    return path.startswith(start) and path.endswith(end) if star else path == filled


def _short(card: Card, path: Path) -> str:
    return path.relative_to(card.root or ".").as_posix() if path.is_relative_to(card.root or ".") else str(path)


def _named(card: Card, paths: Sequence[Path]) -> str:
    return ", ".join(_short(card, path) for path in paths[:3]) + f" and {len(paths) - 3} more" * (len(paths) > 3)


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
