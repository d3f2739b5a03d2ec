"""Two processes of one training or test, on the CPU (gloo): what one process would have found."""

import csv
import json
import os
import re
import signal

import pytest
import torch
from torch import nn

from tests.training.commands import at_step, command
from tests.training.discs import write_discs
from zoo.checkpoints import folder as checkpoint
from zoo.registry import register_decoder, register_encoder

RECIPE = """
model: {encoder: test_resnet, decoder: {name: linear, dropout: 0.5}}
data:
  {card: {name: folder, splits: {seed: 0, val: 0.15, test: 0.25}}, root: discs, size: [32, 32], batch_size: 2,
   num_workers: 0}
trainer: {max_epochs: 2, accelerator: cpu, devices: 1}
save_every: 2
"""
TWO = ("--trainer.devices", "2")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a recipe and data of two classes and background: 12 images to train, 3 and 5 to measure."""
    folder = tmp_path_factory.mktemp("ddp")
    write_discs(folder / "discs", 20, classes=2)
    (folder / "mine.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(scope="module")
def trained(place):
    assert command(place, "train", "mine.yaml", "--name", "trained", "--trainer.max_epochs", "1") == 0
    return place / "runs/trained/1"


def test_an_odd_split_measured_by_two_processes_gives_the_figures_of_one(place, trained, capfd):
    alone = json.loads((trained / "test.json").read_text())["test"]
    rows, details = by_image(trained)
    for name in ("test.json", "test_images.csv", "test_details.json"):
        (trained / name).unlink()
    capfd.readouterr()
    assert command(place, "test", "runs/trained", *TWO, processes=2) == [0, 0]
    told = capfd.readouterr().out
    both = json.loads((trained / "test.json").read_text())["test"]
    assert both["images"] == alone["images"] == 5  # none twice, none left out
    assert both == pytest.approx(alone, abs=1e-6)
    again, counted = by_image(trained)
    assert [row[:3] for row in again] == [row[:3] for row in rows]  # each image once, in order
    assert sum(map(sum, counted["confusion"])) == sum(map(sum, details["confusion"]))
    assert counted["calibration"]["ece"] == pytest.approx(details["calibration"]["ece"], abs=1e-4)
    for line in ("The newest run", "test: ", "iou/1 ", "The report is"):
        assert len(re.findall(f"^{line}", told, re.MULTILINE)) == 1, line


def by_image(run):
    rows = list(csv.reader((run / "test_images.csv").open()))
    return rows, json.loads((run / "test_details.json").read_text())["test"]


class Normed(nn.Module):
    """Convolutions and GroupNorm: no sample hears of the others in its batch."""

    def __init__(self, in_channels, strides):
        super().__init__()
        self.channels, self.strides, self.mean, self.std = (8,), tuple(strides), (0.5,) * 3, (0.25,) * 3
        self.net = nn.Sequential(nn.Conv2d(in_channels, 8, 3, 4, 1), nn.GroupNorm(2, 8), nn.GELU())

    def forward(self, image):
        return [self.net(image)]


class Head(nn.Module):
    strides = (4,)

    def __init__(self, channels, num_outputs):
        super().__init__()
        self.head = nn.Conv2d(channels[0], num_outputs, 1)

    def forward(self, features, image):
        return {"logits": self.head(features[0])}


def register(patch):
    register_encoder(name="normed")(Normed)
    register_decoder(name="head", tasks=("segmentation",))(Head)


def test_ten_steps_of_two_processes_with_two_images_are_those_of_one_with_four(place, capfd):
    model = "{encoder: normed, decoder: head}"
    words = ("--model", model, "--loss", "{ce: 1}", "--optimizer.name", "sgd", "--optimizer.lr", "0.1")
    words += ("--optimizer.momentum", "0.9", "--trainer.precision", "64-true", "--trainer.max_steps", "10")
    words += ("--trainer.max_epochs", "9", "--data.augment", "flips", "--data.fit", "resize")
    one = command(place, "train", "mine.yaml", *words, "--name", "one", "--data.batch_size", "4", before=register)
    assert one == 0
    assert "each optimiser step" not in capfd.readouterr().out
    two = command(place, "train", "mine.yaml", *words, *TWO, "--name", "two", before=register, processes=2)
    assert two == [0, 0]
    assert "each optimiser step learns from 4 images (2 devices x data.batch_size 2 x 1" in capfd.readouterr().out
    one, two = (
        torch.load(place / f"runs/{name}/1/state/10.ckpt", weights_only=True)["state_dict"] for name in ("one", "two")
    )
    assert {value.dtype for value in one.values()} == {torch.float64}
    for key in one:
        assert (one[key] - two[key]).abs().max() < 1e-6, key
    assert len({len((place / f"runs/{name}/1/metrics.csv").read_text().splitlines()) for name in ("one", "two")}) == 1


@pytest.mark.slow
def test_two_killed_processes_go_on_to_the_very_same_end(place):
    whole = command(place, "train", "mine.yaml", *TWO, "--name", "whole", processes=2)
    assert whole == [0, 0]
    killed = command(place, "train", "mine.yaml", *TWO, "--name", "killed", processes=2, before=at_step(5))
    assert killed == [-signal.SIGKILL] * 2
    assert command(place, "train", "--resume", "runs/killed", processes=2) == [0, 0]
    whole, resumed = place / "runs/whole/1", place / "runs/killed/1"
    assert (whole / "metrics.csv").read_bytes() == (resumed / "metrics.csv").read_bytes()
    ours, theirs = (checkpoint.read(run)[1] for run in (resumed, whole))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_of_them_where_a_step_begins(place):
    def of_the_second():
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)

    hit = at_step(4, of_the_second)
    assert command(place, "train", "mine.yaml", *TWO, "--name", "stopped", processes=2, before=hit) == [143, 143]
    assert (place / "runs/stopped/1/state/5.ckpt").is_file()
