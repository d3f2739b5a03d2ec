"""The knobs of a recipe as a run turns them: what is written, what is said, and what is refused."""

import csv
import json
import math

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.loggers import Logger
from PIL import Image

from tests.training.discs import recipe_of, write_discs
from zoo.create import create_model, load_model
from zoo.errors import UserError
from zoo.metrics import create_metrics
from zoo.metrics.segmentation import SegmentationMetrics
from zoo.tasks import Segmentation
from zoo.training import loggers, measure
from zoo.training import run as runs
from zoo.training.balance import balanced
from zoo.training.data import PASSES, open_data


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def said(monkeypatch):
    """What a run prints."""
    printed = []
    monkeypatch.setattr(runs.Console, "print", lambda self, *text, **_: printed.append(" ".join(map(str, text))))
    return printed


def train(folder, *overrides, images=10, **options):
    """(a finished run, its recipe)."""
    recipe = recipe_of(folder, write_discs(folder / "discs", images, **options), *overrides)
    return runs.train(recipe, runs=folder / "runs"), recipe


def refused(folder, *overrides):
    with pytest.raises(UserError) as error:
        train(folder, *overrides)
    assert not list(folder.glob("runs/*/*"))
    return str(error.value)


def table(run):
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def measured(model, data):
    """The metrics of a model on the val split."""
    metrics = create_metrics(model.task)
    for sample in data.original("val"):
        with torch.inference_mode():
            metrics.update(model.answer(sample["image"][None]), {"mask": sample["mask"][None]})
    return {name: float(value) for name, value in metrics.compute().items()}


@pytest.mark.parametrize(("frozen", "told"), [("true", True), ("4", True), ("trunk", True), ("2", False)])
def test_rates_of_a_backbone_that_is_frozen_are_told_to_change_nothing(tmp_path, frozen, told):
    encoder = f"{{name: resnet10t, frozen: {frozen}, attention: {{name: medusa, widths: [4]}}}}"
    words = ("--model.encoder", encoder, "--model.num_classes", "1", "--optimizer.encoder_lr", "1e-4")
    recipe = recipe_of(tmp_path, write_discs(tmp_path / "discs", 10), *words, "--optimizer.layer_decay", "0.5")
    notes = [*runs._notes(recipe, open_data(recipe), create_model(**recipe.model))]
    sentence = "the whole backbone is frozen, so optimizer.encoder_lr and optimizer.layer_decay change nothing."
    assert (sentence in notes) is told


def test_rates_by_layer_train_and_the_table_shows_the_heads(tmp_path):
    words = ("--optimizer.encoder_lr", "1e-4", "--optimizer.layer_decay", "0.75", "--scheduler.name", "constant")
    run, _ = train(tmp_path, *words, "--trainer.max_epochs", "1")
    assert table(run)[0]["lr"] == "0.003"


def test_balanced_weights_are_counted_from_the_training_masks_and_kept_in_the_run(tmp_path):
    run, recipe = train(tmp_path, "--class_weights", "balanced", "--trainer.max_epochs", "1")
    share = np.zeros(2)
    for pair in open_data(recipe).pairs["train"]:
        with Image.open(pair.mask) as mask:
            share += np.bincount(np.asarray(mask).ravel() // 255, minlength=2)
    kept = yaml.safe_load((run / "recipe.yaml").read_text())["class_weights"]
    assert kept == pytest.approx(list(share.sum() / (2 * share)))
    assert kept[1] > kept[0]


def test_balanced_weights_make_every_class_count_alike_and_leave_out_what_does_not_occur():
    weights = balanced([600, 0, 300, 100])
    assert weights == pytest.approx((1000 / 1800, 1.0, 1000 / 900, 1000 / 300))
    alike = [n * weights[k] for k, n in enumerate([600, 0, 300, 100]) if n]
    assert alike == pytest.approx([1000 / 3] * 3)


def test_class_weights_that_do_not_fit_are_told_before_the_training(tmp_path):
    assert "has 3 entries; give 2, background and foreground" in refused(tmp_path, "--class_weights", "[1, 2, 3]")
    words = ("--class_weights", "balanced", "--loss", "{dice: 1}")
    assert "but the loss is dice" in refused(tmp_path, *words)


@pytest.mark.slow
def test_an_average_is_validated_kept_and_tested(tmp_path):
    run, recipe = train(tmp_path, "--ema", "0.9")
    (tmp_path / "plain").mkdir()
    plain, _ = train(tmp_path / "plain")
    epoch = json.loads((run / "run.json").read_text())["kept_epoch"]
    model, data = load_model(run), open_data(recipe)
    row = table(run)[epoch - 1]
    for name, value in measured(model, data).items():
        assert float(row[f"val/{name}"]) == pytest.approx(value, rel=1e-6)
    assert measure.test(run) == {
        name: value for name, value in json.loads((run / "test.json").read_text())["test"].items() if name != "images"
    }
    other = load_model(plain).state_dict()
    assert any(not torch.equal(value, other[name]) for name, value in model.state_dict().items())
    assert [row["train/loss"] for row in table(run)] == [row["train/loss"] for row in table(plain)]


def scripted(monkeypatch, name, values):
    """Let a metric have these values in turn; the first is asked for before the training, the last holds on."""
    real, left = SegmentationMetrics.compute, [values[0], *values]

    def compute(self):
        return {**real(self), name: torch.tensor(left.pop(0) if len(left) > 1 else left[0])}

    monkeypatch.setattr(SegmentationMetrics, "compute", compute)


@pytest.mark.parametrize(
    ("words", "epochs"),
    [
        (("--early_stopping", "2"), 5),  # 0.5, 0.6, 0.61 are each better, 0.55 and nan are not
        (("--early_stopping", "{patience: 2, min_delta: 0.05}"), 4),
    ],
)
def test_a_training_ends_early_where_the_monitor_gets_no_better(tmp_path, monkeypatch, said, words, epochs):
    scripted(monkeypatch, "mean_iou", [0.5, 0.6, 0.61, 0.55, math.nan, 0.6])
    run, _ = train(tmp_path, *words, "--trainer.max_epochs", "6", "--trainer.limit_train_batches", "1")
    assert len(table(run)) == epochs
    ended = [line for line in said if line.startswith("The training ended after epoch")]
    told = f"The training ended after epoch {epochs}: mean_iou was no better in 2 validations."
    assert ended == [told]
    assert json.loads((run / "run.json").read_text())["told"][1:-1] == ended


def test_less_may_be_better_of_the_monitor_for_stopping_too(tmp_path, monkeypatch):
    scripted(monkeypatch, "mae", [0.5, 0.3, 0.4, 0.4, 0.2])
    words = ("--monitor", "mae", "--early_stopping", "2", "--trainer.max_epochs", "6")
    run, _ = train(tmp_path, *words, "--trainer.limit_train_batches", "1")
    facts = json.loads((run / "run.json").read_text())
    assert (len(table(run)), facts["kept_epoch"]) == (4, 2)
    assert "the best on the val split (mae 0.3000)" in facts["told"][-1]


@pytest.mark.slow
def test_the_error_of_a_published_protocol_chooses_the_lowest_epoch(tmp_path):
    run, _ = train(tmp_path, "--protocol", "pranet", "--monitor", "mae")
    errors = [float(row["val/mae"]) for row in table(run)]
    assert errors[json.loads((run / "run.json").read_text())["kept_epoch"] - 1] == min(errors)


def test_early_stopping_without_anything_to_judge_by_is_a_sentence(tmp_path):
    words = ("--early_stopping", "3")
    assert "needs a monitor and a val split" in refused(tmp_path, *words, "--monitor", "null")
    splits = ("--data.card.splits", "{val: null, test: null}")
    assert "needs a monitor and a val split" in refused(tmp_path, *words, *splits)


@pytest.mark.parametrize("device", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
def test_a_deterministic_training_twice_is_the_same_to_the_bit(tmp_path, device):
    words = ("--trainer.deterministic", "true", "--trainer.accelerator", device)
    found = []
    try:
        for folder in (tmp_path / "one", tmp_path / "two"):
            folder.mkdir()
            run, _ = train(folder, *words)
            found.append([(run / name).read_bytes() for name in ("metrics.csv", "model.safetensors")])
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert found[0] == found[1]


@pytest.mark.gpu
def test_what_has_no_deterministic_form_on_a_gpu_is_a_sentence(tmp_path, monkeypatch):
    real = Segmentation.loss

    def loss(self, outputs, *rest, **options):
        terms = real(self, outputs, *rest, **options)
        pooled = torch.nn.functional.adaptive_avg_pool2d(outputs["logits"], 3)  # its gradient has none
        return {**terms, "loss": terms["loss"] + 0 * pooled.sum()}

    monkeypatch.setattr(Segmentation, "loss", loss)
    words = ("--trainer.deterministic", "true", "--trainer.accelerator", "gpu")
    try:
        assert "trainer.deterministic is set" in refused(tmp_path, *words)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "32-true"])
def test_channels_last_and_compile_train_on_a_gpu(tmp_path, precision):
    words = ("--channels_last", "true", "--compile", "true", "--trainer.precision", precision)
    run, _ = train(tmp_path, *words, "--trainer.accelerator", "gpu")
    assert math.isfinite(float(table(run)[-1]["train/loss"]))


def test_half_precision_trains_on_a_cpu(tmp_path):
    run, recipe = train(tmp_path, "--trainer.precision", "bf16-mixed", "--channels_last", "true")
    epoch = json.loads((run / "run.json").read_text())["kept_epoch"]
    model = load_model(run)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    for name, value in measured(model, open_data(recipe)).items():
        assert float(table(run)[epoch - 1][f"val/{name}"]) == pytest.approx(value, rel=1e-3)


@pytest.mark.slow
def test_overfit_trains_and_measures_the_same_few_images_and_says_whether_they_were_learned(tmp_path, said):
    run, recipe = train(tmp_path, "--overfit", "4", "--optimizer.lr", "1e-2", images=12)
    data = open_data(recipe)
    assert json.loads((run / "splits.json").read_text()) == dict.fromkeys(("train", "val"), data.names()["train"])
    assert data.images == {"train": 4, "val": 4}
    seen, shown = data.training(), data.original("val")
    assert len(seen) == 4 * PASSES
    for index in range(4):
        first, later = seen[(0, index)], seen[(7, index + 4)]
        assert torch.equal(first["image"], later["image"])  # neither varied nor cropped
        assert torch.equal(first["image"], shown[index]["image"])
        assert torch.equal(first["mask"], shown[index]["mask"])
    [verdict] = [line for line in said if line.startswith("It can learn")]
    assert "mean_iou is 0.9" in verdict
    assert "on the 4 images trained on" in verdict
    assert verdict in json.loads((run / "run.json").read_text())["told"]
    assert any(line.startswith("Note: overfit:") for line in said)


def test_overfit_says_where_nothing_was_learned(tmp_path, said):
    words = ("--optimizer.lr", "1e-9", "--trainer.max_epochs", "1", "--trainer.limit_train_batches", "1")
    run, _ = train(tmp_path, "--overfit", "2", *words)
    assert any(line.startswith("It has not learned its 2 images: mean_iou is 0.") for line in said)
    facts = json.loads((run / "run.json").read_text())
    assert "overfit to 2 images of train, which are those of val too, batches" in facts["told"][0]
    assert "overfit, run" in facts["title"]
    text = (run / "report.html").read_text()
    assert "Overfit: measured on the training images" in text
    assert "val split" not in text


class Recorder(Logger):
    """What a logger is told."""

    name, version = "recorder", "1"

    def __init__(self, **options):
        super().__init__()
        self.options, self.rows = options, []
        Recorder.last = self

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics))

    def log_hyperparams(self, keys):
        self.keys = keys


def test_a_logger_gets_the_rows_of_the_table_which_stays_the_runs_own(tmp_path, monkeypatch):
    monkeypatch.setattr(loggers.loggers, "WandbLogger", Recorder)
    words = ("--trainer.logger", "wandb", "--trainer.logger.project", "discs", "--trainer.log_every_n_steps", "1")
    run, _ = train(tmp_path, *words)
    assert Recorder.last.options == {"save_dir": run, "name": "discs/1", "project": "discs"}
    assert Recorder.last.keys["optimizer"]["lr"] == 3e-3
    whole = [(step, row) for step, row in Recorder.last.rows if "val/mean_iou" in row]
    for (step, row), written in zip(whole, table(run), strict=True):
        assert step == int(written["step"])
        assert row["val/mean_iou"] == pytest.approx(float(written["val/mean_iou"]))
        assert row["train/loss"] == pytest.approx(float(written["train/loss"]))
    steps = [step for step, row in Recorder.last.rows if "step/loss" in row]
    assert steps == list(range(int(table(run)[-1]["step"])))


def test_tensorboard_writes_its_events_below_the_run(tmp_path):
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, _ = train(tmp_path, "--trainer.logger", "tensorboard")
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert (run / "tensorboard" / "hparams.yaml").is_file()
    found = [(event.step, event.value) for event in events.Scalars("val/mean_iou")]
    assert found == [(int(row["step"]), pytest.approx(float(row["val/mean_iou"]))) for row in table(run)]


def test_loggers_that_are_unknown_or_not_installed_are_sentences(tmp_path, monkeypatch):
    assert "no logger 'tensorbord' - did you mean 'tensorboard'?" in refused(tmp_path, "--trainer.logger", "tensorbord")

    with pytest.MonkeyPatch.context() as patch:  # known before weights are fetched
        patch.setattr("zoo.training.run._model", lambda *_: pytest.fail("a model was built"))
        for wrong in ("true", "[tensorboard]", "{name: [wandb]}"):
            assert "null = the run's own tables alone" in refused(tmp_path, "--trainer.logger", wrong)

    def missing(**options):
        raise ModuleNotFoundError("No module named 'mlflow'")

    monkeypatch.setattr(loggers.loggers, "MLFlowLogger", missing)
    assert refused(tmp_path, "--trainer.logger", "mlflow").endswith("not installed: pip install mlflow")

    def strict(*, save_dir, name, version, default_hp_metric):
        raise AssertionError("an option that it does not take comes first")

    monkeypatch.setattr(loggers.loggers, "TensorBoardLogger", strict)
    words = ("--trainer.logger", "{name: tensorboard, flush: 3}")
    assert "The logger 'tensorboard' does not take {'flush': 3}" in refused(tmp_path, *words)
