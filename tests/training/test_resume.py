"""Trainings that are really killed, in processes of their own, and go on: as if nobody had ever stopped them."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess

import pytest
import torch

from tests.training.commands import at_step, command, kill
from tests.training.discs import write_discs
from zoo.cli import main
from zoo.training import state as states
from zoo.training.callbacks import Keep, Tables
from zoo.training.state import State, Whole, find_state
from zoo.training.stopping import EarlyStopping

RECIPE = """
model: {encoder: test_resnet, decoder: {name: linear, dropout: 0.5}}
data: {card: folder, root: discs, size: [32, 32], batch_size: 2, num_workers: 0}
optimizer: {name: adamw, lr: 3.0e-3}
save_every: 2
ema: 0.9
early_stopping: {patience: 5}
trainer: {max_epochs: 3, accelerator: cpu, devices: 1}
"""
STEPS = 5  # of an epoch: 10 training images


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a recipe, data, and in runs/whole/1 the training that nobody stopped, all its states kept."""
    folder = tmp_path_factory.mktemp("resume")
    write_discs(folder / "discs", 12)
    for name in ("whole", "mine"):
        (folder / f"{name}.yaml").write_text(RECIPE)

    def keep_all(patch):
        patch.setattr(states, "KEPT", 100)
        patch.setattr("zoo.training.run.keep_newest", lambda *_: 0)

    assert command(folder, "train", "whole.yaml", "--save_every", "1", before=keep_all) == 0
    return folder


@pytest.fixture
def here(place):
    """The same folder without the runs of another test."""
    shutil.rmtree(place / "runs/mine", ignore_errors=True)
    return place


def after(owner, name, count):
    """Patches a training so that it is killed when a method has been called `count` times."""

    def patch(monkeypatch):
        real, calls = getattr(owner, name), []

        def method(self, *args, **kwargs):
            result = real(self, *args, **kwargs)
            calls.append(1)
            if len(calls) == count:
                kill()
            return result

        monkeypatch.setattr(owner, name, method)

    return patch


def equal(run, whole):
    """Whether two runs have the same model, tables, optimiser, schedule and callbacks' states, bit for bit."""
    for name in ("metrics.csv", "model.safetensors", "config.json"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    ours, theirs = (torch.load(run / f"state/{3 * STEPS}.ckpt", weights_only=True) for run in (run, whole))
    for found in (ours, theirs):
        del found["callbacks"]["Tables"]["timings"], found["callbacks"]["Tables"]["sums"]
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks"):
        same(ours[key], theirs[key])
    return True


def same(ours, theirs):
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            same(ours[key], theirs[key])
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for pair in zip(ours, theirs, strict=True):
            same(*pair)
    elif isinstance(ours, torch.Tensor):
        assert torch.equal(ours, theirs)
    else:
        assert repr(ours) == repr(theirs)


WORKERS = ("--data.num_workers", "2")


@pytest.mark.parametrize(
    ("blow", "left"),
    [
        (at_step(7), 6),  # between two states in the midst of an epoch
        pytest.param(at_step(9), 8, marks=pytest.mark.slow),  # in the last step of an epoch
        # an epoch is over and its row written, then its model too, but no state yet
        pytest.param(after(Tables, "on_train_epoch_end", 2), 8, marks=pytest.mark.slow),
        pytest.param(after(Keep, "on_train_epoch_end", 2), 8, marks=pytest.mark.slow),
        pytest.param(after(State, "_save", 4), 6, marks=pytest.mark.slow),  # 2, 4, 5, 6: just written
    ],
)
def test_a_killed_training_goes_on_to_the_very_same_end(here, blow, left):
    assert command(here, "train", "mine.yaml", *WORKERS, before=blow) == -signal.SIGKILL
    run = here / "runs/mine/1"
    assert find_state(run).stem == str(left)
    assert command(here, "train", "--resume", "runs/mine") == 0
    assert equal(run, here / "runs/whole/1")
    told = json.loads((run / "run.json").read_text())["told"]
    assert told[1] == f"Resumed after step {left}."
    assert f"Resumed after step {left}." in (run / "report.html").read_text()
    assert [path.name for path in (run / "state").iterdir()] == ["15.ckpt"]
    assert len((run / "timings.csv").read_text().splitlines()) == 4


@pytest.mark.slow
def test_killed_while_a_state_is_written_it_goes_on_from_the_one_before(here):
    def in_the_midst(patch):
        real, calls = torch.save, []

        def save(found, file):
            real(found, file)
            calls.append(1)
            if len(calls) == 4:
                file.truncate(file.tell() // 2)
                kill()

        patch.setattr(torch, "save", save)

    assert command(here, "train", "mine.yaml", before=in_the_midst) == -signal.SIGKILL
    run = here / "runs/mine/1"
    assert sorted(path.name for path in (run / "state").iterdir() if path.name[0] != ".") == ["4.ckpt", "5.ckpt"]
    assert len(list((run / "state").iterdir())) == 3  # what was half written
    assert command(here, "train", "--resume", "runs/mine/1") == 0
    assert equal(run, here / "runs/whole/1")
    assert len(list((run / "state").iterdir())) == 1


@pytest.mark.parametrize("damage", ["cut", "one byte"])
def test_the_newest_whole_state_is_found(tmp_path, damage):
    for step in (5, 10, 20):
        Whole().save_checkpoint({"weights": torch.rand(1000)}, tmp_path / f"state/{step}.ckpt")
    (tmp_path / "state/.7.30.ckpt").write_bytes(b"half")
    assert find_state(tmp_path).stem == "20"
    hurt(tmp_path / "state/20.ckpt", damage)
    assert find_state(tmp_path).stem == "10"


def hurt(path, damage):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content if damage == "one byte" else content[: len(content) // 2])


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["cut", "one byte"])
def test_a_damaged_state_is_passed_over(here, damage):
    assert command(here, "train", "mine.yaml", before=at_step(7)) == -signal.SIGKILL
    hurt(here / "runs/mine/1/state/6.ckpt", damage)
    assert command(here, "train", "--resume", "runs/mine/1") == 0
    assert equal(here / "runs/mine/1", here / "runs/whole/1")
    assert json.loads((here / "runs/mine/1/run.json").read_text())["resumed"] == ["Resumed after step 5."]


@pytest.mark.slow
@pytest.mark.parametrize("step", range(1, 3 * STEPS + 1))
def test_every_state_leads_to_the_same_end(here, step):
    run = here / "runs/mine/1"
    shutil.copytree(here / "runs/whole/1", run)
    for path in (run / "state").iterdir():
        if int(path.stem) > step:
            path.unlink()
    (run / "run.json").write_text("{}")
    assert command(here, "train", "--resume", "runs/mine/1") == 0
    assert equal(run, here / "runs/whole/1")


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_a_signal_saves_and_tells_how_to_go_on(here, number, code):
    def to_all():  # the workers too, and from outside: as a terminal and a scheduler do
        pids = [os.getpid(), *(process.pid for process in multiprocessing.active_children())]
        subprocess.run(["kill", f"-{number:d}", *map(str, pids)], check=True)

    assert command(here, "train", "mine.yaml", *WORKERS, before=at_step(7, to_all)) == code
    run = here / "runs/mine/1"
    assert find_state(run).stem == "8"
    notice = json.loads((run / "run.json").read_text())["notice"]
    assert "was interrupted in epoch 2; the checkpoint is epoch 1's." in notice
    assert "`zoo train --resume runs/mine/1` goes on after step 8." in notice
    assert command(here, "train", "--resume", "runs/mine") == 0
    assert equal(run, here / "runs/whole/1")


@pytest.mark.slow
def test_interrupted_in_its_first_epoch_a_run_stays_and_a_second_signal_stops_at_once(here):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    assert command(here, "train", "mine.yaml", before=at_step(3, twice)) == 130
    run = here / "runs/mine/1"
    assert find_state(run).stem == "2"
    assert "there is no checkpoint yet" in json.loads((run / "run.json").read_text())["notice"]
    assert command(here, "train", "--resume", "runs/mine") == 0
    assert equal(run, here / "runs/whole/1")


@pytest.mark.slow
def test_rates_and_accumulated_gradients_go_on_too(here):
    words = ("--data.rates", "[0.5, 1, 1.5]", "--trainer.accumulate_grad_batches", "2", "--trainer.max_epochs", "2")
    assert command(here, "train", "mine.yaml", *words, "--name", "rates") == 0
    assert command(here, "train", "mine.yaml", *words, before=at_step(7)) == -signal.SIGKILL
    run = here / "runs/mine/1"
    assert find_state(run).stem == "6"
    assert command(here, "train", "--resume", "runs/mine") == 0
    for name in ("metrics.csv", "model.safetensors"):
        assert (run / name).read_bytes() == (here / "runs/rates/1" / name).read_bytes(), name


@pytest.fixture
def inside(here, monkeypatch):
    """The finished run, for commands that train nothing and so need no process of their own."""
    monkeypatch.chdir(here)
    before = content(here / "runs/whole/1")
    yield here / "runs/whole/1"
    assert content(here / "runs/whole/1") == before


def content(run):
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_finished_run_stays_as_it_is(inside, capsys):
    logger = ["--trainer.logger.name", "tensorboard"]
    for words in (
        [],
        ["--data.num_workers", "2", "--save_every", "7"],
        ["--data.on_error", "skip", "--on_nan", "skip"],
        logger,
    ):
        assert main(["train", "--resume=runs/whole", *words]) == 0
        told = capsys.readouterr().out
        assert "runs/whole/1 is finished. Epoch " in told
        assert "zoo train --resume runs/whole/1 --resume_anyway --trainer.max_epochs N" in told


def test_a_changed_recipe_is_refused_with_the_difference(inside, capsys):
    changes = ["--optimizer.lr", "1e-4", "--data.num_workers", "1", "--trainer.max_epochs", "9"]
    assert main(["train", "--resume", "runs/whole", *changes]) == 2
    told = "was trained otherwise: optimizer.lr 0.0001 (before: 0.003), trainer.max_epochs 9 (before: 3). Leave"
    assert told in capsys.readouterr().err
    assert main(["train", "--resume", "runs/whole", "--optimizer.name", "sgd", "--resume_anyway"]) == 2
    assert "cannot go on with another optimizer.name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value"), [("overfit", "2"), ("data.card.splits", "{seed: 1, val: 0.5}"), ("data.card.group", "'(.)'")]
)
def test_a_run_keeps_its_splits(inside, capsys, key, value):
    assert main(["train", "--resume", "runs/whole", f"--{key}", value, "--resume_anyway"]) == 2
    assert f"cannot go on with another {key}" in capsys.readouterr().err


def test_a_run_whose_splits_are_gone_is_a_sentence(here, capsys, monkeypatch):
    monkeypatch.chdir(here)
    shutil.copytree(here / "runs/whole/1", here / "runs/mine/1")
    (here / "runs/mine/1/splits.json").unlink()
    assert main(["train", "--resume", "runs/mine", "--trainer.max_epochs", "9", "--resume_anyway"]) == 2
    assert "runs/mine/1/splits.json is gone" in capsys.readouterr().err


def test_a_resume_is_told_once_the_data_is_there(inside, capsys, monkeypatch):
    monkeypatch.chdir(inside)
    assert main(["train", "--resume", ".", "--trainer.max_epochs", "9", "--resume_anyway"]) == 2
    captured = capsys.readouterr()
    assert "discs" in captured.err
    assert "Resumed" not in captured.out


def test_a_misplaced_word_or_an_unknown_run_or_key_is_a_sentence(inside, capsys):
    for words in (["whole.yaml", "--resume", "runs/whole"], ["--resume"], ["--resume", "--seed", "1"]):
        assert main(["train", *words]) == 2
        assert "--resume stands in place of the recipe" in capsys.readouterr().err
    assert main(["train", "--resume", "nowhere"]) == 2
    assert "is no run (a folder with recipe.yaml)" in capsys.readouterr().err
    assert main(["train", "--resume", "runs/whole", "--optimizer.lrr", "1"]) == 2
    assert "did you mean 'optimizer.lr'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_training_bounded_by_steps_goes_on_too(here):
    words = ("--trainer.max_steps", "13", "--trainer.max_epochs", "-1")
    assert command(here, "train", "mine.yaml", *words, "--name", "bounded") == 0
    assert command(here, "train", "mine.yaml", *words, before=at_step(12)) == -signal.SIGKILL
    assert command(here, "train", "--resume", "runs/mine") == 0
    for name in ("metrics.csv", "model.safetensors"):
        assert (here / "runs/mine/1" / name).read_bytes() == (here / "runs/bounded/1" / name).read_bytes(), name


@pytest.mark.slow
def test_a_run_without_a_state_is_a_sentence(here, capfd):
    assert command(here, "train", "mine.yaml", before=at_step(1)) == -signal.SIGKILL
    assert command(here, "train", "--resume", "runs/mine") == 2
    assert "holds no state to go on from" in capfd.readouterr().err


@pytest.mark.slow
def test_a_change_is_taken_if_told_so(here, capfd):
    assert command(here, "train", "mine.yaml", before=at_step(8)) == -signal.SIGKILL
    run = here / "runs/mine/1"
    before = content(run)
    assert command(here, "train", "--resume", "runs/mine", "--model.decoder", "unet", "--resume_anyway") == 2
    assert "does not fit the changed recipe" in capfd.readouterr().err
    assert content(run) == before
    words = ("--optimizer.lr", "1e-4", "--scheduler.name", "constant", "--loss", "{bce: 1}")
    assert command(here, "train", "--resume", "runs/mine", *words, "--resume_anyway") == 0
    rates = [float(line.split(",")[2]) for line in (run / "metrics.csv").read_text().splitlines()[1:]]
    assert rates[0] > 1e-3
    assert rates[1:] == [1e-4, 1e-4]
    assert "lr: 0.0001" in (run / "recipe.yaml").read_text()
    assert "optimizer.lr 0.0001 (before: 0.003)" in (run / "report.html").read_text()


@pytest.mark.slow
def test_a_finished_run_is_prolonged_as_if_it_had_been_longer_from_the_start(here):
    constant = ("--scheduler.name", "constant")
    assert command(here, "train", "mine.yaml", *constant, "--name", "long") == 0
    assert command(here, "train", "mine.yaml", *constant, "--trainer.max_epochs", "2") == 0
    run = here / "runs/mine/1"
    assert command(here, "train", "--resume", "runs/mine", "--trainer.max_epochs", "3", "--resume_anyway") == 0
    assert equal(run, here / "runs/long/1")
    assert len((run / "timings.csv").read_text().splitlines()) == 4


@pytest.mark.slow
def test_a_run_bounded_by_steps_is_prolonged_by_whole_epochs(here, capfd):
    words = ("--scheduler.name", "constant", "--trainer.max_epochs", "-1", "--trainer.max_steps")
    assert command(here, "train", "mine.yaml", *words, "8", "--name", "longer") == 0
    for steps, rows in ((5, [5, 8]), (3, [3, 8])):  # an epoch has 5
        shutil.rmtree(here / "runs/mine", ignore_errors=True)
        assert command(here, "train", "mine.yaml", *words, str(steps)) == 0
        capfd.readouterr()
        assert command(here, "train", "--resume", "runs/mine", "--trainer.max_steps", "8", "--resume_anyway") == 0
        table = (here / "runs/mine/1/metrics.csv").read_text()
        assert [int(line.split(",")[1]) for line in table.splitlines()[1:]] == rows
        assert ("Epoch 1 ended after 3 of 5 batches" in capfd.readouterr().out) == (steps == 3)
        assert (table == (here / "runs/longer/1/metrics.csv").read_text()) == (steps == 5)


@pytest.mark.slow
def test_a_stop_decided_on_before_an_interruption_is_kept(here):
    early = ("--early_stopping", "1", "--optimizer.lr", "1e-12", "--ema", "null", "--trainer.max_epochs", "9")
    assert command(here, "train", "mine.yaml", *early, "--name", "early") == 0

    def interrupted(patch):
        real = EarlyStopping._run_early_stopping_check

        def check(self, trainer):
            real(self, trainer)
            if trainer.should_stop:
                os.kill(os.getpid(), signal.SIGTERM)

        patch.setattr(EarlyStopping, "_run_early_stopping_check", check)

    assert command(here, "train", "mine.yaml", *early, before=interrupted) == 143
    assert command(here, "train", "--resume", "runs/mine") == 0
    run, whole = here / "runs/mine/1", here / "runs/early/1"
    assert (run / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    assert any("was no better in 1 validations" in line for line in json.loads((run / "run.json").read_text())["told"])


@pytest.mark.slow
def test_a_kept_model_of_a_forgotten_epoch_gives_way_to_the_next(here):
    assert command(here, "train", "mine.yaml", before=after(Keep, "on_train_epoch_end", 2)) == -signal.SIGKILL
    words = ("--resume_anyway", "--optimizer.lr", "1e-9")  # from step 8 on the second epoch is another one
    assert command(here, "train", "--resume", "runs/mine", *words) == 0
    run = here / "runs/mine/1"
    kept = json.loads((run / "run.json").read_text())["kept_epoch"]
    assert kept > 1  # epoch 1's model was already replaced
    assert (run / "model.safetensors").read_bytes() != (here / "runs/whole/1/model.safetensors").read_bytes()
