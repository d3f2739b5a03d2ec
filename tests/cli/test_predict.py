"""`zoo predict`: which files it takes, how it names what it writes, and what it does with files it can't read."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from zoo.cli import main
from zoo.cli.predict import find_inputs, name_outputs
from zoo.errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A checkpoint of a small, untrained model of three classes."""
    model = zoo.create_model("unet", encoder="resnet10t", num_classes=3)
    return str(model.save(tmp_path_factory.mktemp("run")))


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def image(path, size=(40, 30)):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(path)
    return str(path)


def written(folder="out"):
    return sorted(str(file.relative_to(folder)) for file in Path(folder).rglob("*") if file.is_file())


def names(*inputs, out="out"):
    return list(name_outputs(find_inputs(inputs, Path(out)), Path(out)).values())


def test_a_mask_is_a_png_of_class_ids_at_the_images_own_size(run, capsys):
    assert main(["predict", run, image("a.jpg", (47, 31)), "-o", "out", "--probabilities"]) == 0
    assert written() == ["a.png", "a_overlay.png", "a_probabilities.npz"]
    mask = np.asarray(Image.open("out/a.png"))
    probabilities = np.load("out/a_probabilities.npz")["probabilities"]
    assert mask.shape == (31, 47)
    assert mask.dtype == np.uint8
    assert probabilities.shape == (3, 31, 47)
    assert np.array_equal(probabilities.argmax(0), mask)
    assert "1 of 1 image predicted, in out" in capsys.readouterr().out


def test_the_command_answers_as_predict_in_python_does(run):
    main(["predict", run, image("a.png"), "-o", "out"])
    assert np.array_equal(np.asarray(Image.open("out/a.png")), zoo.load_model(run).predict("a.png").mask)


def test_subfolders_are_mirrored(run):
    for place in ("in/x.png", "in/b/x.png", "in/b/c/y.jpg"):
        image(place)
    assert main(["predict", run, "in", "-o", "out", "--batch_size", "2"]) == 0
    assert written() == sorted(f"{stem}{end}.png" for stem in ("x", "b/x", "b/c/y") for end in ("", "_overlay"))


def test_what_was_written_before_is_no_input_of_the_next_call(run):
    image("in/x.png")
    for _ in range(2):
        assert main(["predict", run, "in", "-o", "in/out"]) == 0
    assert written("in/out") == ["x.png", "x_overlay.png"]


def test_a_pattern_that_the_shell_left_alone_is_expanded_and_its_folders_mirrored():
    for place in ("in/a/x.png", "in/b/x.png", "in/b/y.txt"):
        image(place) if place.endswith("png") else Path(place).write_text("no image")
    assert sorted(names("in/*/*")) == ["a/x", "b/x"]
    assert sorted(names("in/**/*.png")) == ["a/x", "b/x"]


def test_equal_names_from_folders_that_the_shell_expanded_are_told_apart():
    assert names(image("in/a/x.png"), image("in/b/x.png"), image("in/b/y.png")) == ["a/x", "b/x", "b/y"]
    assert names("in/a", "in/b") == ["a/x", "b/x", "b/y"]
    assert names("in/a/x.png", "in/b/y.png") == ["x", "y"]


def test_equal_stems_are_told_apart_by_their_suffix():
    assert names(image("in/x.png"), image("in/x.jpg"), image("in/y.jpg")) == ["x_png", "x_jpg", "y"]


def test_an_input_named_as_anothers_overlay_is_told_apart():
    assert names(image("in/x.png"), image("in/x_overlay.png")) == ["x", "x_overlay_png"]


def test_a_file_given_twice_is_predicted_once():
    assert names(image("in/x.png"), "in", "in/*.png") == ["x"]


def test_an_input_is_never_overwritten(run, capsys):
    before = Path(image("in/x.png")).read_bytes()
    assert main(["predict", run, "in/x.png", "-o", "in"]) == 2
    assert "is an input and would be overwritten; choose another -o" in capsys.readouterr().err
    assert Path("in/x.png").read_bytes() == before
    assert written("in") == ["x.png"]


@pytest.mark.parametrize(
    ("kept", "place"),
    [("x.tif", "y.jpg"), ("x_cat.png", "x.jpg"), ("x_big_cat.tif", "x.jpg"), ("a/x_alpha.png", "a/x.jpg")],
)
def test_no_ending_that_an_answer_may_have_overwrites_an_input(kept, place):
    for name in (kept, place):
        image(f"in/{name}")
    with pytest.raises(UserError, match=f"{kept}' is an input and would be overwritten"):
        names(f"in/{place}", f"in/{kept}", out=str(Path("in", kept).parent))
    assert len(names(f"in/{place}", f"in/{kept}")) == 2


def test_a_link_among_the_inputs_is_not_overwritten():
    image("elsewhere/x.png")
    Path("in").mkdir()
    Path("in/x.png").symlink_to(Path("elsewhere/x.png").resolve())
    with pytest.raises(UserError, match="would be overwritten"):
        names("in/x.png", out="in")


def test_files_that_were_there_and_are_replaced_are_counted(run, capsys):
    image("in/x.png")  # no input
    main(["predict", run, image("in/x.jpg"), "-o", "in"])
    assert capsys.readouterr().out.endswith("1 of 1 image predicted, in in (1 file of before replaced)\n")
    main(["predict", run, "in/x.jpg", "-o", "in"])
    assert "(2 files of before replaced)" in capsys.readouterr().out


def test_files_that_cannot_be_read_are_named_and_the_rest_is_predicted(run, capsys):
    for i in range(5):
        image(f"in/{i}.png")
    Path("in/1.png").write_bytes(Path("in/1.png").read_bytes()[:300])
    Path("in/3.png").write_bytes(b"nothing")
    assert main(["predict", run, "in", "-o", "out", "--batch_size", "2"]) == 1
    told = capsys.readouterr()
    assert written() == sorted(f"{i}{end}.png" for i in (0, 2, 4) for end in ("", "_overlay"))
    assert [name in line for name, line in zip(("1.png", "3.png"), told.err.splitlines(), strict=True)] == [True, True]
    assert "3 of 5 images predicted" in told.out


def test_an_image_that_cannot_be_read_alone_is_a_mistake(run, capsys):
    Path("notes.txt").write_text("no image")
    assert main(["predict", run, "notes.txt", "-o", "out"]) == 2
    assert "notes.txt" in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["in/y.png", "-o", "out"], "There is no image or folder 'in/y.png' - did you mean 'in/x.png'?"),
        (["empty", "-o", "out"], "holds no images: empty"),
        (["in/*.jpg", "-o", "out"], "in/*.jpg"),
        (["in", "-o", "in"], "lie in 'in'"),
        (["in", "-o", "in/x.png"], "'in/x.png' is a file; -o names the folder"),
        (["in", "-o", "in/x.png/out/a"], "in/x.png' is a file; -o names the folder"),
        (["--with", "other", "in", "-o", "out"], "required: INPUT (before --with, which takes every word after it)"),
        (["in", "-o", "out", "--threshold", "2"], "--threshold is 2.0; it lies between 0 and 1"),
        (["in", "-o", "out", "--precision", "8"], "invalid choice: '8'"),
        (["in", "-o", "out", "--batch_size", "0"], "0 is not 1 or more"),
        (["in", "-o", "out", "--device", "tpx"], "no device 'tpx'"),
    ],
)
def test_a_wrong_input_or_option_is_one_sentence(run, words, told, capsys):
    image("in/x.png")
    Path("empty").mkdir()
    assert main(["predict", run, *words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.splitlines()) == 1
    assert not Path("out").exists()


def test_a_folder_that_may_not_be_written_or_read_is_told_first(run, capsys, monkeypatch):
    image("in/x.png")
    Path("closed").mkdir()
    may, closed = os.access, Path("closed").resolve()
    monkeypatch.setattr("os.access", lambda path, mode: Path(path).resolve() != closed and may(path, mode))
    monkeypatch.setattr("zoo.load_model", lambda *_: pytest.fail("the model was loaded"))
    for out in ("closed", "closed/a/b"):
        assert main(["predict", run, "in", "-o", out]) == 2
        assert "closed' may not be written into; choose another -o." in capsys.readouterr().err
    assert main(["predict", run, "closed", "-o", "out"]) == 2
    assert "The folder closed may not be read" in capsys.readouterr().err


def test_two_inputs_for_one_output_that_no_rule_tells_apart_are_refused():
    with pytest.raises(UserError, match="Two inputs would both be written as 'x_png'"):
        names(image("in/x.png"), image("in/x.jpg"), image("in/x_png.bmp"))


def test_several_runs_answer_together_and_one_named_twice_counts_once(run, tmp_path, capsys):
    torch.manual_seed(5)
    other = str(zoo.create_model("unet", encoder="resnet10t", num_classes=3).save(tmp_path / "other"))
    picture = image("a.jpg")
    assert main(["predict", run, picture, "-o", "out", "--probabilities", "--with", other, run]) == 0
    found = np.load("out/a_probabilities.npz")["probabilities"]
    alone = [zoo.load_model(one).predict(picture).probabilities for one in (run, other)]
    assert np.abs(found - np.mean(alone, axis=0)).max() < 1e-3  # as written
    assert np.abs(found - alone[0]).max() > 1e-3
    binary = str(zoo.create_model("unet", encoder="resnet10t").save(tmp_path / "binary"))
    assert main(["predict", run, picture, "-o", "out", "--with", binary]) == 2
    assert "cannot answer together: the mode is multiclass in the one and binary" in capsys.readouterr().err
