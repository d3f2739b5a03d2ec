import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from zoo.metrics.bootstrap import intervals
from zoo.metrics.calibration import STEPS, reliability
from zoo.metrics.counts import Counts, read_counts, write_counts
from zoo.report.page import read_table, write_page

TWO = ("multiclass", ("cat", "dog"))
VOID = {"meta", "link", "img", "br"}


class Balanced(HTMLParser):
    """Fails where a tag is closed that isn't open, or stays open."""

    def __init__(self):
        super().__init__()
        self.open, self.links = [], []

    def handle_starttag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def folder(tmp_path):
    run = {
        "title": "mine <1>",
        "told": ["unet & more."],
        "kept_epoch": 2,
        "monitor": "mean_iou",
        "class_names": ["cat", "dog"],
        "class_colors": [[1, 2, 3], [4, 5, 6]],
        "environment": {"torch": "2.15"},
        "commands": {"test it": "zoo test RUN"},
    }
    test = {"test": {"images": 7, "mean_iou": 0.51234, "dice": None, "iou/cat": 0.75, "iou/dog": None}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    (tmp_path / "test.json").write_text(json.dumps(test))
    (tmp_path / "metrics.csv").write_text("epoch,train/loss,val/mean_iou\n1,0.9,\n2,0.8,0.5\n")
    (tmp_path / "timings.csv").write_text("epoch,images_per_second,waiting\n1,10,0.25\n2,12,0.5\n")
    (tmp_path / "recipe.yaml").write_text("seed: 0\n")
    (tmp_path / "curves.png").write_bytes(b"png")
    return tmp_path


def test_figures_of_the_split_that_chose_the_epoch_are_said_to_be_too_good(folder):
    (folder / "test.json").write_text('{"val": {"images": 7, "mean_iou": 0.5}}')
    assert "The kept epoch was chosen on this split" in write_page(folder).read_text()
    (folder / "run.json").write_text('{"monitor": null}')
    assert "The kept epoch was chosen on this split" not in write_page(folder).read_text()


def test_the_report_of_an_overfit_run_says_that_it_measures_the_training_images(folder):
    run = json.loads((folder / "run.json").read_text())
    (folder / "test.json").write_text('{"val": {"images": 4, "mean_iou": 0.5}}')
    (folder / "samples.png").write_bytes(b"png")
    (folder / "run.json").write_text(json.dumps(run | {"overfit": 4, "size": [64, 96], "samples": "val"}))
    text = write_page(folder).read_text()
    assert "<h2>Overfit: measured on the training images</h2>" in text
    assert "n = 4 images, the very ones trained on, resized to 64x96 with their masks." in text
    assert "through the training images" in text
    for wrong in ("val split", "original sizes", "a little too good"):
        assert wrong not in text


def parsed(path):
    parser = Balanced()
    parser.feed(path.read_text())
    assert parser.open == []
    return parser


def test_the_page_is_one_file_that_needs_no_other(folder):
    page = write_page(folder)
    assert all(link.startswith("data:") for link in parsed(page).links)
    text = page.read_text()
    assert base64.b64encode(b"png").decode() in text
    assert "<script" not in text
    assert "width=device-width" in text
    assert sorted(p.name for p in folder.iterdir() if p.name.startswith(".")) == []


def test_the_page_tells_figures_with_n_classes_recipe_and_commands(folder):
    text = write_page(folder).read_text()
    for part in (
        "mine &lt;1&gt;",
        "unet &amp; more.",
        "0.5123",
        "n = 7 images",
        "0.7500",
        "rgb(1,2,3)",
        "(kept)",
        "50 %",
    ):
        assert part in text
    assert re.search(r"dog</td><td class=\"number\">-</td>", text)  # no IoU, not zero
    for part in ("seed: 0", "zoo test RUN", "torch: 2.15"):
        assert part in text


@pytest.fixture
def counted(folder):
    """A run that was tested image by image: 30 images of two classes, the first of them all wrong."""
    rng = np.random.default_rng(0)
    hit = rng.integers(40, 50, (30, 2))
    hit[0] = 0
    truth = np.full((30, 2), 50)
    predicted = np.stack([hit[:, 0] + 50 - hit[:, 1], hit[:, 1] + 50 - hit[:, 0]], axis=1)
    images = tuple(f"images/{i:02}.png" for i in range(30))
    counts = Counts("multiclass", images, ("cat", "dog"), hit, truth, predicted, np.full(30, 100))
    write_counts(folder / "test_images.csv", {"test": counts})
    h, p = hit.sum(axis=0), predicted.sum(axis=0)
    histogram = np.zeros((STEPS + 1, 2), int)
    histogram[900] = 300, 2700
    details = {"mode": "multiclass", "classes": ["cat", "dog"], "calibration": reliability(histogram)}
    details["confusion"] = [[int(h[0]), int(p[1] - h[1])], [int(p[0] - h[0]), int(h[1])]]
    (folder / "test_details.json").write_text(json.dumps({"test": details}))
    values = {name: v[0] for name, v in counts.resampled(np.ones((1, 30))).items() if "/" not in name or "iou" in name}
    (folder / "test.json").write_text(json.dumps({"test": {"images": 30, **values}}))
    (folder / "worst_test.png").write_bytes(b"worst")
    return folder


def test_the_page_tells_intervals_classes_confusion_calibration_and_the_worst(counted):
    page = write_page(counted)
    parsed(page)
    text, found = page.read_text(), intervals(read_counts(counted / "test_images.csv", {"test": TWO})["test"])
    one = found["recall/dog"]
    for part in (
        f"{one.value:.4f}<br><small>{one.low:.3f}–{one.high:.3f}</small>",
        f"{found['mean_iou'].low:.3f}–{found['mean_iou'].high:.3f}",
        "2000 resamples of the 30 images (percentile bootstrap, seed 0)",
        "Expected calibration error 0.0000",
        base64.b64encode(b"worst").decode(),
        f"{100 * found['recall/cat'].value:.1f}</td>",
        "The test images with the lowest mean IoU",
    ):
        assert part in text
    assert "too narrow" not in text
    assert "<script" not in text


def test_few_images_are_told_and_many_classes_have_no_matrix(counted):
    counts = read_counts(counted / "test_images.csv", {"test": TWO})["test"]
    write_counts(counted / "test_images.csv", {"test": counts.take(range(5))})
    details = json.loads((counted / "test_details.json").read_text())
    details["test"]["confusion"] = None  # of a multilabel task
    (counted / "test_details.json").write_text(json.dumps(details))
    (counted / "test.json").write_text(json.dumps({"test": {"images": 5, "mean_iou": 0.5}}))
    text = write_page(counted).read_text()
    assert "too narrow" in text
    assert "Confusion" not in text


def test_several_splits_fold_their_details_up(counted):
    counts = read_counts(counted / "test_images.csv", {"test": TWO})["test"]
    write_counts(counted / "test_images.csv", {"test": counts, "etis": counts})
    for file in ("test_details.json", "test.json"):
        own = json.loads((counted / file).read_text())
        (counted / file).write_text(json.dumps(own | {"etis": own["test"]}))
    page = write_page(counted)
    parsed(page)
    assert page.read_text().count("<details><summary>More of the") == 2
    assert "IoU by class" in page.read_text()


def test_several_test_sets_stand_side_by_side(folder):
    sets = {"kvasir": {"images": 1, "iou/cat": 0.25}, "etis": {"images": 2, "iou/cat": 0.5}}
    (folder / "test.json").write_text(json.dumps(sets))
    page = write_page(folder)
    parsed(page)
    assert re.search(r"cat</td><td class=\"number\">0.2500</td><td class=\"number\">0.5000</td>", page.read_text())


def test_a_split_that_could_not_be_measured_says_why_in_its_place(folder):
    sets = {"kvasir": {"images": 1, "iou/cat": 0.25}, "etis": {"notice": "etis <1> is truncated."}}
    (folder / "test.json").write_text(json.dumps(sets))
    page = write_page(folder)
    parsed(page)
    assert "etis &lt;1&gt; is truncated." in page.read_text()
    assert "Measured on the etis split" not in page.read_text()


def test_an_empty_folder_still_makes_a_page(tmp_path):
    parsed(write_page(tmp_path))


def test_a_notice_stands_at_the_top(folder):
    run = json.loads((folder / "run.json").read_text()) | {"notice": "Interrupted in epoch 3."}
    (folder / "run.json").write_text(json.dumps(run))
    assert "Interrupted in epoch 3." in write_page(folder).read_text()


def test_tables_read_back_without_their_empty_cells(folder):
    assert read_table(folder / "metrics.csv") == [
        {"epoch": 1, "train/loss": 0.9},
        {"epoch": 2, "train/loss": 0.8, "val/mean_iou": 0.5},
    ]
    assert read_table(folder / "missing.csv") == []
