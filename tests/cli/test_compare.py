"""`zoo compare`: tested runs side by side, and what it refuses."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from zoo.cli import main
from zoo.metrics.counts import Counts, write_counts

RECIPE = "model: {encoder: resnet10t, decoder: unet}\ndata: {card: folder}\n"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def counts_of(images, right, classes=("sky", "cat"), truth_seed=0):
    """Images of 100 pixels; `right` of each class's pixels are, on average."""
    rng, hidden = np.random.default_rng(int(1000 * right)), np.random.default_rng(truth_seed)
    cat = hidden.integers(20, 80, images)
    truth = np.stack([100 - cat, cat], axis=1)
    hit = rng.binomial(truth, right)
    missed = truth - hit
    return hit, truth, hit + missed[:, ::-1], tuple(f"images/{i:02}.png" for i in range(images)), classes


def write_run(name, right, *, recipe=RECIPE, split="test", images=range(40), train=(), **options):
    """A run's folder as a test leaves it, without a model."""
    folder = Path("runs", name)
    folder.mkdir(parents=True)
    hit, truth, predicted, names, classes = counts_of(40, right, **options)
    counts = Counts("multiclass", names, classes, hit, truth, predicted, np.full(40, 100)).take(images)
    write_counts(folder / "test_images.csv", {split: counts})
    details = {split: {"mode": "multiclass", "classes": classes, "confusion": None, "calibration": None}}
    (folder / "test_details.json").write_text(json.dumps(details))
    (folder / "test.json").write_text(json.dumps({split: {"images": len(images)}}))
    (folder / "recipe.yaml").write_text(recipe)
    (folder / "config.json").write_text("{}")
    (folder / "metrics.csv").write_text("epoch,train/loss,val/mean_iou\n1,0.9,0.4\n2,0.8,0.5\n")
    (folder / "splits.json").write_text(json.dumps({"train": [["x", name, "m"] for name in train]}))
    return str(folder)


def test_runs_are_compared_on_a_table_and_a_page(capsys):
    one = write_run("mine/1", 0.7)
    other = write_run("mine/2", 0.8, recipe=RECIPE + "optimizer: {lr: 0.5}\n")
    assert main(["compare", one, other, "-o", "page.html"]) == 0
    printed = capsys.readouterr().out
    assert "n = 40 images" in printed
    row = re.search(r"mean_iou +mine/2 +0\.\d+ +\+(0\.\d+) +\[\+(0\.\d+), \+(0\.\d+)\]", printed)
    value, low, high = map(float, row.groups())
    assert low < value < high
    assert not Path("compare.html").exists()
    page = Path("page.html").read_text()
    for part in ("optimizer.lr", "0.5", "mine/1", "<b>+0.", "data:image/png", "n = 40 images", "percentile bootstrap"):
        assert part in page
    assert "scheduler.name" not in page
    assert "<script" not in page


def test_only_common_images_count_and_the_rest_is_told(capsys):
    runs = [write_run("a", 0.7, images=range(30)), write_run("b", 0.8, images=range(10, 40), train=["images/12.png"])]
    assert main(["compare", *runs]) == 0
    printed = capsys.readouterr().out
    assert "n = 20 images" in printed
    assert "a was tested on 30 images of this split, 20 of which all runs have" in printed
    assert "b was trained on 1 of these images" in printed


def test_a_run_with_itself_differs_in_nothing(capsys):
    runs = [write_run("a", 0.7), write_run("b", 0.7), write_run("c", 0.7)]
    assert main(["compare", *runs]) == 0
    assert capsys.readouterr().out.count("+0.0000     [+0.0000, +0.0000]") == 6
    assert "All recipes are the same" in Path("compare.html").read_text()
    assert "<b>+0" not in Path("compare.html").read_text()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (dict(split="val"), r"not all tested on one split \(a: test; b: val\)"),
        (dict(classes=("sky", "dog")), r"other classes, a: sky, cat \(2\); b: sky, dog \(2\)"),
        (dict(truth_seed=1), r"'images/\d\d.png' of the split 'test' has another mask in b than in a"),
        (dict(images=range(30, 40)), "no image in common on test"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_a_sentence(options, why, capsys):
    runs = [write_run("a", 0.7, images=range(30)), write_run("b", 0.8, **options)]
    assert main(["compare", *runs]) == 2
    assert re.search(why, capsys.readouterr().err)
    assert not Path("compare.html").exists()


def test_splits_that_a_test_has_no_figures_of_are_not_compared(capsys):
    runs = [write_run("a", 0.7), write_run("b", 0.8)]
    for found in ({"val": {"images": 40}}, {"val": {"images": 40}, "test": {"notice": "It could not be measured."}}):
        Path(runs[1], "test.json").write_text(json.dumps(found))
        assert main(["compare", *runs]) == 2
        assert "'b' was tested, but its figures of each image" in capsys.readouterr().err


def test_one_common_image_has_figures_but_no_interval(capsys):
    runs = [write_run("a", 0.7, images=range(20)), write_run("b", 0.8, images=range(19, 40))]
    assert main(["compare", *runs]) == 0
    printed = capsys.readouterr().out
    assert "n = 1 image," in printed
    assert re.search(r"mean_iou +b +0\.\d{4} +[+-]0\.\d{4} +-\n", printed)
    assert "nan" not in printed


def test_runs_without_figures_and_things_that_are_no_runs_are_told(capsys):
    one, other = write_run("a", 0.7), write_run("b", 0.7)
    Path(other, "test_images.csv").unlink()
    Path(other, "test_details.json").unlink()
    assert main(["compare", one, other]) == 2
    assert re.search(r"'b' was tested, but its figures of each image .* `zoo test runs/b`", capsys.readouterr().err)
    Path(other, "test.json").unlink()
    for words, why in (
        ([one, other], "'b' has no test figures yet; `zoo test runs/b`"),
        ([one, "runs/c"], "'runs/c' is no run"),
        ([one, one], "nothing to compare"),
        ([one], "nothing to compare"),
        ([one, other, "-o", "runs"], "'runs' cannot be a page"),
    ):
        assert main(["compare", *words]) == 2
        assert why in capsys.readouterr().err
