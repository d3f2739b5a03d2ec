"""`zoo export` and `zoo predict` of what it wrote."""

import shutil

import numpy as np
import pytest
from PIL import Image

import zoo
from zoo.cli import main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    model = zoo.create_model("unet", encoder="resnet10t", decoder={"widths": [16, 16, 8, 8, 8]})
    return str(model.save(tmp_path_factory.mktemp("run")))


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("file", [pytest.param("m.onnx", marks=pytest.mark.slow), "m.pt2"])
def test_zoo_predict_writes_the_same_pixels_from_the_checkpoint_and_from_the_file(run, file, capsys):
    assert main(["export", run, "-o", file]) == 0
    told = capsys.readouterr().out
    assert "size: any, batch: any" in told
    assert "largest difference from the model" in told
    noise = np.random.default_rng(0).integers(0, 256, (31, 47, 3), np.uint8)
    Image.fromarray(noise).save("a.png")
    assert main(["predict", run, "a.png", "-o", "ours", "--device", "cpu"]) == 0
    assert main(["predict", file, "a.png", "-o", "theirs", "--device", "cpu"]) == 0
    assert np.array_equal(np.asarray(Image.open("ours/a.png")), np.asarray(Image.open("theirs/a.png")))


def test_what_was_written_is_shown_and_told_from_a_run_in_capitals_too(run, capsys):
    assert main(["export", run, "-o", "m.PT2", "--size", "64x96"]) == 0
    capsys.readouterr()
    assert main(["show", "m.PT2"]) == 0
    shown = dict(line.split("  ", maxsplit=1) for line in capsys.readouterr().out.splitlines())
    shown = {what: value.strip() for what, value in shown.items()}
    assert (shown["encoder"], shown["size"]) == ("resnet10t", "64x96, any batch")
    assert shown["differs"].startswith("from its model by at most logits ")
    assert "torch" in shown["written by"]
    for words in (["test", "m.PT2"], ["export", "m.PT2", "-o", "n.pt2"]):
        assert main(words) == 2
        assert "'m.PT2' is an exported program; `zoo predict` takes it" in capsys.readouterr().err
    Image.new("RGB", (96, 64)).save("a.png")
    assert main(["predict", "m.PT2", "a.png", "-o", "out", "--device", "cpu"]) == 0


def test_a_run_and_a_checkpoint_are_shown(run, capsys, tmp_path):
    assert main(["show", run]) == 0
    told = capsys.readouterr().out
    assert "checkpoint" in told
    assert "resnet10t" in told
    runs = tmp_path / "runs" / "mine" / "1"
    shutil.copytree(run, runs)
    (runs / "run.json").write_text('{"kept_epoch": 8}')
    assert main(["show", "runs/mine"]) == 0
    assert "kept epoch  8" in capsys.readouterr().out
    (runs / "config.json").write_text("[")
    assert main(["show", "runs/mine/1"]) == 2
    assert "damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["export", "RUN", "-o", "m.pth"], "'.pth'"),
        (["export", "RUN", "-o", "none/m.onnx"], "no folder 'none'"),
        (["export", "RUN", "-o", "m.onnx", "--size", "512"], "HEIGHTxWIDTH"),
        (["export", "nowhere", "-o", "m.onnx"], "no run or checkpoint 'nowhere'"),
        (["predict", "m.onnx", "a.png", "-o", "out"], "There is no"),
        (["predict", "damaged.pt2", "a.png", "-o", "out"], "may be damaged"),
        (["predict", "damaged.onnx", "a.png", "-o", "out"], "may be damaged"),
        (["predict", "m.pth", "a.png", "-o", "out"], "no run or checkpoint 'm.pth'"),
        (["predict", "damaged.onnx", "a.png", "-o", "out", "--precision", "16"], "float32"),
        (["predict", "damaged.onnx", "a.png", "-o", "out", "--device", "tpu"], "finds no device 'tpu'"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_no_file(run, words, told, capsys, tmp_path):
    for name in ("damaged.pt2", "damaged.onnx"):
        (tmp_path / name).write_bytes(b"no program")
    Image.new("RGB", (9, 9)).save("a.png")
    assert main([run if word == "RUN" else word for word in words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "damaged.onnx", "damaged.pt2"]


@pytest.mark.parametrize(("name", "size"), [("resnet18", "any size"), ("swin_tiny_patch4_window7_224", "fixed size")])
def test_zoo_show_says_which_sizes_a_net_exports_at(name, size, capsys):
    assert main(["show", name]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["export"].startswith(size)
