"""Images that are larger than the memory they may take: read by rows, answered in bands, written by windows."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

import zoo
from zoo.cli import main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    model = zoo.create_model("linear", encoder="mobilenetv3_small_050", num_classes=2)
    return str(model.save(tmp_path_factory.mktemp("run")))


@pytest.fixture
def tif(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (900, 1100, 3), np.uint8)
    tifffile.imwrite(tmp_path / "big.tif", values, photometric="rgb", tile=(256, 256), compression="zlib")
    return tmp_path / "big.tif"


def test_a_large_prediction_is_memory_mapped_and_equal(run, tif):
    model = zoo.load_model(run)
    whole, mapped = model.predict(tifffile.imread(tif), memory="40MB"), model.predict(tif, memory="40MB")
    assert isinstance(mapped.image, np.memmap)
    assert isinstance(mapped.probabilities, np.memmap)
    np.testing.assert_array_equal(mapped.image, tifffile.imread(tif))
    for key in ("mask", "probabilities"):
        np.testing.assert_array_equal(mapped[key], whole[key])


def test_what_is_dropped_is_not_kept(run, tif):
    assert set(zoo.load_model(run).predict(tif, drop=["probabilities"]).arrays) == {"mask"}


def test_large_masks_are_tiled_tiffs_with_a_preview(run, tif, tmp_path, monkeypatch):
    monkeypatch.setattr("zoo.prediction.LARGE", 900 * 1000)
    monkeypatch.setattr("zoo.prediction.PREVIEW", 500)
    out = tmp_path / "out"
    assert (
        main(["predict", run, str(tif), "-o", str(out), "--memory", "40MB", "--tta", "flips", "--probabilities"]) == 0
    )
    assert sorted(p.name for p in out.iterdir()) == ["big.tif", "big_overlay.png", "big_probabilities.npz"]
    mask = zoo.load_model(run).predict(tif, memory="40MB", tta="flips").mask
    with tifffile.TiffFile(out / "big.tif") as file:
        assert file.pages[0].is_tiled
        np.testing.assert_array_equal(file.asarray(), mask)
    np.testing.assert_array_equal(np.asarray(Image.open(out / "big.tif")), mask)
    assert Image.open(out / "big_overlay.png").size == (367, 300)


def test_a_mistake_in_the_budget_is_told_on_the_command_line(run, tif, tmp_path, capsys):
    assert main(["predict", run, str(tif), "-o", str(tmp_path / "out"), "--memory", "lots"]) == 2
    assert "memory is 'lots'" in capsys.readouterr().err
    assert main(["predict", run, str(tif), "-o", str(tmp_path / "out"), "--memory", "1MB"]) == 2
    assert "give at least memory=" in capsys.readouterr().err


SCRIPT = """
import sys
import torch
from benchmarks.pairs import grown
from zoo.cli import main
torch.set_num_threads(1)
run, small, big, out, memory = sys.argv[1:]
assert main(["predict", run, small, "-o", out, "--device", "cpu"]) == 0
code = []
print(grown(lambda: code.append(main(["predict", run, big, "-o", out, "--device", "cpu", "--memory", memory]))))
sys.exit(code[0])
"""


def grown_by(run, path, memory):
    """Peak resident memory in bytes of predicting a file in a process of its own, beyond what one small image took."""
    small = path.with_name("small.png")
    Image.fromarray(np.zeros((70, 90, 3), np.uint8)).save(small)
    args = [run, str(small), str(path), str(path.with_name("out")), memory]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().split("\n")[-1])["MiB"] * 2**20


def write(path, side, **layout):
    """A TIFF of tiles that differ, written without ever being whole."""
    rng = np.random.default_rng(0)
    count = (-(-side // 512)) ** 2
    tile = rng.integers(0, 256, (512, 512, 3), np.uint8)
    tiles = (np.roll(tile, i, axis=1) for i in range(count))
    tifffile.imwrite(path, tiles, shape=(side, side, 3), dtype=np.uint8, tile=(512, 512), photometric="rgb", **layout)


linux = pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")


@linux
def test_a_tiff_larger_than_its_memory_is_predicted(run, tmp_path):
    write(tmp_path / "big.tif", 2600)  # 20 MB of pixels; whole it takes about 500 MB
    assert grown_by(run, tmp_path / "big.tif", "200MB") <= 200e6
    assert Image.open(tmp_path / "out" / "big.png").size == (2600, 2600)


@linux
@pytest.mark.slow
def test_twenty_thousand_squared_is_predicted_within_a_fixed_memory(run, tmp_path):
    write(tmp_path / "big.tif", 20_000, compression="zlib")  # 1.2 GB of pixels
    assert grown_by(run, tmp_path / "big.tif", "500MB") <= 500e6
    with tifffile.TiffFile(tmp_path / "out" / "big.tif") as file:
        assert file.pages[0].shape == (20_000, 20_000)
