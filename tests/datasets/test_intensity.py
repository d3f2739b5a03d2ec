import subprocess
import sys

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from zoo.datasets.intensity import Intensity, read_image, to_tensor
from zoo.datasets.masks import read_labels
from zoo.datasets.pixels import MOST_PIXELS, find_images, pil_values, read_stored
from zoo.errors import UserError

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (6, 9, 3), dtype=np.uint16)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_eight_bit_colour_is_read_as_it_is(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(COLOUR).save(path, **({"lossless": True} if suffix == "webp" else {}))
    pixels = read_image(path)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, COLOUR)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_colour_keeps_its_depth_and_lies_in_0_1(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    cv2.imwrite(str(path), DEEP[..., ::-1])
    pixels = read_image(path)
    assert pixels.dtype == np.float32
    assert np.allclose(pixels, DEEP / 65535, atol=1e-7)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_repeated_for_three_channels(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(DEEP[..., 0]).save(path)
    assert np.allclose(read_image(path), np.repeat(DEEP[..., :1], 3, axis=2) / 65535, atol=1e-7)
    assert read_image(path, channels=1).shape == (6, 9, 1)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize(
    "layout", [{}, {"compression": "zlib"}, {"compression": "zlib", "rowsperstrip": 7}, {"tile": (16, 32)}]
)
@pytest.mark.parametrize("kind", ["u1", "u2", "i4", "f4"])
def test_a_tiff_is_the_array_that_was_written(tmp_path, byteorder, layout, kind):
    for channels in (1, 2, 3, 4, 5):
        values = (RNG.random((33, 47, channels)) * 200).astype(kind)
        values = values[..., 0] if channels == 1 else values
        for photometric, planes in (("minisblack", False), ("minisblack", True), ("rgb", False), ("rgb", True)):
            if (channels < 3 and photometric == "rgb") or (channels == 1 and planes):
                continue
            how = {"planarconfig": "separate" if planes else "contig"} if channels > 1 else {}
            stored = np.moveaxis(values, -1, 0) if planes else values
            path = tmp_path / "a.tif"
            tifffile.imwrite(path, stored, photometric=photometric, byteorder=byteorder, **how, **layout)
            found, turn = read_stored(path)
            assert (found.dtype, turn) == (values.dtype, 1)
            np.testing.assert_array_equal(found, values, err_msg=f"{channels} {photometric} {planes}")


def test_channels_that_a_codec_that_is_not_here_would_lose_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.datasets.tiff.is_decodable", lambda page: False)
    tifffile.imwrite(tmp_path / "a.tif", COLOUR, photometric="minisblack", planarconfig="contig")
    with pytest.raises(UserError, match="has 3 channels in a compression that needs a further package"):
        read_stored(tmp_path / "a.tif")


def test_the_other_pages_of_a_tiff_are_left_alone(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.stack([COLOUR, COLOUR // 2]), photometric="rgb")
    np.testing.assert_array_equal(read_stored(tmp_path / "a.tif")[0], COLOUR)


def test_float_tiff_is_taken_as_it_is_in_grey_and_colour(tmp_path):
    values = RNG.normal(0, 100, (6, 9, 3)).astype(np.float32)
    Image.fromarray(values[..., 0]).save(tmp_path / "grey.tif")
    cv2.imwrite(str(tmp_path / "colour.tif"), values[..., ::-1])
    assert np.array_equal(read_image(tmp_path / "grey.tif", channels=1)[..., 0], values[..., 0])
    assert np.array_equal(read_image(tmp_path / "colour.tif"), values)


def test_alpha_palette_grey_one_bit_and_cmyk_become_rgb(tmp_path):
    alpha = np.dstack([COLOUR, RNG.integers(0, 256, (6, 9), dtype=np.uint8)])
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    assert np.array_equal(read_image(tmp_path / "alpha.png"), COLOUR)
    assert np.array_equal(read_image(tmp_path / "alpha.png", channels=4), alpha)
    palette = Image.fromarray(COLOUR).quantize(8)
    palette.save(tmp_path / "palette.png")
    assert np.array_equal(read_image(tmp_path / "palette.png"), np.asarray(palette.convert("RGB")))
    Image.fromarray(COLOUR[..., 0] > 99).save(tmp_path / "bit.png")
    assert np.array_equal(read_image(tmp_path / "bit.png", channels=1)[..., 0], (COLOUR[..., 0] > 99) * 255)
    Image.fromarray(COLOUR).convert("CMYK").save(tmp_path / "cmyk.tif")
    assert np.abs(read_image(tmp_path / "cmyk.tif").astype(int) - COLOUR).max() <= 1


def test_colour_becomes_luminance_for_one_channel(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    grey = np.asarray(Image.fromarray(COLOUR).convert("L")).astype(int)
    assert np.abs(read_image(tmp_path / "a.png", channels=1)[..., 0] - grey).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_exif_orientation_says(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOUR).save(tmp_path / "a.png", exif=exif)
    from PIL import ImageOps

    assert np.array_equal(
        read_image(tmp_path / "a.png"), np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    )
    assert np.array_equal(read_image(Image.open(tmp_path / "a.png")), read_image(tmp_path / "a.png"))


def test_arrays_of_any_number_of_channels_are_read_from_npy(tmp_path):
    values = RNG.integers(0, 65536, (4, 5, 7), dtype=np.uint16)
    np.save(tmp_path / "a.npy", values)
    assert np.allclose(read_image(tmp_path / "a.npy", channels=7), values / 65535, atol=1e-7)
    chosen = read_image(tmp_path / "a.npy", Intensity(channels=[6, 0, 0]))
    assert np.allclose(chosen, values[..., [6, 0, 0]] / 65535, atol=1e-7)


def test_pil_images_arrays_and_files_give_the_same(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    assert np.array_equal(read_image(COLOUR), read_image(tmp_path / "a.png"))
    assert np.array_equal(read_image(Image.fromarray(COLOUR)), read_image(str(tmp_path / "a.png")))
    assert np.array_equal(read_image(DEEP[..., 0]), read_image(np.repeat(DEEP[..., :1], 3, axis=2)))


def test_each_intensity_does_what_it_says():
    values = RNG.integers(0, 4096, (20, 30, 3), dtype=np.uint16)
    assert np.allclose(read_image(values, Intensity(bits=12)), values / 4095, atol=1e-6)
    windowed = read_image(values, Intensity(window=[1000, 3000]))
    assert np.allclose(windowed, np.clip((values - 1000.0) / 2000, 0, 1), atol=1e-6)
    low, high = np.percentile(values, [2, 98])
    by_percent = read_image(values, Intensity(percentile=[2, 98]))
    assert np.allclose(by_percent, np.clip((values - low) / (high - low), 0, 1), atol=1e-5)
    scored = read_image(values, Intensity(zscore=True))
    assert np.allclose(scored.mean((0, 1)), 0, atol=1e-5)
    assert np.allclose(scored.std((0, 1)), 1, atol=1e-5)
    assert np.array_equal(read_image(COLOUR, Intensity(channels=[2, 1, 0])), COLOUR[..., ::-1])


def test_a_flat_image_is_finite_under_every_intensity():
    flat = np.full((4, 4, 3), 7, np.uint16)
    for intensity in (Intensity(percentile=[1, 99]), Intensity(zscore=True)):
        assert np.array_equal(read_image(flat, intensity), np.zeros((4, 4, 3), np.float32))


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 0},
        {"window": [3, 3]},
        {"window": [1]},
        {"percentile": [-1, 50]},
        {"zscore": True, "bits": 8},
        {"channels": []},
        {"channels": 2},
        {"channels": [0.5]},
        {"bits": "12"},
        {"bits": True},
        {"window": 5},
        {"window": "ab"},
        {"window": ["0", "1"]},
        {"percentile": {1: 2}},
        {"zscore": "yes"},
    ],
)
def test_a_wrong_intensity_is_refused(options):
    for build in (lambda: Intensity(**options), lambda: Intensity.of(options)):
        with pytest.raises(UserError, match="intensity"):
            build()


def test_an_intensity_is_made_of_a_mapping_and_unknown_keys_are_answered_with_the_nearest():
    assert Intensity.of({}) == Intensity()
    assert Intensity.of({"window": [0, 9.5], "channels": (2, 1)}) == Intensity(window=[0, 9.5], channels=(2, 1))
    with pytest.raises(UserError, match="'windw' - did you mean 'window'"):
        Intensity.of({"windw": [0, 1]})
    with pytest.raises(UserError, match="intensity is 5; give a mapping"):
        Intensity.of(5)


def test_to_tensor_divides_eight_bits_alone():
    assert torch.equal(to_tensor(COLOUR), torch.from_numpy(COLOUR).permute(2, 0, 1) / 255)
    floats = RNG.normal(size=(3, 4, 2)).astype(np.float32)
    assert torch.equal(to_tensor(floats), torch.from_numpy(floats).permute(2, 0, 1))


def _truncated(path, keep=0.5):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_a_truncated_file_is_named(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    _truncated(path)
    with pytest.raises(UserError, match=rf"a\.{suffix} .*(truncated|no image)") as said:
        read_image(path)
    assert str(said.value).removeprefix(str(path)).count("truncated") <= 1


def test_truncated_deep_files_and_npy_are_named(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), RNG.integers(0, 65536, (64, 64, 3), dtype=np.uint16))
    np.save(tmp_path / "a.npy", DEEP)
    for name in ("a.png", "a.npy"):
        _truncated(tmp_path / name)
        with pytest.raises(UserError, match=name):
            read_image(tmp_path / name)


def test_a_file_that_may_not_be_read_is_told_so(tmp_path, monkeypatch):
    def refused(*args, **options):
        raise PermissionError(13, "Permission denied")

    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "open", refused)
    with pytest.raises(UserError, match=r"a\.png may not be read"):
        read_image(tmp_path / "a.png")


def test_broken_files_print_nothing_beside_their_sentence(tmp_path):
    values = RNG.normal(size=(64, 64, 3)).astype(np.float32)
    cv2.imwrite(str(tmp_path / "float.tif"), values)  # Pillow does not know it
    cv2.imwrite(str(tmp_path / "deep.tif"), RNG.integers(0, 65536, (64, 64, 3), dtype=np.uint16))
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
        tmp_path / "lzw.tif", compression="tiff_lzw"
    )
    for path in list(tmp_path.iterdir()):
        for keep in (0.9, 0.5, 0.05):
            short = path.with_name(f"{keep}{path.name}")
            short.write_bytes(path.read_bytes())
            _truncated(short, keep)
        path.unlink()
    code = f"""
from pathlib import Path
from zoo.datasets.pixels import read_stored
for path in Path({str(tmp_path)!r}).iterdir():
    try:
        read_stored(path)
    except ValueError as error:
        print(path.name in str(error))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True\n" * 9, "")


def test_sixteen_bit_grey_png_is_uint16_in_pillows_older_mode_too():
    old = Image.fromarray(DEEP[..., 0].astype(np.int32))
    old.format = "PNG"
    assert np.array_equal(pil_values(old), DEEP[..., 0])
    assert pil_values(old).dtype == np.uint16


def test_large_photographs_are_read_and_above_a_gigapixel_refused_in_a_sentence_of_their_own(tmp_path, monkeypatch):
    assert Image.MAX_IMAGE_PIXELS * 2 == MOST_PIXELS > 2e8  # a phone's 200 megapixels, without Pillow's warning
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    Image.fromarray(COLOUR).quantize(4).save(tmp_path / "b.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    for read, name in ((read_image, "a.png"), (read_image, "b.png"), (read_labels, "b.png")):
        with pytest.raises(UserError, match=rf"{name} has more than 1073741824 pixels; cut it"):
            read(tmp_path / name)


def test_what_is_no_image_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.jpg").touch()
    np.save(tmp_path / "line.npy", np.zeros(4))
    for name in ("text.png", "empty.jpg", "line.npy"):
        with pytest.raises(UserError, match=name):
            read_image(tmp_path / name)
    with pytest.raises(UserError, match="There is no file"):
        read_image(tmp_path / "missing.png")
    with pytest.raises(UserError, match="not empty"):
        read_image(np.zeros((0, 5, 3), np.uint8))
    with pytest.raises(UserError, match=r"has 5 channel\(s\), but 3"):
        read_image(np.zeros((4, 4, 5), np.uint8))
    with pytest.raises(UserError, match=r"intensity.channels is \[3\]"):
        read_image(COLOUR, Intensity(channels=[3]), channels=1)


def test_images_are_found_in_folders_subfolders_globs_and_by_path(tmp_path):
    for name in ("b.png", "a.JPG", "sub/c.tif", "notes.txt", ".hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [p.name for p in find_images(tmp_path)] == ["a.JPG", "b.png", "c.tif"]
    assert [p.name for p in find_images(f"{tmp_path}/*.png")] == ["b.png"]
    assert [p.name for p in find_images(tmp_path / "b.png")] == ["b.png"]
    (tmp_path / "none").mkdir()
    for where in (tmp_path / "none", tmp_path / "missing.png", f"{tmp_path}/*.gif"):
        with pytest.raises(UserError, match="image files end in"):
            find_images(where)
