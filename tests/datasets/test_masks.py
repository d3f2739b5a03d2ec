import re
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import yaml
from PIL import Image

from zoo.datasets.card import load_card
from zoo.datasets.look import check_sizes, look, resolve
from zoo.datasets.masks import read_mask, read_soft_mask
from zoo.datasets.splits import Pair
from zoo.errors import UserError

RNG = np.random.default_rng(0)
IDS = RNG.integers(0, 3, (6, 9)).astype(np.uint8)
PALETTE = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 64]], np.uint8)


def card(**keys):
    return load_card({"name": "folder", "values": None, **keys})


def save(array, path, palette=None, **options):
    image = Image.fromarray(array)
    if palette is not None:
        image.putpalette(palette.ravel().tolist())
    image.save(path, **options)
    return path


def blobs(shape=(64, 96)):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return (rows - 30) ** 2 + (columns - 40) ** 2 < 400


def test_palette_files_count_by_index_and_colours_by_colour(tmp_path):
    path = save(IDS, tmp_path / "a.png", PALETTE)
    assert np.array_equal(read_mask(path, card(num_classes=3)), IDS)
    by_colour = card(values={"#000000": 2, "128,0,0": 1, "#008040": 0})
    assert np.array_equal(read_mask(path, by_colour), 2 - IDS.astype(int))
    assert np.array_equal(read_mask(save(PALETTE[IDS], tmp_path / "b.png"), by_colour), 2 - IDS.astype(int))


def test_grey_and_one_bit_files_count_as_colours_where_colours_are_mapped(tmp_path):
    black_and_white = card(values={"#000000": 0, "#ffffff": 1})
    for array in (IDS > 0, (IDS > 0).astype(np.uint8) * np.uint8(255)):
        assert np.array_equal(read_mask(save(array, tmp_path / "a.png"), black_and_white), IDS > 0)


def test_values_are_applied_before_ignore_index(tmp_path):
    path = save(IDS * 100, tmp_path / "a.png")
    mapped = read_mask(path, card(values={0: "ignore", "50-150": 0, 200: 1}, ignore_index=77))
    assert np.array_equal(mapped, np.array([77, 0, 1])[IDS])
    kept = read_mask(path, card(values={0: 0, 100: 1, 200: 7}, num_classes=8, ignore_index=7))
    assert np.array_equal(kept, np.array([0, 1, 7])[IDS])


def test_one_bit_and_sixteen_bit_and_npy_masks_are_read(tmp_path):
    assert np.array_equal(read_mask(save(IDS > 0, tmp_path / "a.png"), card(num_classes=1)), IDS > 0)
    wide = IDS.astype(np.uint16) * 300
    values = card(values={0: 0, 300: 1, 600: 2})
    assert np.array_equal(read_mask(save(wide, tmp_path / "b.png"), values), IDS)
    np.save(tmp_path / "c.npy", IDS.astype(float))
    assert np.array_equal(read_mask(tmp_path / "c.npy", card(num_classes=3)), IDS)


def test_jpeg_masks_stored_as_colour_are_thresholded(tmp_path):
    truth = blobs()
    path = save(np.repeat((truth * 255).astype(np.uint8)[..., None], 3, axis=2), tmp_path / "a.jpg", quality=80)
    assert len(np.unique(np.asarray(Image.open(path)))) > 10
    for values in ("grey", {"0-127": 0, "128-255": 1}):
        assert (read_mask(path, card(values=values)) == truth).mean() > 0.998


def test_soft_masks_keep_the_greys_of_grey_files_and_map_others(tmp_path):
    greys = RNG.integers(0, 256, (6, 9)).astype(np.uint8)
    assert np.array_equal(read_soft_mask(save(greys, tmp_path / "a.png"), card(values="grey")), greys)
    path = save((IDS > 0).astype(np.uint8) * 7, tmp_path / "b.png")
    assert np.array_equal(read_soft_mask(path, card(values={0: 0, 7: 1})), (IDS > 0) * 255)
    with pytest.raises(UserError, match="soft_masks: false"):
        read_soft_mask(path, card(values={0: 0, 7: "ignore"}, num_classes=1))


def test_grey_masks_may_be_one_bit_but_not_0_and_1_or_16_bit(tmp_path):
    grey = card(values="grey")
    assert np.array_equal(read_mask(save(IDS > 0, tmp_path / "a.png"), grey), IDS > 0)
    assert np.array_equal(read_soft_mask(tmp_path / "a.png", grey), (IDS > 0) * 255)
    with pytest.raises(UserError, match=r"only 0 and 1, .*0: 0, 1: 1"):
        read_mask(save((IDS > 0).astype(np.uint8), tmp_path / "b.png"), grey)
    with pytest.raises(UserError, match="values up to 60000"):
        read_mask(save((IDS > 0) * np.uint16(60000), tmp_path / "c.png"), grey)


def test_an_unmapped_value_is_named_with_the_file_and_the_cure(tmp_path):
    path = save(IDS * 100, tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png holds the value 200, but .* --data.card.values '\{200: ignore"):
        read_mask(path, card(values={0: 0, 100: 1}))
    with pytest.raises(UserError, match="values 100, 200, but the card 'folder' knows classes 0 to 1 and ignores 255"):
        read_mask(path, card(num_classes=1))
    colours = save(PALETTE[IDS], tmp_path / "b.png")
    with pytest.raises(UserError, match="holds the value #008040"):
        read_mask(colours, card(values={"#000000": 0, "#800000": 1}))
    with pytest.raises(UserError, match=r"is a colour picture .*#000000"):
        read_mask(colours, card(num_classes=3))


def test_another_size_than_the_images_is_named(tmp_path):
    path = save(IDS, tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png is 6x9 .* its image is 6x8"):
        read_mask(path, card(num_classes=3), image_size=(6, 8))


def test_a_mask_of_the_images_stored_size_is_turned_with_it_and_one_of_its_shown_size_is_not(tmp_path):
    stored = save(IDS, tmp_path / "a.png")
    shown = save(np.rot90(IDS, -1).copy(), tmp_path / "b.png")  # orientation 6: a quarter turn clockwise
    three = card(num_classes=3)
    for path in (stored, shown):
        assert np.array_equal(read_mask(path, three, image_size=(6, 9), image_turn=6), np.rot90(IDS, -1))


def test_a_mask_with_an_orientation_of_its_own_is_turned_once(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(IDS, tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_mask(path, card(num_classes=3), (6, 9), 6), np.rot90(IDS, -1))


def test_truncated_masks_are_named(tmp_path):
    path = save(RNG.integers(0, 3, (99, 99)).astype(np.uint8), tmp_path / "a.png", PALETTE)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(UserError, match=r"a\.png can't be read"):
        read_mask(path, card(num_classes=3))


@pytest.mark.parametrize(
    ("array", "options", "values", "number"),
    [
        (blobs() * np.uint8(255), {}, "grey", 1),
        (blobs() * np.uint8(1), {}, {"0": 0, "1": 1, "255": "ignore"}, 1),
        (blobs(), {}, {"0": 0, "1": 1, "255": "ignore"}, 1),
        (blobs() + np.uint8(1), {}, {"1": 0, "2": 1, "255": "ignore"}, 1),
        (blobs() * np.uint8(38), {}, {"0": 0, "38": 1}, 1),
        (IDS, {}, {"0": 0, "1": 1, "2": 2, "255": "ignore"}, 3),
        (IDS + np.uint8(1), {}, {"1": 0, "2": 1, "3": 2, "255": "ignore"}, 3),
        (np.where(IDS == 2, 255, IDS).astype(np.uint8), {}, {"0": 0, "1": 1, "255": "ignore"}, 1),
        (np.where(IDS == 2, 255, IDS * 3).astype(np.uint8), {}, {"0": 0, "1": 1, "2": 2, "3": 3, "255": "ignore"}, 4),
        (IDS * np.uint8(100), {}, {"0": 0, "100": 1, "200": 2}, 3),
        (PALETTE[IDS], {}, {"#000000": 0, "#008040": 1, "#800000": 2}, 3),
        (PALETTE[blobs().astype(int)], {}, {"#000000": 0, "#800000": 1}, 1),
    ],
)
def test_class_values_are_found_by_looking(tmp_path, array, options, values, number):
    found = look([save(array, tmp_path / "a.png")])
    assert (found.values, found.num_classes) == (values, number)
    assert "--data.card.values" in found.sentence
    looked = replace(card(), values=found.values, num_classes=found.num_classes)
    assert len(np.unique(read_mask(tmp_path / "a.png", looked))) >= 2  # every value is mapped


def test_jpeg_and_smoothed_binary_masks_are_seen_as_such(tmp_path):
    hard = Image.fromarray((blobs() * 255).astype(np.uint8))
    hard.save(tmp_path / "a.jpg", quality=75)
    hard.resize((480, 320), Image.Resampling.BICUBIC).save(tmp_path / "b.png")
    for name in ("a.jpg", "b.png"):
        found = look([tmp_path / name])
        assert (found.values, found.num_classes) == ("grey", 1)
        assert "0-127: 0, 128-255: 1" in found.sentence


def test_many_classes_with_void_are_not_taken_for_smoothed_edges(tmp_path):
    many = np.arange(150, dtype=np.uint8).repeat(20).reshape(50, 60)
    many[0, 0] = 255
    found = look([save(many, tmp_path / "a.png")])
    assert found.num_classes == 150
    assert found.values["255"] == "ignore"


@pytest.mark.parametrize("scale", [1, 5])
def test_many_values_are_not_all_listed_and_may_be_instance_numbers(tmp_path, scale):
    numbers = (np.arange(50, dtype=np.uint8) * scale).repeat(20).reshape(20, 50)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        for number in range(5):
            save(numbers, tmp_path / folder / f"{number}.png")
    found = resolve(load_card("folder", tmp_path))
    assert found.num_classes == 50
    assert len(found.found) < 300
    assert f"0: 0, {scale}: 1, {2 * scale}: 2, ...}}'" in found.found
    [text] = re.findall(r"If they are instance numbers, one foreground: --data\.card\.values '(.+?)'", found.found)
    values = yaml.safe_load(text)
    one = resolve(load_card({"name": "folder", "values": values, "num_classes": 1}, tmp_path))
    assert (read_mask(tmp_path / "masks/0.png", one) == (numbers > 0)).all()
    alone = load_card({"name": "folder", "values": values}, tmp_path)
    assert resolve(alone).num_classes == 1


def test_palette_colours_become_class_colours(tmp_path):
    assert look([save(IDS, tmp_path / "a.png", PALETTE)]).colors == tuple(tuple(c) for c in PALETTE.tolist())


def black_and_white(truth, path, white_first=False):
    """A palette file whose index of white is 0 or 1."""
    palette = np.array([[0, 0, 0], [255, 255, 255]], np.uint8)
    return save((truth ^ white_first).astype(np.uint8), path, palette[::-1] if white_first else palette)


def test_palettes_that_contradict_each_other_count_by_colour(tmp_path):
    paths = [black_and_white(blobs(), tmp_path / f"{i}.png", white_first=i == 1) for i in range(3)]
    one_bit = save(blobs(), tmp_path / "bit.png")
    grey = save(blobs() * np.uint8(255), tmp_path / "grey.png")
    for some in (paths, [*paths, one_bit, grey], [paths[1], one_bit]):
        found = look(some)
        assert (found.values, found.num_classes) == ({"#000000": 0, "#ffffff": 1}, 1)
        for path in some:
            assert np.array_equal(read_mask(path, replace(card(), values=found.values, num_classes=1)), blobs())
    assert look([paths[0], paths[2], one_bit]).values == {"0": 0, "1": 1, "255": "ignore"}


def test_unused_palette_entries_contradict_nothing_and_colour_files_beside_palettes_count_by_colour(tmp_path):
    other = PALETTE.copy()
    other[2] = 9, 9, 9
    paths = [save(IDS, tmp_path / "a.png", PALETTE), save(IDS.clip(0, 1), tmp_path / "b.png", other)]
    assert look(paths).values == {"0": 0, "1": 1, "2": 2, "255": "ignore"}
    mixed = look([*paths, save(PALETTE[IDS], tmp_path / "c.png")])
    assert mixed.values == {"#000000": 0, "#008040": 1, "#800000": 2}


def test_a_palette_shorter_than_its_indices_is_black_beyond_them(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 4, 1, 8, 3, 0, 0, 0)  # 4x1 pixels of 8 bits with a palette
    row = zlib.compress(bytes([0, 0, 1, 5, 200]))  # filter, pixels
    chunks = [(b"IHDR", header), (b"PLTE", PALETTE[:2].tobytes()), (b"IDAT", row), (b"IEND", b"")]
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks))
    assert read_mask(path, card(values={"#000000": 0, "#800000": 1})).tolist() == [[0, 1, 0, 0]]


def test_the_masks_of_all_splits_are_looked_at_and_a_rare_255_is_ignored_anyway(tmp_path):
    for folder in ("images", "masks"):
        for split in ("train", "test"):
            (tmp_path / folder / split).mkdir(parents=True)
    for split, ids in (("train", [0, 1]), ("train", [0, 0]), ("test", [0, 3])):
        name = f"{split}/{ids[1]}.png"
        Image.new("RGB", (2, 1)).save(tmp_path / "images" / name)
        Image.fromarray(np.array([ids], np.uint8)).save(tmp_path / "masks" / name)
    found = resolve(load_card("folder", tmp_path))
    assert found.num_classes == 4
    assert found.values["255"] == "ignore"
    assert found.found.startswith("Looked at 3 of 3 masks")


def test_pairs_of_different_sizes_are_named_by_their_headers_alone(tmp_path):
    def pair(name, image, mask):
        Image.new("RGB", image).save(tmp_path / f"{name}.jpg")
        Image.new("L", mask).save(tmp_path / f"{name}.png")
        return Pair(name, tmp_path / f"{name}.jpg", tmp_path / f"{name}.png")

    right = [pair("a", (30, 20), (30, 20)), pair("turned", (30, 20), (20, 30))]
    np.save(tmp_path / "a.npy", np.zeros((20, 30, 5)))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    right += [Pair("n", tmp_path / "a.npy", right[0].mask), Pair("b", broken, right[0].mask)]
    check_sizes(right)
    wrong = [pair(c, (30, 20), (30, 21)) for c in "wxyz"]
    with pytest.raises(
        UserError, match=r"4 masks have another size .*w\.png is 21x30, its image 20x30; .*y\.png.*; \.\.\.\."
    ):
        check_sizes([*right, *wrong])


def test_nothing_is_printed_where_there_is_no_terminal(tmp_path, capfd):
    look([save(IDS, tmp_path / f"{i}.png") for i in range(20)])
    assert capfd.readouterr() == ("", "")


def test_looking_reads_evenly_spread_masks_up_to_the_limit(tmp_path):
    paths = [save(np.full((4, 4), i % 10, np.uint8), tmp_path / f"{i}.png") for i in range(40)]
    found = look(paths, limit=10)
    assert found.sentence.startswith("Looked at 10 of 40 masks")
    assert look(paths, limit=10, num_classes=12).values["11"] == 11


@pytest.mark.parametrize(
    ("array", "suffix", "message"),
    [
        (np.zeros((4, 4), np.uint8), "png", "nothing to learn"),
        (RNG.integers(0, 256, (64, 64), dtype=np.uint8), "jpg", "JPEG does not keep class numbers"),
        (RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8), "png", "different colours"),
        (RNG.integers(0, 60000, (64, 64), dtype=np.uint16), "png", "too many for classes"),
    ],
)
def test_masks_that_no_rule_explains_are_refused_with_a_way_out(tmp_path, array, suffix, message):
    with pytest.raises(UserError, match=message):
        look([save(array, tmp_path / f"a.{suffix}")])
