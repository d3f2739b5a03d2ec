import numpy as np
import pytest
from PIL import Image

from tests.datasets.planted import ids, picture, plant_faults, plant_sound
from zoo.datasets.card import card_text, load_card
from zoo.datasets.check import check, choose_samples, fixed_card
from zoo.datasets.folder import FolderDataset
from zoo.datasets.leaks import find_leaks
from zoo.datasets.look import check_sizes, resolve
from zoo.datasets.splits import split_pairs
from zoo.errors import UserError


def checked(root, **keys):
    return check(load_card({"name": "folder", **keys}, root))


def told(report):
    return {problem.what: problem for problem in report.problems}


def save(array, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    return plant_faults(tmp_path_factory.mktemp("photos"))


def test_every_planted_fault_is_found_by_name_with_the_line_that_takes_it_out(faulty):
    problems = checked(faulty).problems
    found = {(problem.what, " ".join(problem.files).split(" (image file")[0]) for problem in problems}
    assert found == {
        ("1 file can't be read", "images/train/00.jpg can't be read"),
        ("1 image has no mask", "images/train/01.jpg"),
        ("1 mask has no image", "masks/train/99.png"),
        ("1 mask has another size than the image", "masks/train/02.png is 32x32, its image 64x64"),
        (
            "1 mask is of another kind than the others or the card",
            "masks/train/07.png is an RGB picture (#0000c8, #00c800, #c80000) among class numbers",
        ),
        ("1 value is no class", "77 in masks/train/03.png"),
        ("1 mask ignores every pixel", "masks/train/06.png has 255 or ignored values alone"),
        (
            "1 image is identical to one of another split",
            "images/train/04.jpg (train) is like images/val/12.jpg (val)",
        ),
        (
            "1 image is nearly identical to one of another split",
            "images/train/05.jpg (train) is like images/test/16.jpg (test)",
        ),
    }
    left_out = {key for problem in problems for key in problem.lines.get("exclude", ())}
    assert left_out == {f"train/{number}" for number in ("00", "01", "02", "04", "05", "06", "07", "99")}
    (values,) = [problem.lines["values"] for problem in problems if "values" in problem.lines]
    assert values == {0: 0, 1: 1, 2: 2, 255: "ignore", 77: "ignore"}


def test_nothing_is_changed_and_the_written_card_gives_sound_pairs_alone(faulty, tmp_path):
    before = {path: path.read_bytes() for path in faulty.rglob("*") if path.is_file()}
    text = card_text(fixed_card(checked(faulty)), tmp_path / "card.yaml")
    assert {path: path.read_bytes() for path in faulty.rglob("*") if path.is_file()} == before
    (tmp_path / "card.yaml").write_text(text)
    card = resolve(load_card(str(tmp_path / "card.yaml")))
    pairs = split_pairs(card)
    check_sizes([pair for some in pairs.values() for pair in some])
    assert [pair.name for pair in pairs["train"]] == ["03", "08", "09", "10", "11"]
    for some in pairs.values():
        for sample in FolderDataset(card, some):
            assert set(sample["mask"].unique().tolist()) <= {0, 1, 2, 255}
    assert not check(load_card(str(tmp_path / "card.yaml"))).problems


def test_a_sound_folder_has_no_problems_and_its_figures_are_those_of_the_files(tmp_path):
    report = checked(plant_sound(tmp_path, {"train": 6, "val": 3}))
    assert report.problems == ()
    for row, numbers in enumerate((range(6), range(6, 9))):
        masks = np.stack([ids(number) for number in numbers])
        assert report.pixels[row].tolist() == [(masks == value).sum() for value in (0, 1, 2, 255)]
        assert report.images[row].tolist() == [(masks == value).any((1, 2)).sum() for value in (0, 1, 2, 255)]
    assert report.sizes("train") == {(64, 64): 6}
    assert checked(tmp_path).pixels.tolist() == check(load_card("folder", tmp_path), num_workers=0).pixels.tolist()


def test_a_phone_photograph_and_its_mask_have_one_size(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for number in range(3):
        plain = Image.fromarray(picture(number)[:40])
        (tmp_path / "images").mkdir(exist_ok=True)
        plain.save(tmp_path / f"images/{number}.jpg", exif=exif)
        mask = ids(number)[:40]
        save(mask if number else np.ascontiguousarray(np.rot90(mask)), tmp_path / f"masks/{number}.png")
    report = checked(tmp_path)
    assert report.problems == ()
    assert sum(report.sizes(split)[64, 40] for split in report.pairs) == 3


def plant_deep(root, most, eight_bit=0):
    for number in range(6):
        deep = picture(number)[..., 0].astype(np.uint16) * (most // 255)
        deep[0, 0] = most - number
        save(picture(number) if number < eight_bit else deep, root / f"images/{number}.png")
        save(ids(number), root / f"masks/{number}.png")
    return root


def test_16_bit_images_that_fill_12_bits_are_named_and_the_written_card_says_so(tmp_path):
    what = "16-bit images fill but 12 bits"
    problem = told(report := checked(plant_deep(tmp_path, 4095)))[what]
    assert problem.files == ("the largest value of 6 images is 4095 of 65535",)
    assert problem.lines == {"intensity": {"bits": 12}}
    (tmp_path / "card.yaml").write_text(card_text(fixed_card(report), tmp_path / "card.yaml"))
    written = load_card(str(tmp_path / "card.yaml"))
    assert written.intensity == {"bits": 12}
    assert not check(written).problems
    brightest = max(
        sample["image"].max() for sample in FolderDataset(resolve(written), split_pairs(resolve(written))["train"])
    )
    assert brightest > 0.99
    assert what not in told(checked(tmp_path, intensity={"percentile": [1, 99]}))
    kept = told(checked(tmp_path, intensity={"channels": [0]}))[what]
    assert kept.lines == {"intensity": {"channels": [0], "bits": 12}}


def test_16_bit_images_beside_8_bit_ones_get_no_line_that_would_darken_those(tmp_path):
    problem = told(checked(plant_deep(tmp_path, 4095, eight_bit=2)))["16-bit images fill but 12 bits"]
    assert problem.lines == {}


@pytest.mark.parametrize(("most", "bits"), [(255, None), (300, 9), (16383, 14), (16384, None), (65535, None)])
def test_16_bit_images_of_nearly_the_full_range_or_of_8_bits_are_left_alone(tmp_path, most, bits):
    found = [one for one in told(checked(plant_deep(tmp_path, most))) if one.startswith("16-bit")]
    assert found == ([f"16-bit images fill but {bits} bits"] if bits else [])


def test_masks_of_0_and_1_beside_masks_of_0_and_255_are_one_foreground(tmp_path):
    for number in range(6):
        save(picture(number), tmp_path / f"images/{number}.png")
        save((ids(number) == 1).astype(np.uint8) * np.uint8(255 if number % 2 else 1), tmp_path / f"masks/{number}.png")
    problem = told(report := checked(tmp_path))["values don't mean one thing"]
    assert problem.lines == {"values": {0: 0, 1: 1, 255: 1}}
    assert "255 would pass for ignored" in problem.way_out
    assert report.card.num_classes == 1
    assert not checked(tmp_path, values={0: 0, 1: 1, 255: 1}).problems


def test_a_rare_class_among_class_numbers_is_no_stray(tmp_path):
    for number in range(8):
        save(picture(number), tmp_path / f"images/{number}.png")
        mask = ids(number)
        mask[40:] = 3 if number == 0 else mask[40:]
        save(mask, tmp_path / f"masks/{number}.png")
    report = checked(tmp_path, splits={"val": None, "test": None})
    assert report.problems == ()
    assert report.card.num_classes == 4


def test_a_card_that_means_other_values_is_answered_with_the_masks_own(tmp_path):
    plant_sound(tmp_path, {"train": 6, "val": 2})
    problem = told(checked(tmp_path, values={0: 0, 255: 1}))["2 values are no class"]
    assert problem.lines == {"values": {0: 0, 1: 1, 2: 2, 255: "ignore"}, "num_classes": 3}
    assert problem.files[0].startswith("1 in masks/train/00.png")
    grey = told(checked(tmp_path, values={"#000000": 0, "#ffffff": 1}))
    assert grey["2 values are no class"].lines["values"] == {0: 0, 1: 1, 2: 2, 255: "ignore"}


def test_coloured_masks_are_classes_and_a_stray_colour_is_named(tmp_path):
    colors = np.array([[0, 0, 0], [200, 0, 0], [0, 0, 200]], np.uint8)
    for number in range(8):
        save(picture(number), tmp_path / f"images/{number}.png")
        mask = colors[ids(number) % 3]
        mask[5, 5:7] = (1, 2, 3) if number == 0 else mask[5, 5:7]
        save(mask, tmp_path / f"masks/{number}.png")
    problem = told(checked(tmp_path))["1 value is no class"]
    assert problem.files == ("#010203 in masks/0.png",)
    assert problem.lines == {"values": {"#000000": 0, "#0000c8": 1, "#c80000": 2, "#010203": "ignore"}}


def test_a_class_in_no_mask_and_one_that_is_everywhere_are_named(tmp_path):
    for number in range(6):
        save(picture(number), tmp_path / f"images/{number}.png")
        mask = np.full((64, 64), 3, np.uint8)
        mask[0, number], mask[1, 0] = 0, 1
        save(mask, tmp_path / f"masks/{number}.png")
    problems = told(checked(tmp_path))
    assert problems["1 class is in no mask"].files == ("2",)
    assert problems["1 class is in no mask"].lines == {
        "values": {0: 0, 1: 1, 3: 2, 255: "ignore"},
        "num_classes": 3,
    }
    assert problems["class 3 is everywhere"].files == ("99.95 % of the labelled pixels are 3",)


def test_smoothed_edges_in_one_mask_are_told_from_slips(tmp_path):
    plant_sound(tmp_path, {"train": 8})
    save(np.linspace(0, 250, 64).astype(np.uint8)[None].repeat(64, axis=0), tmp_path / "masks/train/03.png")
    problem = told(checked(tmp_path, splits={"val": None, "test": None}))
    what = "1 mask looks like a photograph or smoothed edges"
    assert problem.keys() == {what}
    assert problem[what].lines == {"exclude": ["train/03"]}


@pytest.mark.parametrize("smoothed", [1, 6])
def test_smoothed_masks_of_one_foreground_are_greys(tmp_path, smoothed):
    for number in range(8):
        save(picture(number), tmp_path / f"images/{number}.png")
        distance = np.hypot(*np.mgrid[-32:32, -32:32]) - 12 - number
        steepness = 40 if number < smoothed else 1e6
        save((128 - steepness * distance).clip(0, 255).astype(np.uint8), tmp_path / f"masks/{number}.png")
    report = checked(tmp_path)
    assert report.problems == ()
    assert report.card.values == "grey"


def test_numbers_of_objects_are_told_from_classes(tmp_path):
    for number in range(6):
        save(picture(number), tmp_path / f"images/{number}.png")
        save(
            (np.arange(64) // 2 % (26 + number)).astype(np.uint8)[None].repeat(64, 0), tmp_path / f"masks/{number}.png"
        )
    problem = told(checked(tmp_path))["masks look like instance numbers"]
    assert problem.lines == {"values": {0: 0, "1-65535": 1}, "num_classes": 1}


def test_a_group_and_an_image_in_two_splits_are_leaks(tmp_path):
    plant_sound(tmp_path, {"train": 4, "val": 2})
    problem = told(checked(tmp_path, group=r"^\d"))["2 images are in two splits or their groups are"]
    assert problem.lines == {"exclude": ["val/04", "val/05"]}
    assert "The group '0' lies in two splits, train and val (04)" in problem.files[0]


def test_two_files_of_one_name_and_listed_names_without_files_are_named(tmp_path):
    plant_sound(tmp_path, {"": 6})
    save(picture(30), tmp_path / "images/02.png")
    (tmp_path / "val.txt").write_text("01\n77\n")
    problems = told(checked(tmp_path, splits={"val": "val.txt", "test": None}))
    assert problems["1 file shares its name"].files == ("images/02.jpg", "images/02.png")
    assert "names '77', but there is no such image" in problems["1 name is listed without files"].files[0]
    fixed = split_pairs(fixed_card(checked(tmp_path, splits={"val": "val.txt", "test": None})))
    assert [pair.name for pair in fixed["train"]] == ["00", "03", "04", "05"]


def test_copies_that_a_new_draw_would_part_are_left_out_too(tmp_path):
    for number in range(30):
        save(picture(number // 2), tmp_path / f"images/{number:02d}.png")
        save(ids(number), tmp_path / f"masks/{number:02d}.png")
    report = checked(tmp_path)
    assert any("identical" in problem.what for problem in report.problems)
    splits = split_pairs(fixed_card(report))
    pictures = [{int(pair.name) // 2 for pair in some} for some in splits.values()]
    assert sum(map(len, pictures)) == len(set.union(*pictures))


def test_a_folder_without_a_sound_training_image_gets_no_card(tmp_path):
    plant_sound(tmp_path, {"train": 3, "val": 2})
    for path in (tmp_path / "masks/train").iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"No images found|every training image has a problem"):
        fixed_card(checked(tmp_path))


def test_samples_come_from_all_splits_and_are_sound(faulty):
    report = checked(faulty)
    chosen = choose_samples(report, 9)
    assert {split: sum(one == split for one, _ in chosen) for split in report.pairs} == {
        "train": 3,
        "val": 3,
        "test": 3,
    }
    assert not {"00", "02", "07"} & {pair.name for _, pair in choose_samples(report, 100)}


def test_leaks_are_looked_for_between_what_trains_and_later_splits_alone():
    rng = np.random.default_rng(0)
    thumbs = rng.integers(0, 256, (6, 8, 9), dtype=np.uint8)
    thumbs[3], thumbs[5] = thumbs[0], thumbs[4]  # train and test; two tests
    digests = [b"a", b"b", b"b", b"c", b"d", b"e"]
    found = find_leaks([0, 0, 1, 2, 2, 3], 2, digests, thumbs)
    assert [(leak.index, leak.other, leak.identical) for leak in found] == [(0, 3, False), (1, 2, True)]


def test_flat_pictures_are_no_copies_of_each_other():
    flat = np.full((4, 8, 9), 7, np.uint8)
    assert find_leaks([0, 0, 1, 1], 1, [b"a", b"b", b"c", b"d"], flat) == []
    assert find_leaks([], 0, [], np.zeros((0, 8, 9), np.uint8)) == []
