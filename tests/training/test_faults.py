"""`zoo train` on bad input: one sentence, exit code 2, and nothing left that looks like a run."""

import json

import pytest
import torch
from PIL import Image

from tests.training.discs import RECIPE, truncate, write_discs
from zoo.cli import main
from zoo.create import load_model
from zoo.training.data import open_data
from zoo.training.recipe import load_recipe
from zoo.training.surroundings import sentences


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in, with a recipe and data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(RECIPE)
    write_discs(tmp_path / "discs", 10)
    return tmp_path


def fails(capsys, *words):
    """The sentence of a command that fails as it should."""
    assert main(["train", "mine.yaml", "--data.root", "discs", *words]) == 2
    [sentence] = capsys.readouterr().err.splitlines()
    assert sentence.startswith("zoo: ")
    return sentence


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_truncated_training_image(here, capsys, workers):
    truncate(open_data(load_recipe("mine.yaml", ["--data.root", "discs"])).pairs["train"][0].image)
    assert "can't be read" in fails(capsys, "--data.num_workers", workers)
    assert not list(here.glob("runs/**/*.*"))
    assert not list(here.glob("runs/mine/*"))


def test_a_mask_of_another_size_in_any_split_is_told_before_the_training(here, capsys):
    [pair] = open_data(load_recipe("mine.yaml", ["--data.root", "discs"])).pairs["test"]
    Image.new("L", (7, 9)).save(pair.mask)
    assert f"{pair.mask} is 9x7" in fails(capsys)
    assert not (here / "runs").exists()


def test_a_truncated_test_image_leaves_a_finished_run(here, capsys):
    [pair] = open_data(load_recipe("mine.yaml", ["--data.root", "discs"])).pairs["test"]
    whole = pair.image.read_bytes()
    truncate(pair.image)
    sentence = fails(capsys)
    assert "The training is finished and lies in runs/mine/1. The test split could not be measured: " in sentence
    assert f"{pair.image} can't be read" in sentence
    assert "`zoo test runs/mine/1` does it later." in sentence
    load_model("runs/mine/1")
    facts = json.loads((here / "runs/mine/1/run.json").read_text())
    assert "notice" not in facts
    assert facts["told"][-1].startswith("Epoch ")
    page = (here / "runs/mine/1/report.html").read_text()
    assert "The test split could not be measured" in page
    assert "Curves" in page
    pair.image.write_bytes(whole)
    assert main(["test", "runs/mine/1"]) == 0
    page = (here / "runs/mine/1/report.html").read_text()
    assert "could not be measured" not in page
    assert "Measured on the test split" in page


@pytest.mark.parametrize("blocked", ["runs", "runs/mine"])
def test_a_file_where_the_runs_should_be(here, capsys, blocked, monkeypatch):
    (here / blocked).parent.mkdir(exist_ok=True)
    (here / blocked).write_text("mine")
    monkeypatch.setattr("zoo.training.run.create_model", None)  # it is told before anything slow
    assert "The run's folder cannot be made in runs/mine (" in fails(capsys)
    assert (here / blocked).read_text() == "mine"


def test_a_folder_where_nobody_may_write(here, capsys, monkeypatch):
    def refuse(self, *_, **__):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    assert "cannot be made in runs/mine (Permission denied)" in fails(capsys)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), r"data\.batch_size \(now 4\).*--model\.input_size"),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), r"--data\.num_workers 0"),
        (RuntimeError("unable to write to file </torch_1>: No space left on device (28)"), r"--data\.num_workers 0"),
        (
            RuntimeError("upsample_bilinear2d does not have a deterministic implementation, but you set ..."),
            r"trainer\.deterministic is set.*warn.*upsample_bilinear2d",
        ),
        (OSError(28, "No space left on device", "x"), r"No space left on device: 'x'\); make room"),
    ],
)
def test_what_torch_and_the_disk_say_becomes_a_sentence(here, error, told):
    recipe = load_recipe("mine.yaml")
    with pytest.raises(ValueError, match=told), sentences(recipe):
        raise error


def test_what_is_nobodys_mistake_stays_as_it_is(here):
    for error in (RuntimeError("shapes cannot be multiplied"), BrokenPipeError()):
        with pytest.raises(type(error)), sentences(load_recipe("mine.yaml")):
            raise error
