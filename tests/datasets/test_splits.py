import unicodedata

import numpy as np
import pytest
from PIL import Image

from zoo.datasets.card import load_card
from zoo.datasets.folds import fold_pairs
from zoo.datasets.look import resolve
from zoo.datasets.splits import split_pairs
from zoo.errors import UserError

MASK = Image.fromarray(np.array([[0, 255]], np.uint8))


def fill(root, names, suffix=".jpg"):
    """Small images at {folder}/{name}; masks beside them where `images` stands in the path."""
    for name in names:
        image = root / f"{name}{suffix}"
        mask = root / f"{name.replace('images', 'masks')}.png"
        for path in (image, mask):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 1)).save(image)
        MASK.save(mask)


def splits_of(root, **keys):
    return split_pairs(resolve(load_card({"name": "folder", **keys}, root)))


def names(pairs):
    return {split: [pair.name for pair in some] for split, some in pairs.items()}


def test_a_flat_folder_is_split_by_shares_that_are_disjoint_and_cover_it(tmp_path):
    fill(tmp_path, [f"images/{i:03d}" for i in range(50)])
    found = names(splits_of(tmp_path))
    assert {split: len(some) for split, some in found.items()} == {"train": 40, "val": 5, "test": 5}
    assert sorted(name for some in found.values() for name in some) == [f"{i:03d}" for i in range(50)]


def test_a_seeded_split_is_the_same_each_time_and_another_for_another_seed(tmp_path):
    fill(tmp_path, [f"images/{i:03d}" for i in range(40)])
    shares = {"val": 0.25, "test": 0.25}
    first = names(splits_of(tmp_path, splits={"seed": 1, **shares}))
    assert first == names(splits_of(tmp_path, splits={"seed": 1, **shares}))
    assert first != names(splits_of(tmp_path, splits={"seed": 2, **shares}))


@pytest.mark.parametrize(("number", "sizes"), [(1, [1]), (2, [1, 1]), (3, [1, 1, 1]), (4, [2, 1, 1])])
def test_small_folders_give_val_an_image_first_then_test(tmp_path, number, sizes):
    fill(tmp_path, [f"images/{i}" for i in range(number)])
    assert [len(some) for some in splits_of(tmp_path).values()] == sizes


@pytest.mark.parametrize("pattern", ["images/{}/{}", "{}/images/{}"])
def test_split_folders_are_used_in_both_arrangements(tmp_path, pattern):
    fill(tmp_path, [pattern.format(split, i) for split in ("train", "valid", "test") for i in range(3)])
    assert {split: len(some) for split, some in splits_of(tmp_path).items()} == {"train": 3, "val": 3, "test": 3}


def test_val_is_drawn_from_train_where_it_has_no_folder(tmp_path):
    fill(tmp_path, [f"images/{split}/{i}" for split in ("train", "test") for i in range(10)])
    assert {split: len(some) for split, some in splits_of(tmp_path).items()} == {"train": 9, "val": 1, "test": 10}


def test_lists_name_images_by_name_file_or_path_and_train_is_the_rest(tmp_path):
    fill(tmp_path, [f"images/{i}" for i in range(6)])
    (tmp_path / "val.txt").write_text("0\n# a remark\n1.jpg 4 2\n\n")
    (tmp_path / "test.txt").write_text("/elsewhere/images/2.jpg /elsewhere/masks/2.png\n")
    found = names(splits_of(tmp_path, splits={"val": "val.txt", "test": "test.txt"}))
    assert found == {"train": ["3", "4", "5"], "val": ["0", "1"], "test": ["2"]}
    (tmp_path / "val.txt").write_text("77\n")
    with pytest.raises(UserError, match=r"val\.txt names '77', but there is no such image"):
        splits_of(tmp_path, splits={"val": "val.txt"})


def test_lists_name_images_with_spaces_and_in_another_unicode_form(tmp_path):
    fill(tmp_path, ["images/my photo", "images/my", unicodedata.normalize("NFD", "images/Größe"), "images/c"])
    (tmp_path / "val.txt").write_text("my photo.jpg\n", encoding="utf-8-sig")
    (tmp_path / "test.txt").write_text("images/Größe.jpg masks/other.png\n", encoding="utf-8")
    found = names(splits_of(tmp_path, splits={"val": "val.txt", "test": "test.txt"}))
    assert found == {"train": ["c", "my"], "val": ["my photo"], "test": ["Größe"]}
    for line, name in (("my 1 2", "my"), ("my photo", "my photo"), ("/x/my photo.jpg", "my photo"), ("my.jpg a", "my")):
        (tmp_path / "val.txt").write_text(f"{line}\n")
        assert names(splits_of(tmp_path, splits={"val": "val.txt"}))["val"] == [name]


def test_columns_after_a_name_with_a_dot_do_not_shorten_it(tmp_path):
    fill(tmp_path, ["images/frame", "images/frame.001", "images/c", "images/d"])
    (tmp_path / "val.txt").write_text("frame.001 3 4\n")
    assert names(splits_of(tmp_path, splits={"val": "val.txt"}))["val"] == ["frame.001"]


def test_images_and_masks_match_in_either_unicode_form(tmp_path):
    fill(tmp_path, ["images/Größe", "images/é"])
    for mask in list((tmp_path / "masks").iterdir()):
        mask.rename(mask.with_name(unicodedata.normalize("NFD", mask.name)))
    pairs = [pair for some in splits_of(tmp_path).values() for pair in some]
    assert sorted(pair.name for pair in pairs) == ["Größe", "é"]
    assert all(pair.mask.is_file() for pair in pairs)


def test_a_list_that_is_no_text_is_refused(tmp_path):
    fill(tmp_path, ["images/a", "images/b"])
    (tmp_path / "val.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"The list .*val\.txt can't be read .*UTF-8"):
        splits_of(tmp_path, splits={"val": "val.txt"})


@pytest.mark.parametrize("pattern", ["images/{}/{}", "{}/images/{}"])
@pytest.mark.parametrize("values", ["look", {0: 0, 255: 1}])
def test_a_folder_of_images_without_masks_is_left_out_with_a_note(tmp_path, pattern, values):
    fill(tmp_path, [pattern.format(split, i) for split in ("train", "val", "test") for i in range(10)])
    for split in ("val", "test"):
        for i in range(10):
            (tmp_path / f"{pattern.format(split, i).replace('images', 'masks')}.png").unlink()
    card = resolve(load_card({"name": "folder", "values": values}, tmp_path))
    for one in (card, resolve(card)):
        assert {split: len(some) for split, some in split_pairs(one).items()} == {"train": 9, "val": 1}
        assert one.found.endswith(
            "The images in 'val' have no masks, so they are not used. The images in 'test' have no masks, so they are"
            " not used."
        )
    with pytest.raises(UserError, match=r"10 images but no masks in .*--data\.card\.splits '\{test: null\}'"):
        splits_of(tmp_path, splits={"test": "test"})
    assert "test" not in splits_of(tmp_path, splits={"test": None})


def test_a_folder_with_some_masks_missing_is_still_refused(tmp_path):
    fill(tmp_path, [f"images/{split}/{i}" for split in ("train", "test") for i in range(3)])
    (tmp_path / "masks/test/1.png").unlink()
    with pytest.raises(UserError, match="1 image has no mask"):
        splits_of(tmp_path)


def test_a_seed_alone_keeps_val_and_test(tmp_path):
    fill(tmp_path, [f"images/{i:03d}" for i in range(20)])
    sizes = {split: len(some) for split, some in splits_of(tmp_path, splits={"seed": 1}).items()}
    assert sizes == {"train": 16, "val": 2, "test": 2}


def test_a_missing_list_and_an_image_in_two_lists_are_refused(tmp_path):
    fill(tmp_path, ["images/a", "images/b"])
    with pytest.raises(UserError, match=r"There is no .*val\.txt, the list of the split 'val'"):
        splits_of(tmp_path, splits={"val": "val.txt"})
    for split in ("val", "test"):
        (tmp_path / f"{split}.txt").write_text("a\na\n")
    assert names(splits_of(tmp_path, splits={"val": "val.txt"})) == {"train": ["b"], "val": ["a"]}
    with pytest.raises(UserError, match=r"a\.jpg lies in two splits, val and test"):
        splits_of(tmp_path, splits={"val": "val.txt", "test": "test.txt"})


def test_no_group_crosses_a_seeded_split(tmp_path):
    fill(tmp_path, [f"images/patient{p:02d}_{i}" for p in range(12) for i in range(p % 4 + 1)])
    for seed in range(8):
        found = names(splits_of(tmp_path, group=r"patient\d+", splits={"seed": seed, "val": 0.2, "test": 0.2}))
        patients = {split: {name.split("_")[0] for name in some} for split, some in found.items()}
        assert not patients["train"] & patients["val"]
        assert not patients["train"] & patients["test"]
        assert not patients["val"] & patients["test"]
        assert 4 <= len(found["val"]) <= 6  # of 30


def test_a_group_that_crosses_split_folders_is_refused(tmp_path):
    fill(tmp_path, ["images/train/p1_a", "images/train/p2_a", "images/val/p1_b", "images/test/p3_a"])
    with pytest.raises(UserError, match=r"group 'p1' lies in two splits, train and val \(p1_b\)"):
        splits_of(tmp_path, group=r"^(p\d+)_")


def test_a_group_that_matches_nothing_is_refused(tmp_path):
    fill(tmp_path, ["images/a", "images/b"])
    with pytest.raises(UserError, match="does not match the image"):
        splits_of(tmp_path, group=r"\d+")


@pytest.mark.parametrize("suffix", ["_mask", "_segmentation"])
def test_masks_may_carry_a_common_suffix(tmp_path, suffix):
    fill(tmp_path, ["images/a", "images/b.c", "images/sub/d"])
    for mask in list((tmp_path / "masks").rglob("*.png")):
        mask.rename(mask.with_name(mask.name.replace(".png", f"{suffix}.png")))
    pairs = [pair for some in splits_of(tmp_path).values() for pair in some]
    assert sorted(pair.name for pair in pairs) == ["a", "b.c", "sub/d"]
    assert all(pair.mask.stem == f"{pair.image.stem}{suffix}" for pair in pairs)


def test_hidden_files_and_files_of_other_kinds_are_passed_over(tmp_path):
    fill(tmp_path, ["images/a", "images/b"])
    for name in ("images/.DS_Store", "images/._a.jpg", "masks/Thumbs.db", "images/notes.txt"):
        (tmp_path / name).write_text("")
    assert sum(map(len, splits_of(tmp_path).values())) == 2


def test_missing_and_empty_folders_are_told_apart_with_what_is_there(tmp_path):
    with pytest.raises(UserError, match=r"There is no folder .*--data.root"):
        splits_of(tmp_path / "nowhere")
    (tmp_path / "pictures").mkdir()
    with pytest.raises(UserError, match=r"images does not exist.* holds pictures.* --data.card.images"):
        splits_of(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match="images is empty"):
        splits_of(tmp_path)
    with pytest.raises(UserError, match=r"needs a folder; give --data\.root FOLDER"):
        resolve(load_card("folder"))


def test_pairs_that_do_not_match_are_named(tmp_path):
    fill(tmp_path, [f"images/{c}" for c in "abcdefgh"])
    for c in "abcde":
        (tmp_path / f"masks/{c}.png").unlink()
    with pytest.raises(UserError, match=r"5 images have no mask of that name: a\.jpg, b\.jpg, c\.jpg, \.\.\."):
        splits_of(tmp_path)
    for c in "abcde":
        (tmp_path / f"images/{c}.jpg").unlink()
    (tmp_path / "images/f.jpg").unlink()
    with pytest.raises(UserError, match=r"1 mask has no image of that name: f\.png"):
        splits_of(tmp_path)
    (tmp_path / "images/f.jpg").touch()
    (tmp_path / "images/f.png").touch()
    with pytest.raises(UserError, match="have one name"):
        splits_of(tmp_path)


def test_images_without_any_masks_are_named(tmp_path):
    fill(tmp_path, ["images/a"])
    (tmp_path / "masks/a.png").unlink()
    with pytest.raises(UserError, match=r"1 images? but no masks .* looked for masks/\{name\}"):
        splits_of(tmp_path)


def test_camvids_layouts_are_both_known(tmp_path):
    for split in ("train", "val", "test"):
        for path in (f"a/images/{split}/x.jpg", f"a/labels/{split}/x.png", f"b/{split}/x.png", f"b/{split}annot/x.png"):
            (tmp_path / path).parent.mkdir(parents=True)
            Image.new("L", (2, 2), 3).save(tmp_path / path)
    for root in ("a", "b"):
        card = resolve(load_card("camvid", tmp_path / root))
        assert names(split_pairs(card)) == {"train": ["x"], "val": ["x"], "test": ["x"]}
        assert (card.num_classes, card.ignore_index) == (11, 11)


def test_pranets_polyp_set_has_five_tests_and_trains_on_the_rest(tmp_path):
    sets = ["Kvasir", "CVC-ClinicDB", "CVC-ColonDB", "ETIS-LaribPolypDB", "CVC-300"]
    for folder in ("TrainDataset", *(f"TestDataset/{name}" for name in sets)):
        kind = ("image", "mask") if folder == "TrainDataset" else ("images", "masks")
        for one in kind:
            (tmp_path / folder / one).mkdir(parents=True)
            MASK.save(tmp_path / folder / one / "1.png")
    found = split_pairs(resolve(load_card("polyp", tmp_path)))
    assert list(found) == ["train", "test_kvasir", "test_clinicdb", "test_colondb", "test_etis", "test_cvc300"]
    assert "ETIS" in str(found["test_etis"][0].image)


def test_oxford_pets_lists_are_read_and_its_border_ignored(tmp_path):
    from zoo.datasets.masks import read_mask

    base = tmp_path / "oxford-iiit-pet"
    fill(base, [f"images/Pug_{i}" for i in range(4)])
    for i in range(4):
        trimap = base / "annotations/trimaps" / f"Pug_{i}.png"
        trimap.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array([[1, 2, 3]], np.uint8)).save(trimap)
    (base / "annotations/trainval.txt").write_text("Pug_0 1 1 1\nPug_1 1 1 1\nPug_2 1 1 1\n")
    (base / "annotations/test.txt").write_text("Pug_3 1 1 1\n")
    for root in (tmp_path, base):
        card = resolve(load_card("oxford_pet", root))
        found = split_pairs(card)
        assert {split: len(some) for split, some in found.items()} == {"train": 2, "val": 1, "test": 1}
        assert read_mask(found["test"][0].mask, card).tolist() == [[1, 0, 255]]


def folded(root, folds, **keys):
    card = resolve(load_card({"name": "folder", **keys}, root))
    return [fold_pairs(card, split_pairs(card), fold, folds) for fold in range(1, folds + 1)]


def test_every_image_is_in_exactly_one_fold_and_test_stays(tmp_path):
    fill(tmp_path, [f"images/{i:03d}" for i in range(52)])
    found = [names(one) for one in folded(tmp_path, 5)]
    before = names(splits_of(tmp_path))
    held_out = [name for one in found for name in one["val"]]
    assert sorted(held_out) == sorted(before["train"] + before["val"])
    assert {len(one["val"]) for one in found} == {9, 10}
    for one in found:
        assert sorted(one["train"] + one["val"]) == sorted(held_out)
        assert one["test"] == before["test"]
    assert found == [names(one) for one in folded(tmp_path, 5)]
    other = [names(one) for one in folded(tmp_path, 5, splits={"seed": 1, "val": 0.1, "test": 0.1})]
    assert [one["val"] for one in other] != [one["val"] for one in found]


def test_a_group_is_in_one_fold_and_folds_are_about_equally_large(tmp_path):
    fill(tmp_path, [f"images/p{patient}_{i}" for patient in range(9) for i in range(1 + patient)])
    found = [names(one) for one in folded(tmp_path, 3, group=r"p(\d+)_")]
    where = {name.split("_")[0]: k for k, one in enumerate(found) for name in one["val"]}
    assert all(where[name.split("_")[0]] == k for k, one in enumerate(found) for name in one["val"])
    sizes = [len(one["val"]) for one in found]
    assert max(sizes) - min(sizes) <= 3  # the whole groups of nine patients


def test_folds_of_split_folders_take_images_of_one_name_from_both(tmp_path):
    fill(tmp_path, [f"images/{split}/{i}" for split in ("train", "val", "test") for i in range(4)])
    found = folded(tmp_path, 4)
    assert sorted(pair.key for one in found for pair in one["val"]) == sorted(
        f"{split}/{i}" for split in ("train", "val") for i in range(4)
    )
    assert [len(one["test"]) for one in found] == [4] * 4


@pytest.mark.parametrize(
    ("fold", "folds", "why"),
    [(1, 1, "takes 2 or more"), (6, 5, "there are 5 folds, counted from 1"), (1, 9, "hold 8 images; take fewer")],
)
def test_folds_that_cannot_be_are_refused(tmp_path, fold, folds, why):
    fill(tmp_path, [f"images/{i}" for i in range(9)])
    card = resolve(load_card("folder", tmp_path))
    with pytest.raises(UserError, match=why):
        fold_pairs(card, split_pairs(card), fold, folds)
