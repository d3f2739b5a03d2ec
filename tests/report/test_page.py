import base64
import json
import re
from html.parser import HTMLParser

import pytest

from zoo.report.page import read_table, write_page

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
