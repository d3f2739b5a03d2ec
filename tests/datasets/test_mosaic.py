import numpy as np
import pytest
from PIL import Image

from zoo.datasets import mosaic, prepare
from zoo.datasets.card import load_card
from zoo.datasets.folder import FolderDataset
from zoo.datasets.look import resolve
from zoo.datasets.splits import split_pairs
from zoo.errors import UserError

COUNTS = {"train": 3, "val": 2, "test": 2}


def test_mosaics_are_the_same_for_the_same_seed(tmp_path):
    card = load_card("demo")
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        mosaic.write_mosaics(tmp_path / name, card, COUNTS, seed)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert len(files) == 2 * sum(COUNTS.values())
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
        assert (tmp_path / "a" / file).read_bytes() != (tmp_path / "c" / file).read_bytes()


def test_mosaics_hold_several_classes_about_equally_often():
    textures = [np.full((300, 300, 3), 50, np.uint8)] * 5
    masks = np.stack([mosaic.mosaic(textures, np.random.default_rng(i))[1] for i in range(60)])
    assert all(len(np.unique(mask)) >= 3 for mask in masks)
    shares = np.bincount(masks.ravel(), minlength=5) / masks.size
    assert shares.min() > 0.14


def test_no_pixel_of_a_photograph_serves_two_splits():
    for photograph in mosaic.load_photographs():
        height, width = photograph.shape[:2]
        places = np.arange(height * width).reshape(height, width, 1)
        parts = [set(mosaic.region(places, split).ravel().tolist()) for split in ("train", "val", "test")]
        assert not parts[0] & parts[1]
        assert not parts[0] & parts[2]
        assert not parts[1] & parts[2]
        assert min(mosaic.region(photograph, s).shape[i] for s in ("train", "val", "test") for i in (0, 1)) >= 188


def test_the_demo_is_made_once_in_the_cache_folder_and_read_as_a_data_set(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(mosaic.write_mosaics, "__defaults__", (COUNTS, 0))
    card = resolve(load_card("demo"))
    data = FolderDataset(card, split_pairs(card)["train"])
    assert data.card.root == str(tmp_path / "visionzoo/data/demo")
    assert (len(data), data.card.num_classes, data[0]["image"].shape) == (3, 5, (3, 160, 160))
    mask = Image.open(data.pairs[0].mask)
    assert mask.mode == "P"
    assert tuple(mask.getpalette()[:3]) == data.card.colors[0]
    before = data.pairs[0].image.stat().st_mtime_ns
    assert len(split_pairs(resolve(load_card("demo")))["test"]) == 2
    assert data.pairs[0].image.stat().st_mtime_ns == before
    assert [p.name for p in (tmp_path / "visionzoo/data").iterdir()] == ["demo"]


def test_an_interrupted_generation_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(card, folder):
        (folder / "images").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setitem(prepare.PREPARE, "mosaic", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare.find_root(load_card("demo", tmp_path / "demo"))
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_comes_second_takes_the_files_of_the_first(tmp_path, monkeypatch):
    def overtaken(card, folder):
        (folder / "mine").touch()
        (tmp_path / "demo").mkdir()
        (tmp_path / "demo/theirs").touch()

    monkeypatch.setitem(prepare.PREPARE, "mosaic", overtaken)
    root = prepare.find_root(load_card("demo", tmp_path / "demo"))
    assert [p.name for p in root.iterdir()] == ["theirs"]
    assert [p.name for p in tmp_path.iterdir()] == ["demo"]


def test_an_unwritable_place_and_an_unknown_function_are_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"Can't write .*--data.root"):
        prepare.find_root(load_card("demo", tmp_path / "file/demo"))
    with pytest.raises(UserError, match="did you mean 'mosaic'"):
        prepare.find_root(load_card({"name": "demo", "prepare": "mosaics"}, tmp_path / "x"))


def test_a_failed_download_is_told_in_a_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    from torchvision.datasets import OxfordIIITPet

    def offline(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr(OxfordIIITPet, "__init__", offline)
    (tmp_path / "pets").mkdir()
    with pytest.raises(UserError, match=r"download of Oxford-IIIT Pet failed \(no network\).*--data.root"):
        prepare.find_root(load_card("oxford_pet", tmp_path / "pets"))
    assert list(tmp_path.rglob("*")) == [tmp_path / "pets"]


def test_a_mistyped_folder_is_not_downloaded_into(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setitem(prepare.PREPARE, "oxford_iiit_pet", lambda card, folder: asked.append(folder))
    with pytest.raises(UserError, match=r"There is no folder .*/pest; .*leave --data\.root out .* or make that folder"):
        prepare.find_root(load_card("oxford_pet", tmp_path / "pest"))
    assert not asked
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert prepare.find_root(load_card("oxford_pet")) == tmp_path / "visionzoo/data/oxford_pet"
    (tmp_path / "pets").mkdir()
    assert prepare.find_root(load_card("oxford_pet", tmp_path / "pets")) == tmp_path / "pets"
    assert len(asked) == 2
