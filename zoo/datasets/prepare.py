"""Where a card's files are: its root, and the functions that make or download what is missing.

Everything is written aside and renamed, so that an interrupted run leaves nothing half-written.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from zoo.datasets.card import Card
from zoo.errors import UserError, nearest
from zoo.files import cache_folder


def find_root(card: Card) -> Path:
    """The folder with the card's files; prepared first where the card knows how and they are missing.

    A prepared card without a root lives in the user's cache folder, visionzoo/data/<card>. With one, its files are made
    in that folder where it is empty or missing; a download wants the folder to be there.
    Raises UserError where there is no root, no such folder, or preparing fails.
    """
    if card.prepare is None:
        if card.root is None:
            how = f" To get the files: {' '.join(card.get.split())}" if card.get else ""
            raise UserError(f"The data card {card.name!r} needs a folder; give --data.root FOLDER.{how}")
        root = Path(card.root).expanduser()
        if not root.is_dir():
            raise UserError(f"There is no folder {root}; give the folder of the data set as --data.root.")
        return root
    if card.prepare not in PREPARE:
        raise UserError(f"There is no prepare function {card.prepare!r}{nearest(card.prepare, PREPARE) or '.'}")
    root = Path(card.root).expanduser() if card.root else cache_folder() / "data" / card.name
    if card.root and card.prepare in DOWNLOADS and not root.is_dir():
        raise UserError(
            f"There is no folder {root}; give the folder of {card.name} as --data.root. To download it, leave"
            " --data.root out (the files go to the cache folder) or make that folder first."
        )
    if not root.is_dir() or not any(root.iterdir()):
        _make(PREPARE[card.prepare], card, root)
    return root


def _make(write: Callable[[Card, Path], None], card: Card, root: Path) -> None:
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    except OSError as error:
        raise UserError(f"Can't write {root}: {error.strerror}; give another folder as --data.root.") from None
    try:
        write(card, aside)
        aside.chmod(0o755)  # mkdtemp makes folders that nobody else can read
        try:
            aside.rename(root)
        except OSError:
            if not any(root.iterdir()):  # else another process was first, and its files are the same
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def mosaic(card: Card, folder: Path) -> None:
    """The demo's texture mosaics, cut from the photographs in scikit-image's wheel."""
    from zoo.datasets.mosaic import write_mosaics

    write_mosaics(folder, card)


def oxford_iiit_pet(card: Card, folder: Path) -> None:
    """The Oxford-IIIT Pet set, downloaded and checked by torchvision (800 MB)."""
    from torchvision.datasets import OxfordIIITPet

    try:
        OxfordIIITPet(str(folder), target_types="segmentation", download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"The download of Oxford-IIIT Pet failed ({error}); try again, or fetch it by hand from {card.home}"
            " and give its folder as --data.root."
        ) from None


PREPARE: dict[str, Callable[[Card, Path], None]] = {"mosaic": mosaic, "oxford_iiit_pet": oxford_iiit_pet}
DOWNLOADS = ("oxford_iiit_pet",)  # a mistyped folder shall not become one of 800 MB
