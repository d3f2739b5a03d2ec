"""Trainings that meet what goes wrong in practice, for real: broken files, losses that are no numbers, full disks."""

import csv
import json
import os
import re
import resource
import signal
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from tests.training.commands import at_step, command
from tests.training.discs import truncate, write_discs
from zoo.checkpoints import folder as checkpoint
from zoo.registry import register_decoder
from zoo.training import finite
from zoo.training.data import open_data
from zoo.training.finite import Loss, Losses
from zoo.training.module import Training
from zoo.training.recipe import load_recipe

RECIPE = """
model: {encoder: test_resnet, decoder: {name: linear, dropout: 0.5}}
data:
  {card: {name: folder, splits: {seed: 0, val: 0.2, test: 0.2}}, root: discs, size: [32, 32], batch_size: 2,
   num_workers: 0}
optimizer: {name: adamw, lr: 3.0e-3}
save_every: 2
trainer: {max_epochs: 2, accelerator: cpu, devices: 1}
"""
SKIP = ("--data.on_error", "skip", "--data.max_errors", "0.3")
TWO = ("--trainer.devices", "2")
NOTES = "zoo.training.run._notes"  # called once files have been looked at, before they are read


@pytest.fixture
def here(tmp_path):
    """A folder with a recipe and 20 images: 12 to train, 4 and 4 to measure."""
    write_discs(tmp_path / "discs", 20)
    (tmp_path / "mine.yaml").write_text(RECIPE)
    return tmp_path


def images(here, split):
    recipe = load_recipe(here / "mine.yaml", ["--data.root", str(here / "discs")])
    return [pair.image for pair in open_data(recipe).pairs[split]]


def facts(run):
    return json.loads((run / "run.json").read_text())


def weights(run):
    return checkpoint.read(run)[1]


def test_a_broken_image_ends_a_training_with_its_name_and_the_cards(here, capfd):
    truncate(images(here, "train")[3])
    assert command(here, "train", "mine.yaml", "--data.num_workers", "2") == 2
    error = capfd.readouterr().err
    assert re.search(
        rf"^zoo: \S+{images(here, 'train')[3].name} can't be read .* card 'folder' in discs\..*on_error", error
    )
    assert len(error.splitlines()) == 1


def test_broken_images_are_skipped_alike_by_any_number_of_workers_and_told(here, capfd):
    for split in ("train", "val", "test"):
        truncate(images(here, split)[1])
    for name, workers in (("none", "0"), ("two", "2")):
        assert command(here, "train", "mine.yaml", *SKIP, "--name", name, "--data.num_workers", workers) == 0
    told = capfd.readouterr().out
    one, two = here / "runs/none/1", here / "runs/two/1"
    assert (one / "metrics.csv").read_bytes() == (two / "metrics.csv").read_bytes()
    assert all(torch.equal(value, weights(two)[key]) for key, value in weights(one).items())
    name = images(here, "train")[1].name
    assert told.count(f"1 image of train can't be read and is replaced by others: {name}.") == 6  # epochs, and the end
    assert "1 image of test can't be read and is left out of the metrics" in told
    found = facts(one)
    assert {split: len(some) for split, some in found["unreadable"].items()} == {"train": 1, "val": 1, "test": 1}
    assert json.loads((one / "test.json").read_text())["test"]["images"] == 3
    assert f"replaced by others: {name}" in (one / "report.html").read_text().replace("&#x27;", "'")
    assert sum(int(float(row["images"])) for row in csv.DictReader((one / "timings.csv").open())) == 24


def test_more_broken_images_than_max_errors_end_a_training(here, capfd):
    for path in images(here, "train")[:3]:
        truncate(path)
    words = ("--data.on_error", "skip", "--data.max_errors", "2")
    assert command(here, "train", "mine.yaml", *words) == 2
    assert "3 of 12 images can't be read, more than data.max_errors (2) lets pass; the last: " in capfd.readouterr().err
    for path in images(here, "train"):
        truncate(path)
    assert command(here, "train", "mine.yaml", *words) == 2
    assert "Nor can 20 others be read" in capfd.readouterr().err


def test_an_unreadable_mask_is_left_out_of_what_masks_hold_and_of_class_weights_or_named(here, capfd):
    masks = [here / "discs/masks" / image.name for image in images(here, "train")]
    truncate(masks[1])
    words = ("--class_weights", "balanced", "--trainer.max_epochs", "1")
    assert command(here, "train", "mine.yaml", *words, *SKIP) == 0
    told = capfd.readouterr().out
    assert "Looked at 20 of 20 masks (1 of which can't be read and is left out): 0 and 255, so binary" in told
    assert "Note: 1 mask that can't be read is left out of the class weights." in told
    for card in ([], ["--data.card.values", "grey", "--data.card.num_classes", "1"]):
        assert command(here, "train", "mine.yaml", *words, *card) == 2
        assert f"{masks[1].name} can't be read" in capfd.readouterr().err


@pytest.mark.slow
def test_a_training_that_skips_images_goes_on_bit_for_bit(here):
    truncate(images(here, "train")[1])
    assert command(here, "train", "mine.yaml", *SKIP, "--name", "whole") == 0
    assert command(here, "train", "mine.yaml", *SKIP, "--name", "killed", before=at_step(9)) == -signal.SIGKILL
    assert command(here, "train", "--resume", "runs/killed") == 0
    whole, killed = here / "runs/whole/1", here / "runs/killed/1"
    assert (whole / "metrics.csv").read_bytes() == (killed / "metrics.csv").read_bytes()
    assert all(torch.equal(value, weights(killed)[key]) for key, value in weights(whole).items())
    assert facts(whole)["unreadable"] == facts(killed)["unreadable"]


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "val"])
def test_two_processes_stop_or_skip_together(here, capfd, split):
    truncate(images(here, split)[1])
    assert command(here, "train", "mine.yaml", *TWO, processes=2) == [2, 2]
    assert "is at" not in (error := capfd.readouterr().err)
    assert error.count("can't be read") == 2
    assert command(here, "train", "mine.yaml", *TWO, *SKIP, processes=2) == [0, 0]
    assert capfd.readouterr().out.count(f"1 image of {split} can't be read") >= 2


def bad_at(step, rank="0"):
    """What patches a training so that an image of one step's batch holds a NaN."""

    def patch(monkeypatch):
        real = Training.training_step

        def training_step(self, batch, index):
            if self.trainer.global_step == step and os.environ.get("RANK", "0") == rank:
                batch["image"][1, 0, 5, 5] = torch.nan
            return real(self, batch, index)

        monkeypatch.setattr(Training, "training_step", training_step)

    return patch


def test_a_loss_that_is_no_number_names_its_step_terms_and_files_and_keeps_the_batch(here, capfd):
    assert command(here, "train", "mine.yaml", before=bad_at(0)) == 2
    error = capfd.readouterr().err
    assert "not a number in step 1, epoch 1: " in error
    assert "loss is nan" in error
    assert "runs/mine/1/bad_batch.safetensors" in error
    with safe_open(here / "runs/mine/1/bad_batch.safetensors", "pt") as file:
        assert file.get_tensor("image").isnan().sum() == 1
        assert file.get_tensor("mask").shape == (2, 32, 32)
        about = {key: json.loads(text) for key, text in file.metadata().items()}
    assert (about["step"], about["epoch"]) == (1, 1)
    assert len(about["paths"]) == 2
    assert f"Pixels that are no numbers are in {about['paths'][1]}." in error
    assert all(path in error for path in about["paths"])


def test_a_step_whose_loss_is_no_number_is_left_out_and_told(here, capfd):
    words = ("--on_nan", "skip", "--save_every", "1", "--trainer.max_epochs", "1")

    def before(patch):
        patch.setattr("zoo.training.state.KEPT", 100)
        patch.setattr("zoo.training.run.keep_newest", lambda *_: 0)
        bad_at(2)(patch)

    assert command(here, "train", "mine.yaml", *words, before=before) == 0
    run = here / "runs/mine/1"
    assert "Step 3 is left out: its loss is no number." in capfd.readouterr().out
    assert facts(run)["dropped_steps"] == [3]
    assert "1 step was left out" in " ".join(facts(run)["told"])
    states = [torch.load(run / f"state/{step}.ckpt", weights_only=True)["state_dict"] for step in (2, 3, 4)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert any(not torch.equal(value, states[2][key]) for key, value in states[1].items())
    assert all(value.isfinite().all() for value in weights(run).values())
    assert "nan" not in (run / "metrics.csv").read_text()


def test_a_rate_at_which_everything_diverges_ends_a_training_that_skips(here, capfd):
    words = ("--optimizer.name", "sgd", "--optimizer.lr", "1e30", "--on_nan", "skip", "--trainer.max_epochs", "9")
    assert command(here, "train", "mine.yaml", *words) == 2
    assert "no number in 10 steps in a row" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_a_bad_loss_on_one_of_two_processes_is_that_of_both(here, capfd, on_nan):
    codes = command(here, "train", "mine.yaml", *TWO, "--on_nan", on_nan, processes=2, before=bad_at(2, "1"))
    assert codes == ([2, 2] if on_nan == "stop" else [0, 0])
    told = capfd.readouterr()
    assert (here / "runs/mine/1/bad_batch.1.safetensors").is_file()
    if on_nan == "stop":
        assert told.err.count("not a number in step 3, epoch 1") == 2
    else:
        assert facts(here / "runs/mine/1")["dropped_steps"] == [3]


class Later:
    """A device that answers when it is told to."""

    done = False

    def query(self):
        return self.done

    def synchronize(self):
        self.done = True


def test_losses_on_a_device_are_looked_at_when_they_are_known_in_order():
    losses, events = Losses(), [Later() for _ in range(20)]
    for step in range(4):
        value = torch.tensor([1.0, torch.inf if step in (1, 2) else 2.0])
        losses.waiting.append(Loss(1, step, ["ce", "loss"], value, {}, events[step]))
    assert losses.first_wrong() is None
    events[0].done = events[2].done = True
    assert losses.first_wrong() is None  # step 1 is not known yet
    events[1].done = True
    assert losses.first_wrong().step == 1
    for step in range(4, 4 + finite.WAITING + 1):
        assert losses.first_wrong() is None
        losses.waiting.append(Loss(1, step, ["loss"], torch.tensor([1.0]), {}, events[step]))
    assert losses.first_wrong() is None
    assert len(losses.waiting) == finite.WAITING  # no more batches are kept than that
    assert losses.first_wrong(wait=True) is None
    assert not losses.waiting


def test_a_bad_loss_that_is_known_late_still_names_its_step_and_spoils_no_state(here, capfd):
    def before(patch):
        def add(self, when, names, values, batch):
            self.waiting.append(Loss(*when, names, values, batch, Later()))

        patch.setattr(Losses, "add", add)
        bad_at(2)(patch)

    assert command(here, "train", "mine.yaml", before=before) == 2
    assert "not a number in step 3, epoch 1" in capfd.readouterr().err
    [state] = (here / "runs/mine/1/state").iterdir()
    assert state.name == "2.ckpt"
    weights = torch.load(state, weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in weights.values())


def test_a_memory_that_is_full_is_told_with_what_to_lower(here, capfd):
    def before(patch):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 400 * 2**20,) * 2)

    words = ("--data.size", "[1500, 1500]", "--data.batch_size", "6")
    assert command(here, "train", "mine.yaml", *words, before=before) == 2
    error = capfd.readouterr().err
    assert re.search(r"^zoo: The computer's memory is full \(.*lower data\.batch_size \(now 6\)", error)
    assert "accumulate_grad_batches (now 1)" in error
    assert "lower data.size (now [1500, 1500])" in error
    assert "--trainer.precision bf16-mixed (now 32-true)" in error
    assert not (here / "runs/mine/1").exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_worker_that_hangs_is_named_with_its_file_and_its_stack(here, capfd, split):
    path = images(here, split)[1]

    def block():
        path.unlink()
        os.mkfifo(path)  # nobody writes to it: who reads it waits

    def before(patch):  # once the files have been looked at
        def draw(*_):
            block()
            return []

        if split == "train":
            patch.setattr(NOTES, draw)
        else:
            at_step(0, block)(patch)

    words = ("--data.num_workers", "1", "--data.timeout", "3")
    assert command(here, "train", "mine.yaml", *words, before=before) == 2
    error = capfd.readouterr().err
    assert f"No batch came for 3 s (data.timeout): worker 0 is at {path.relative_to(here)}." in error
    assert "most recent call first" in error
    assert "in read_stored" in error


@pytest.mark.slow
def test_a_worker_that_hangs_on_one_of_two_processes_ends_both(here, capfd):
    path = images(here, "val")[1]  # the second process's

    def block():
        if os.environ["RANK"] == "1":
            path.unlink()
            os.mkfifo(path)

    words = ("--data.num_workers", "1", "--data.timeout", "3", *TWO)
    hung = command(here, "train", "mine.yaml", *words, processes=2, before=at_step(0, block))
    assert hung == [2, 2]
    error = capfd.readouterr().err
    assert "No batch came for 3 s" in error
    assert "Another process of this training has ended, and says why above" in error


def limit_files(size):
    def before(patch):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return before


def test_a_full_disk_costs_states_but_not_the_training(here, capfd):
    assert command(here, "train", "mine.yaml", "--name", "free", "--trainer.max_epochs", "1") == 0
    model, state = (here / "runs/free/1" / name for name in ("model.safetensors", "state/6.ckpt"))
    between = (model.stat().st_size + state.stat().st_size) // 2
    capfd.readouterr()
    assert command(here, "train", "mine.yaml", before=limit_files(between)) == 0
    told = capfd.readouterr().out
    assert re.search(
        r"The state runs/mine/1/state/2.ckpt could not be written \(.*\); make room. The training goes", told
    )
    assert not list((here / "runs/mine/1/state").iterdir())
    assert facts(here / "runs/mine/1")["finished"]


def test_a_disk_too_full_for_the_model_ends_the_training_and_keeps_the_one_before(here, capfd):
    assert command(here, "train", "mine.yaml", "--trainer.max_epochs", "1", "--monitor", "null") == 0
    run = here / "runs/mine/1"
    before = (run / "model.safetensors").read_bytes()
    words = ("train", "--resume", "runs/mine", "--resume_anyway", "--trainer.max_epochs", "3")
    capfd.readouterr()
    assert command(here, *words, before=limit_files(len(before) // 2)) == 2
    told = capfd.readouterr()
    assert "could not be written" in told.err
    assert "make room" in told.err
    assert (run / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in run.glob(".*")) == []
    assert command(here, *words) == 0


class Idle(nn.Module):
    strides = (4,)

    def __init__(self, channels, num_outputs):
        super().__init__()
        self.head = nn.Conv2d(channels[0], num_outputs, 1)
        self.spare = nn.Conv2d(channels[0], num_outputs, 1)
        self.frozen = nn.Conv2d(channels[0], num_outputs, 1).requires_grad_(False)

    def forward(self, features, image):
        return {"logits": self.head(features[0])}


def register(patch):
    register_decoder(name="idle", tasks=("segmentation",))(Idle)


def test_weights_that_get_no_gradient_are_named_once_but_not_frozen_ones(here, capfd):
    model = ("--model", "{encoder: test_resnet, decoder: idle}")
    assert command(here, "train", "mine.yaml", *model, before=register) == 0
    told = capfd.readouterr().out
    assert told.count("Note: 2 of the model's weights get no gradient and stay as they are: decoder.spare (2).") == 1
    assert facts(here / "runs/mine/1")["without_gradient"] == ["decoder.spare.weight", "decoder.spare.bias"]


@pytest.mark.slow
def test_two_processes_say_which_weights_they_would_wait_for(here, capfd):
    model = ("--model", "{encoder: test_resnet, decoder: idle}")
    assert command(here, "train", "mine.yaml", *model, *TWO, before=register, processes=2) == [2, 2]
    error = capfd.readouterr().err
    assert "decoder.spare (2). Several processes wait for them: set --trainer.strategy ddp_find_unused" in error
    words = (*model, *TWO, "--trainer.strategy", "ddp_find_unused_parameters_true")
    assert command(here, "train", "mine.yaml", *words, before=register, processes=2) == [0, 0]
    assert "decoder.spare (2)." in capfd.readouterr().out
