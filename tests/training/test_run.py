import csv
import json
import multiprocessing
import os
import re
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.create import load_model
from zoo.datasets.folder import FolderDataset
from zoo.errors import UserError
from zoo.metrics import create_metrics
from zoo.training import run as runs
from zoo.training.callbacks import Keep
from zoo.training.module import Training
from zoo.training.recipe import load_recipe
from zoo.training.run import new_folder, open_data

RECIPE = """
task: segmentation
model: {encoder: resnet10t, decoder: {name: unet, widths: [16, 8, 8, 8, 4]}}
data: {card: folder, size: [64, 64], fit: resize, augment: flips, batch_size: 4, num_workers: 0}
optimizer: {name: adamw, lr: 3.0e-3}
trainer: {max_epochs: 2, accelerator: cpu, devices: 1}
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_discs(root, number, *, sizes=((64, 72), (80, 64)), classes=1):
    """Images with a bright disc on noise, and masks of 0 and 255, or of class ids."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for i in range(number):
        height, width = sizes[i % len(sizes)]
        y, x = np.mgrid[:height, :width]
        inside = (y - height / 2) ** 2 + (x - width * rng.uniform(0.3, 0.7)) ** 2 < rng.uniform(12, 20) ** 2
        kind = 1 + i % classes
        image = rng.normal(90, 15, (height, width, 3))
        image[inside] += np.roll([110, -50, -50], kind)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "images" / f"{i:02}.png")
        mask = (inside * (255 if classes == 1 else kind)).astype(np.uint8)
        Image.fromarray(mask).save(root / "masks" / f"{i:02}.png")
    return root


def recipe_of(folder, data, *overrides, text=RECIPE):
    path = folder / "discs.yaml"
    path.write_text(text)
    return load_recipe(path, ["--data.root", str(data), *overrides])


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
        *("run.json", "samples.png", "test.json", "timings.csv"),
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
    for sample in FolderDataset(open_data(recipe).card, "val"):
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
    assert runs.test(run) == {k: v for k, v in before["test"].items() if k != "images"}
    assert before["test"]["images"] == 2
    runs.test(run, "val")
    assert set(json.loads((run / "test.json").read_text())) == {"test", "val"}
    assert "Measured on the val split" in (run / "report.html").read_text()
    with pytest.raises(UserError, match=r"no split 'tset'.*'test'"):
        runs.test(run, "tset")


def test_on_other_data_test_leaves_the_run_alone(finished, tmp_path):
    run, _, _ = finished
    other = write_discs(tmp_path / "other", 12)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    scores = runs.test(run, overrides=["--data.root", str(other)])
    assert 0 <= scores["mean_iou"] <= 1
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_classes_names_and_colours_go_from_the_card_into_the_model(tmp_path):
    data = write_discs(tmp_path / "discs", 12, classes=2)
    card = "{name: folder, values: null, classes: [background, red, green], colors: [[0, 0, 0], [9, 8, 7], [1, 2, 3]]}"
    recipe = recipe_of(tmp_path, data, "--data.card", card, "--trainer.max_epochs", "1")
    run = runs.train(recipe, runs=tmp_path / "runs")
    model = load_model(run)
    assert model.task.class_names == ("background", "red", "green")
    assert model.task.class_colors == ((0, 0, 0), (9, 8, 7), (1, 2, 3))
    page = (run / "report.html").read_text()
    assert "IoU by class" in page
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
    overrides = ("--data.card.splits", "{seed: 0}", "--data.size", "[32, 64]", "--model.input_size", "[64, 64]")
    run = runs.train(recipe_of(tmp_path, data, *overrides), runs=tmp_path / "runs")
    notes = [line for line in printed if line.startswith("Note: ")]
    assert any("no val split" in note for note in notes)
    assert any("64x64" in note and "32x64" in note for note in notes)
    assert json.loads((run / "run.json").read_text())["kept_epoch"] == 2
    assert "n = " not in (run / "report.html").read_text()
    with pytest.raises(UserError, match="neither a test nor a val split"):
        runs.test(run)


def test_the_best_epoch_is_kept_not_the_last_and_nan_never_beats_a_number(tmp_path):
    class Model:
        saved = 0

        def save(self, folder):
            self.saved += 1

    class Trainer:
        current_epoch = -1

    module, trainer, keep = type("Module", (), {"model": Model(), "scores": {}})(), Trainer(), Keep(tmp_path, "iou")
    kept = []
    for score in (float("nan"), 0.5, 0.4, float("nan"), 0.6, 0.6):
        trainer.current_epoch += 1
        module.scores = {"iou": score}
        keep.on_train_epoch_end(trainer, module)
        kept.append(keep.epoch)
    assert kept == [1, 2, 2, 2, 5, 5]
    assert module.model.saved == 3


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["--monitor", "mean_iu"], r"no metric 'mean_iu' to monitor.*'mean_iou'"),
        (["--optimizer.name", "adamq"], r"no optimiser 'adamq'"),
        (["--loss", "{dicee: 1}"], r"dicee"),
        (["--trainer.precision", "17"], r"trainer keys do not fit"),
        (["--trainer.accelerator", "gpuu"], r"trainer keys do not fit"),
        (["--model.num_classes", "3", "--loss", "{bce: 1}"], r"bce"),
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
