import csv
import json
import multiprocessing
import os
import re
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.discs import RECIPE, recipe_of, truncate, write_discs
from zoo.create import load_model
from zoo.datasets.folder import FolderDataset
from zoo.errors import UserError
from zoo.metrics import create_metrics
from zoo.metrics.counts import read_counts
from zoo.training import callbacks, measure
from zoo.training import run as runs
from zoo.training.callbacks import Keep
from zoo.training.data import open_data
from zoo.training.module import Training
from zoo.training.recipe import load_recipe
from zoo.training.run import new_folder


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(the folder of a finished run, its recipe, what it printed)."""
    folder = tmp_path_factory.mktemp("finished")
    recipe = recipe_of(folder, write_discs(folder / "discs", 20))
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr(runs.Console, "print", lambda self, *text, **_: printed.append(" ".join(map(str, text))))
        return runs.train(recipe, runs=folder / "runs"), recipe, "\n".join(printed)


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_everything_it_promises(finished):
    run, _, printed = finished
    assert run.parts[-3:] == ("runs", "discs", "1")
    assert sorted(path.name for path in run.iterdir()) == [
        *("config.json", "curves.png", "metrics.csv", "model.safetensors", "recipe.yaml", "report.html"),
        *("run.json", "samples.png", "splits.json", "state", "test.json", "test_details.json", "test_images.csv"),
        *("timings.csv", "worst_test.png"),
    ]
    for name in ("curves.png", "samples.png"):
        with Image.open(run / name) as image:
            assert min(image.size) > 300
    assert "binary" in printed  # what looking at the masks has shown
    assert str(run) in printed
    assert "report.html" in printed
    assert re.search(r"^epoch 1/2: loss .*mean_iou .*images/s", printed, re.MULTILINE)


def test_metrics_have_a_row_per_epoch_and_no_clock(finished):
    rows = table(finished[0] / "metrics.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [row["step"] for row in rows] == ["4", "8"]
    assert {"lr", "train/loss", "train/bce", "train/dice", "val/mean_iou"} <= set(rows[0])
    assert not [name for name in rows[0] if re.search("second|time|image", name)]
    assert float(rows[1]["train/loss"]) < float(rows[0]["train/loss"])
    timings = table(finished[0] / "timings.csv")
    assert [row["images"] for row in timings] == ["16", "16"]
    assert all(0 <= float(row["waiting"]) <= 1 for row in timings)


def test_the_same_recipe_gives_the_same_metrics_and_weights_with_workers_or_without(finished, tmp_path):
    run, recipe, _ = finished
    again = recipe_of(tmp_path, recipe.data.root, "--data.num_workers", "2")
    other = runs.train(again, runs=tmp_path / "runs")
    assert (other / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()
    assert (other / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_the_checkpoint_answers_as_validation_did(finished):
    run, recipe, _ = finished
    model = load_model(run)
    assert not model.training
    kept = json.loads((run / "run.json").read_text())["kept_epoch"]
    rows = table(run / "metrics.csv")
    assert float(rows[kept - 1]["val/mean_iou"]) == max(float(row["val/mean_iou"]) for row in rows)
    metrics = create_metrics(model.task)
    for sample in open_data(recipe).original("val"):
        with torch.inference_mode():
            metrics.update(model.answer(sample["image"][None]), {"mask": sample["mask"][None]})
    for name, value in metrics.compute().items():
        assert float(rows[kept - 1][f"val/{name}"]) == pytest.approx(float(value), rel=1e-6)


def test_the_resolved_recipe_reads_back_and_the_card_is_in_the_model(finished):
    run, recipe, _ = finished
    again = load_recipe(run / "recipe.yaml")
    assert again.name == "discs"
    assert again.model["num_classes"] == 1
    assert again.data.card == {"name": "folder", "values": "grey", "num_classes": 1}  # found once, not looked for again
    assert replace(again.data, card=recipe.data.card) == recipe.data
    assert load_model(run).task.num_classes == 1


def test_test_measures_a_split_and_writes_it_into_the_report(finished):
    run, _, _ = finished
    before = json.loads((run / "test.json").read_text())
    assert measure.test(run) == {k: v for k, v in before["test"].items() if k != "images"}
    assert before["test"]["images"] == 2
    measure.test(run, "val")
    assert set(json.loads((run / "test.json").read_text())) == {"test", "val"}
    assert "Measured on the val split" in (run / "report.html").read_text()
    details = json.loads((run / "test_details.json").read_text())
    counts = read_counts(run / "test_images.csv", {split: (d["mode"], d["classes"]) for split, d in details.items()})
    splits = json.loads((run / "splits.json").read_text())
    for split, own in counts.items():
        assert sorted(own.images) == sorted(image for _, image, _ in splits[split])
        assert sum(map(sum, details[split]["confusion"])) == own.pixels.sum()
        assert sum(details[split]["calibration"]["pixels"]) == own.pixels.sum()
        found = {name: values[0] for name, values in own.resampled(np.ones((1, len(own.images)))).items()}
        for name, value in json.loads((run / "test.json").read_text())[split].items():
            assert name == "images" or found[name] == pytest.approx(value, abs=1e-6)
    with pytest.raises(UserError, match=r"no split 'tset'.*'test'"):
        measure.test(run, "tset")


def test_a_fold_is_a_run_of_its_own_that_says_so(tmp_path):
    data, keys = write_discs(tmp_path / "discs", 12), ("--trainer.max_epochs", "1", "--data.folds", "3")
    held_out = []
    for fold in (1, 3):
        run = runs.train(recipe_of(tmp_path, data, *keys, "--data.fold", str(fold)), runs=tmp_path / "runs")
        assert run == tmp_path / "runs" / "discs" / f"fold_{fold}_of_3" / "1"
        splits = json.loads((run / "splits.json").read_text())
        held_out.append({name for name, *_ in splits["val"]})
        assert f"discs, fold {fold} of 3, run 1" in (run / "report.html").read_text()
        measured = json.loads((run / "test.json").read_text())
        assert measure.test(run) == {k: v for k, v in measured["test"].items() if k != "images"}
    assert not held_out[0] & held_out[1]
    for half in ("fold", "folds"):
        with pytest.raises(UserError, match=rf"data.{half} is 2, but data.folds? is null; .* takes both"):
            runs.train(recipe_of(tmp_path, data, f"--data.{half}", "2"), runs=tmp_path / "runs")


def test_the_same_data_in_other_words_are_the_runs_own(finished):
    run, recipe, _ = finished
    (run / "test.json").unlink()
    measure.test(run, overrides=["--trainer.devices", "1", "--data.root", f"{recipe.data.root}/../discs/"])
    assert set(json.loads((run / "test.json").read_text())) == {"test"}
    measure.test(run, "val", ["--trainer.limit_test_batches", "1"])  # not the whole split, so not the run's figure
    assert set(json.loads((run / "test.json").read_text())) == {"test"}


def test_a_test_takes_no_key_of_the_training(finished):
    with pytest.raises(
        UserError, match=r"'seed' is the run's own; a test takes keys of data, trainer and protocol alone"
    ):
        measure.test(finished[0], overrides=["--seed", "3"])


def test_a_finished_run_can_be_measured_by_a_published_protocol_too(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    own, both = measure.test(run), measure.test(run, overrides=["--protocol", "pranet"])
    assert {name: both[name] for name in own} == own
    assert {"dice_mean256", "e_max256", "s_measure", "weighted_f", "mae"} <= both.keys() - own.keys()
    assert all(0 <= value <= 1.001 for value in both.values())
    assert json.loads((run / "test.json").read_text())["test"]["s_measure"] == both["s_measure"]
    assert "dice mean256" in (run / "report.html").read_text()


def test_a_protocols_figure_can_choose_the_best_epoch(tmp_path):
    data = write_discs(tmp_path / "discs", 10)
    run = runs.train(
        recipe_of(tmp_path, data, "--protocol", "pranet", "--monitor", "dice_mean256"), runs=tmp_path / "runs"
    )
    scores = [float(row["val/dice_mean256"]) for row in table(run / "metrics.csv")]
    assert scores[json.loads((run / "run.json").read_text())["kept_epoch"] - 1] == max(scores)


def test_a_run_that_cannot_be_written_to_is_measured_all_the_same(finished, monkeypatch, capsys):
    run, before = finished[0], (finished[0] / "report.html").read_bytes()

    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(runs.record, "write_json", refuse)
    assert 0 <= measure.test(run)["mean_iou"] <= 1
    told = capsys.readouterr().out
    assert "test: " in told
    assert "cannot be written to (Read-only file system)" in told
    assert (run / "report.html").read_bytes() == before


def test_images_that_come_after_the_training_change_no_split(tmp_path):
    data = write_discs(tmp_path / "discs", 12)
    run = runs.train(recipe_of(tmp_path, data, "--trainer.max_epochs", "1"), runs=tmp_path / "my runs")
    assert json.loads((run / "run.json").read_text())["commands"]["test it"] == f"zoo test '{run}'"
    before = measure.test(run)
    write_discs(data, 40, first=12)
    assert measure.test(run) == before
    [[_, image, _]] = json.loads((run / "splits.json").read_text())["test"]
    (data / image).unlink()
    with pytest.raises(UserError, match=rf"1 of the split 'test''s files are gone.*{image}.*splits\.json"):
        measure.test(run)


def test_other_data_are_read_as_the_model_reads_images(tmp_path, monkeypatch):
    data = write_discs(tmp_path / "discs", 12)
    for file in (data / "images").iterdir():
        pixels = np.array(Image.open(file).convert("L")).astype(np.uint16) * 16
        Image.fromarray(pixels).save(file)
    text = RECIPE.replace("card: folder", "card: {name: folder, channels: 1, intensity: {bits: 12}}")
    run = runs.train(recipe_of(tmp_path, data, "--trainer.max_epochs", "1", text=text), runs=tmp_path / "runs")
    (tmp_path / "mine.yaml").write_text(
        "images: images/{name}.*\nmasks: masks/{name}.*\nvalues: grey\nnum_classes: 1\n"
    )
    other = ["--data.card", str(tmp_path / "mine.yaml"), "--data.root", str(data)]
    assert measure.test(run, overrides=other) == measure.test(run)


def test_on_other_data_test_leaves_the_run_alone(finished, tmp_path):
    run, _, _ = finished
    other = write_discs(tmp_path / "other", 12)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    scores = measure.test(run, overrides=["--data.root", str(other)])
    assert 0 <= scores["mean_iou"] <= 1
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_classes_names_and_colours_go_from_the_card_into_the_model(tmp_path):
    data = write_discs(tmp_path / "discs", 12, classes=2)
    card = "{name: folder, values: null, classes: [background, red, green], colors: [[0, 0, 0], [9, 8, 7], [1, 2, 3]]}"
    recipe = recipe_of(tmp_path, data, "--data.card", card, "--trainer.max_epochs", "1")
    run = runs.train(recipe, runs=tmp_path / "runs")
    model = load_model(run)
    assert model.task.class_names == ("background", "red", "green")
    assert model.task.class_colors == ((0, 0, 0), (9, 8, 7), (1, 2, 3))
    page = (run / "report.html").read_text()
    assert "<h2>Classes</h2>" in page
    assert "rgb(9,8,7)" in page


def test_three_rates_are_three_steps_and_gradients_are_clamped_by_value(tmp_path, monkeypatch):
    steps = []
    real = torch.optim.SGD.step

    def step(self, closure=None):
        def clamped():
            loss = closure()
            steps.append(max(p.grad.abs().max().item() for group in self.param_groups for p in group["params"]))
            return loss

        return real(self, clamped)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    recipe = recipe_of(
        tmp_path,
        write_discs(tmp_path / "discs", 10),
        *("--optimizer.name", "sgd", "--data.rates", "[0.5, 1, 1.5]", "--trainer.max_epochs", "1"),
        *("--loss", "{bce: 100}", "--trainer.gradient_clip_val", "0.01", "--trainer.gradient_clip_algorithm", "value"),
    )
    run = runs.train(recipe, runs=tmp_path / "runs")
    assert len(steps) == 2 * 3  # 8 training images, batches of 4
    assert table(run / "metrics.csv")[-1]["step"] == "6"
    assert steps == pytest.approx([0.01] * 6)


def test_without_a_monitor_the_last_epoch_is_kept(tmp_path):
    recipe = recipe_of(tmp_path, write_discs(tmp_path / "discs", 10), "--monitor", "null")
    run = runs.train(recipe, runs=tmp_path / "runs")
    assert json.loads((run / "run.json").read_text())["kept_epoch"] == 2


def test_a_training_bounded_by_steps_ends_in_the_midst_of_an_epoch(tmp_path):
    bounds = "{max_epochs: 5, max_steps: 3, accelerator: cpu, devices: 1}"
    recipe = recipe_of(tmp_path, write_discs(tmp_path / "discs", 10), "--trainer", bounds)
    run = runs.train(recipe, runs=tmp_path / "runs")
    assert table(run / "metrics.csv")[-1]["step"] == "3"
    assert json.loads((run / "run.json").read_text())["told"][-1].startswith("Epoch 1 is kept, the best")


def test_without_held_out_images_the_run_says_so_and_keeps_the_last_epoch(tmp_path, monkeypatch):
    printed = []
    monkeypatch.setattr(runs.Console, "print", lambda self, *text, **_: printed.append(" ".join(map(str, text))))
    data = write_discs(tmp_path / "discs", 8, sizes=((64, 64),))
    overrides = (
        "--data.card.splits",
        "{val: null, test: null}",
        "--data.size",
        "[32, 64]",
        "--model.input_size",
        "[64, 64]",
    )
    run = runs.train(recipe_of(tmp_path, data, *overrides), runs=tmp_path / "runs")
    notes = [line for line in printed if line.startswith("Note: ")]
    assert any("no val split" in note for note in notes)
    assert any("64x64" in note and "32x64" in note for note in notes)
    assert json.loads((run / "run.json").read_text())["kept_epoch"] == 2
    assert "n = " not in (run / "report.html").read_text()
    with pytest.raises(UserError, match="neither a test nor a val split"):
        measure.test(run)


@pytest.mark.parametrize(("monitor", "best"), [("iou", [1, 2, 2, 2, 5, 5]), ("mae", [1, 2, 3, 3, 3, 3])])
def test_the_best_epoch_is_kept_not_the_last_and_nan_never_beats_a_number(tmp_path, monitor, best):
    class Model:
        saved = 0

        def save(self, folder):
            self.saved += 1

    class Trainer:
        current_epoch = -1

    module, trainer, keep = type("Module", (), {"kept": Model(), "scores": {}})(), Trainer(), Keep(tmp_path, monitor)
    kept = []
    for score in (float("nan"), 0.5, 0.4, float("nan"), 0.6, 0.6):
        trainer.current_epoch += 1
        module.scores = {monitor: score}
        keep.on_train_epoch_end(trainer, module)
        kept.append(keep.epoch)
    assert kept == best
    assert module.kept.saved == 3


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["--monitor", "mean_iu"], r"no metric 'mean_iu' to monitor.*'mean_iou'"),
        (["--protocol", "pranett"], r"no protocol 'pranett' - did you mean 'pranet'\?"),
        (["--protocol", "pranet", "--model.num_classes", "3"], r"needs a binary segmentation; this task has 3 classes"),
        (["--optimizer.name", "adamq"], r"no optimiser 'adamq'"),
        (["--loss", "{dicee: 1}"], r"dicee"),
        (["--trainer.precision", "17"], r"trainer keys do not fit"),
        (["--trainer.accelerator", "gpuu"], r"trainer keys do not fit"),
        (["--model.num_classes", "3", "--loss", "{bce: 1}"], r"bce"),
        (["--trainer.max_epochs", "0"], r"made no step, so there is nothing to keep.*max_epochs"),
        (["--trainer.limit_train_batches", "0"], r"made no step"),
        (["--trainer.max_epochs", "-1"], r"needs the number of steps"),
    ],
)
def test_mistakes_are_sentences_and_leave_no_folder(tmp_path, overrides, sentence):
    recipe = recipe_of(tmp_path, write_discs(tmp_path / "discs", 10), *overrides)
    with pytest.raises(UserError, match=sentence):
        runs.train(recipe, runs=tmp_path / "runs")
    assert not list(tmp_path.glob("runs/*/*"))


def test_a_workers_error_is_its_sentence_alone(tmp_path):
    data = write_discs(tmp_path / "discs", 10)
    recipe = recipe_of(tmp_path, data, "--data.num_workers", "1", "--data.card.values", "{0: 0, 254: 1}")
    with pytest.raises(UserError) as error:
        runs.train(recipe, runs=tmp_path / "runs")
    assert "Traceback" not in str(error.value)
    assert "255" in str(error.value)
    assert not list(tmp_path.glob("runs/*/*"))


def test_an_interrupted_run_keeps_what_was_saved_and_says_so(tmp_path, monkeypatch):
    start = Training.on_train_epoch_start

    def interrupt(self):
        start(self)
        if self.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Training, "on_train_epoch_start", interrupt)
    recipe = recipe_of(tmp_path, write_discs(tmp_path / "discs", 10), "--trainer.max_epochs", "5")
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        runs.train(recipe, runs=tmp_path / "runs")
    assert signal.getsignal(signal.SIGINT) is handler
    [run] = tmp_path.glob("runs/discs/*")
    load_model(run)
    assert len(table(run / "metrics.csv")) == 1
    assert "interrupted in epoch 2; the checkpoint is epoch 1" in json.loads((run / "run.json").read_text())["notice"]
    assert "interrupted in epoch 2" in (run / "report.html").read_text()


def test_an_interruption_after_the_last_epoch_is_in_no_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(Training, "on_train_end", lambda self: os.kill(os.getpid(), signal.SIGINT))
    recipe = recipe_of(tmp_path, write_discs(tmp_path / "discs", 10), "--trainer.max_epochs", "1")
    with pytest.raises(KeyboardInterrupt):
        runs.train(recipe, runs=tmp_path / "runs")
    [run] = tmp_path.glob("runs/discs/*")
    assert "interrupted after epoch 1; the checkpoint is" in json.loads((run / "run.json").read_text())["notice"]


def test_a_worker_that_fails_later_leaves_its_sentence_in_the_report(tmp_path, monkeypatch):
    data = write_discs(tmp_path / "discs", 10)
    real = Keep.on_train_epoch_end

    def then_truncate(self, trainer, module):
        real(self, trainer, module)
        for file in (data / "images").iterdir():
            truncate(file)

    monkeypatch.setattr(Keep, "on_train_epoch_end", then_truncate)
    recipe = recipe_of(tmp_path, data, "--data.num_workers", "1", "--trainer.max_epochs", "3")
    with pytest.raises(UserError, match="can't be read"):
        runs.train(recipe, runs=tmp_path / "runs")
    [run] = tmp_path.glob("runs/discs/*")
    notice = json.loads((run / "run.json").read_text())["notice"]
    assert "can't be read" in notice
    assert "in epoch 2; the checkpoint is epoch 1" in notice
    assert "Traceback" not in (run / "report.html").read_text()


def test_a_killed_worker_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(FolderDataset, "__getitem__", lambda self, key: os.kill(os.getpid(), signal.SIGKILL))
    recipe = recipe_of(tmp_path, write_discs(tmp_path / "discs", 10), "--data.num_workers", "1")
    with pytest.raises(UserError, match=r"reads images was killed.*--data\.num_workers 0"):
        runs.train(recipe, runs=tmp_path / "runs")


def test_a_full_disk_is_a_sentence_and_the_last_checkpoint_stays(tmp_path, monkeypatch, capsys):
    real, calls = callbacks.write_table, []

    def full(path, rows, *, digits):
        calls.append(path)
        if len(calls) > 2:
            raise OSError(28, "No space left on device", str(path))
        real(path, rows, digits=digits)

    monkeypatch.setattr(callbacks, "write_table", full)
    with pytest.raises(UserError, match=r"could not be written or read .*No space left on device.*make room"):
        runs.train(recipe_of(tmp_path, write_discs(tmp_path / "discs", 10)), runs=tmp_path / "runs")
    [run] = tmp_path.glob("runs/discs/*")
    load_model(run)
    assert "the checkpoint is epoch 1" in capsys.readouterr().out


def test_ctrl_c_while_a_split_is_measured_leaves_a_finished_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Training, "on_test_epoch_start", lambda self: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        runs.train(recipe_of(tmp_path, write_discs(tmp_path / "discs", 10)), runs=tmp_path / "runs")
    [run] = tmp_path.glob("runs/discs/*")
    assert "notice" not in json.loads((run / "run.json").read_text())
    assert "The test split could not be measured: it was interrupted" in (run / "report.html").read_text()
    monkeypatch.undo()
    measure.test(run)
    assert "could not be measured" not in (run / "report.html").read_text()


def test_what_was_measured_while_the_training_went_on_is_not_that_of_the_kept_model(tmp_path, monkeypatch):
    start = Training.on_train_epoch_start

    def before(self):
        start(self)
        if self.current_epoch == 1:
            [run] = tmp_path.glob("runs/discs/*")
            measure.test(run, "val")
            assert "val" in json.loads((run / "test_details.json").read_text())

    monkeypatch.setattr(Training, "on_train_epoch_start", before)
    run = runs.train(recipe_of(tmp_path, write_discs(tmp_path / "discs", 10)), runs=tmp_path / "runs")
    assert set(json.loads((run / "test_details.json").read_text())) == {"test"}
    assert {row["split"] for row in table(run / "test_images.csv")} == {"test"}
    assert not (run / "worst_val.png").exists()


def test_a_training_bounded_by_time_alone_needs_a_schedule_without_an_end(tmp_path):
    data = write_discs(tmp_path / "discs", 10)
    bounds = ("--trainer", "{max_time: '00:00:00:01', accelerator: cpu, devices: 1}")
    with pytest.raises(UserError, match=r"scheduler\.name is cosine, which needs the number of steps"):
        runs.train(recipe_of(tmp_path, data, *bounds), runs=tmp_path / "runs")
    run = runs.train(recipe_of(tmp_path, data, *bounds, "--scheduler.name", "constant"), runs=tmp_path / "runs")
    assert "00:00:00:01 of time" in json.loads((run / "run.json").read_text())["told"][0]


def test_a_bound_that_is_null_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "EPOCHS", 1)
    recipe = recipe_of(tmp_path, write_discs(tmp_path / "discs", 10), "--trainer.max_epochs", "null")
    run = runs.train(recipe, runs=tmp_path / "runs")
    assert len(table(run / "metrics.csv")) == 1
    assert ", 1 epochs, " in json.loads((run / "run.json").read_text())["told"][0]


@pytest.mark.parametrize("classes", [1, 2])
def test_the_recipe_for_pranet_trains_on_masks_of_any_kind(tmp_path, classes):
    data = write_discs(tmp_path / "discs", 6, classes=classes)
    small = "--model.encoder resnet10t --model.encoder_weights null --data.size [64,64] --model.input_size [64,64]"
    rest = "--data.num_workers 0 --trainer.max_epochs 1 --trainer.accelerator cpu --data.batch_size 2"
    recipe = load_recipe("segmentation/pranet_folder", ["--data.root", str(data), *small.split(), *rest.split()])
    run = runs.train(recipe, runs=tmp_path / "runs")
    assert load_model(run).task.num_classes == (1 if classes == 1 else 3)


def test_wrong_losses_are_told_before_weights_are_fetched(tmp_path):
    overrides = ("--model.encoder_weights", str(tmp_path / "none.pth"), "--model.num_classes", "3")
    recipe = recipe_of(tmp_path, write_discs(tmp_path / "discs", 6), *overrides, "--loss", "{structure: 1}")
    with pytest.raises(UserError, match=r"'structure' does not suit a multiclass task.*--loss null"):
        runs.train(recipe, runs=tmp_path / "runs")


def _claim(parent, barrier, queue):
    barrier.wait()
    queue.put([str(new_folder(parent)) for _ in range(20)])


def test_two_processes_never_get_the_same_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(2), context.Queue()
    workers = [context.Process(target=_claim, args=(tmp_path / "runs", barrier, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    claimed = queue.get() + queue.get()
    for worker in workers:
        worker.join()
    assert len(set(claimed)) == 40
    assert sorted(int(path.name) for path in (tmp_path / "runs").iterdir()) == list(range(1, 41))


def test_numbers_go_on_after_the_highest(tmp_path):
    for name in ("1", "7", "notes"):
        (tmp_path / name).mkdir()
    assert new_folder(tmp_path).name == "8"
