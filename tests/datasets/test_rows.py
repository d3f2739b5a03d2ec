"""TIFFs by rows: the same pixels as the file read whole, and which files are left to be read whole."""

import io
import subprocess
import sys
import types

import numpy as np
import pytest
import tifffile
from PIL import Image

from zoo.datasets.intensity import Intensity, read_image
from zoo.datasets.rows import Rows, open_rows
from zoo.errors import UserError

RNG = np.random.default_rng(0)
COLOR = RNG.integers(0, 256, (301, 217, 3), np.uint8)
DEEP = RNG.integers(0, 65536, (301, 217), np.uint16)


def by_rows(path, intensity=None, channels=3, step=47):
    rows = open_rows(path, intensity or Intensity(), channels, most=1000)
    assert isinstance(rows, Rows)
    parts = [rows[start : start + step] for start in range(0, rows.shape[0], step)]
    found = np.concatenate(parts)
    assert found.shape == rows.shape
    assert found.dtype == rows.dtype
    np.testing.assert_array_equal(rows[90:130], found[90:130])
    return found


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"tile": (64, 80)},
        {"tile": (64, 80), "compression": "zlib", "predictor": True},
        {"compression": "zlib", "rowsperstrip": 37},
        {"rowsperstrip": 10, "bigtiff": True},
    ],
)
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("values", [COLOR, DEEP, DEEP.astype(np.float32) / 7, COLOR[..., 0]])
def test_rows_are_those_of_the_file_read_whole(tmp_path, layout, byteorder, values):
    if values.dtype.kind == "f":
        layout = {key: value for key, value in layout.items() if key != "predictor"}
    photometric = "rgb" if values.ndim == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", values, byteorder=byteorder, photometric=photometric, **layout)
    np.testing.assert_array_equal(by_rows(tmp_path / "a.tif"), read_image(tmp_path / "a.tif"))


def test_alpha_is_dropped_and_channels_are_chosen_as_for_the_whole(tmp_path):
    values = RNG.integers(0, 256, (301, 217, 4), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(by_rows(tmp_path / "a.tif"), values[..., :3])
    np.testing.assert_array_equal(by_rows(tmp_path / "a.tif", channels=1), read_image(tmp_path / "a.tif", channels=1))
    chosen = Intensity(channels=[2, 1, 0])
    np.testing.assert_array_equal(by_rows(tmp_path / "a.tif", chosen), values[..., [2, 1, 0]])


@pytest.mark.parametrize("mode", ["YCbCr", "L"])
def test_jpeg_in_its_own_colours_is_rgb_by_rows_where_a_codec_is_here(tmp_path, monkeypatch, mode):
    picture = Image.fromarray(RNG.integers(0, 256, (10, 8, 3), np.uint8)).resize((217, 301), Image.Resampling.BICUBIC)
    picture.convert(mode).save(tmp_path / "a.tif", compression="jpeg")
    whole = read_image(tmp_path / "a.tif")  # by Pillow

    def decode(data, *, tables, shape, outcolorspace, **_):  # stands for imagecodecs
        assert outcolorspace == (None if mode == "L" else 2)
        # without the end of the one and the start of the other
        return np.asarray(Image.open(io.BytesIO(tables[:-2] + data[2:])))

    monkeypatch.setattr("tifffile.tifffile.imagecodecs", types.SimpleNamespace(jpeg_decode=decode))
    monkeypatch.setitem(tifffile.TIFF.DECOMPRESSORS._codecs, 7, decode)
    rows = by_rows(tmp_path / "a.tif")
    assert np.abs(rows.astype(int) - whole).mean() < 1
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), rows)


@pytest.mark.parametrize(
    "intensity",
    [
        Intensity(bits=12),
        Intensity(window=[100, 3000]),
        Intensity(percentile=[1, 99.5]),
        Intensity(percentile=[0, 100], channels=[0]),
        Intensity(zscore=True),
    ],
)
@pytest.mark.parametrize("values", [DEEP, COLOR, np.full((301, 217), 7, np.uint16)])
def test_what_an_intensity_needs_of_the_whole_image_is_found_in_passes(tmp_path, intensity, values, monkeypatch):
    monkeypatch.setattr("zoo.datasets.rows.PASS", 10_000)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb" if values.ndim == 3 else "minisblack")
    whole = read_image(tmp_path / "a.tif", intensity)
    np.testing.assert_allclose(by_rows(tmp_path / "a.tif", intensity), whole, atol=1e-5, rtol=1e-5)


def test_other_files_are_left_to_be_read_whole(tmp_path):
    tifffile.imwrite(tmp_path / "small.tif", COLOR)
    tifffile.imwrite(tmp_path / "planes.tif", COLOR.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    tifffile.imwrite(tmp_path / "turned.tif", COLOR, extratags=[(274, 3, 1, 6, True)])
    tifffile.imwrite(tmp_path / "inverted.tif", DEEP, photometric="miniswhite")
    tifffile.imwrite(tmp_path / "double.tif", DEEP.astype(np.float64))
    Image.fromarray(COLOR).quantize(16).save(tmp_path / "palette.tif")
    Image.fromarray(COLOR[..., 0] > 99).save(tmp_path / "bits.tif")
    Image.fromarray(COLOR).save(tmp_path / "photo.png")
    (tmp_path / "no_image.tif").write_text("nothing")
    assert open_rows(tmp_path / "small.tif", Intensity(), 3, most=10**9) is None
    for name in ("planes", "turned", "inverted", "double", "palette", "bits", "no_image", "missing"):
        assert open_rows(tmp_path / f"{name}.tif", Intensity(), 3, most=1000) is None, name
    assert open_rows(tmp_path / "photo.png", Intensity(), 3, most=1000) is None
    tifffile.imwrite(tmp_path / "floats.tif", DEEP.astype(np.float32))
    assert open_rows(tmp_path / "floats.tif", Intensity(percentile=[1, 99]), 3, most=1000) is None


@pytest.mark.parametrize("layout", [{}, {"tile": (64, 80), "compression": "zlib"}])
def test_a_truncated_file_is_told(tmp_path, layout):
    tifffile.imwrite(tmp_path / "a.tif", COLOR, photometric="rgb", **layout)
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content[: len(content) // 2])
    rows = open_rows(tmp_path / "a.tif", Intensity(), 3, most=1000)
    with pytest.raises(UserError, match="may be truncated"):
        rows[250:300]


def test_rows_hold_no_descriptor_while_nothing_is_read(tmp_path):
    for i in range(60):
        tifffile.imwrite(tmp_path / f"{i}.tif", COLOR, photometric="rgb", tile=(64, 80))
    code = f"""
import resource
from pathlib import Path
import tifffile
from zoo.datasets.intensity import Intensity
from zoo.datasets.rows import open_rows
resource.setrlimit(resource.RLIMIT_NOFILE, (45, 45))
opened = [open_rows(path, Intensity(), 3, most=1000) for path in Path({str(tmp_path)!r}).iterdir()]
print(sum(rows[100:150].shape == (50, 217, 3) for rows in opened))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("60\n", "")
