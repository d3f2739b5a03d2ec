import io

import numpy as np
from PIL import Image

from zoo.metrics.calibration import STEPS, reliability
from zoo.report import charts

ROWS = [
    {"epoch": 1.0, "train/loss": 0.5, "lr": 0.1},
    {"epoch": 2.0, "train/loss": 0.4, "lr": 0.05, "val/mean_iou": 0.7, "val/iou/cat": 0.3},
]
TIMINGS = [{"epoch": 1.0, "images_per_second": 10.0}, {"epoch": 2.0, "images_per_second": 12.0}]


def height(png):
    with Image.open(png if not isinstance(png, bytes) else io.BytesIO(png)) as image:
        assert image.width > 600
        return image.height


def test_curves_draw_what_there_is_with_rate_and_throughput(tmp_path):
    bare = [{"epoch": 1.0, "train/loss": 0.5}]
    heights = [
        height(charts.curves(rows, tmp_path / "curves.png", kept=2, timings=timings))
        for rows, timings in ((bare, ()), (ROWS, ()), (ROWS, TIMINGS))
    ]
    assert heights == sorted(set(heights))


def test_runs_are_drawn_over_each_other_in_the_panels_that_any_of_them_has():
    both = charts.overlaid({"a": ROWS, "b": ROWS[:1]}, ["train/loss", "val/mean_iou", "val/none"])
    assert height(both) == 2 * height(charts.overlaid({"a": ROWS}, ["train/loss"]))
    assert charts.overlaid({"a": []}, ["train/loss"]) is None


def test_a_reliability_diagram_is_the_same_each_time():
    histogram = np.zeros((STEPS + 1, 2), int)
    histogram[[100, 999]] = 5
    one, other = (charts.reliability(reliability(histogram), "sure", "right") for _ in range(2))
    assert one == other
    assert height(one) > 400


def test_names_in_charts_are_plain_text(tmp_path, recwarn):
    rows = [{"epoch": 1.0, "train/$\\x$": 0.5}, {"epoch": 2.0, "train/$\\x$": 0.5}]
    charts.curves(rows, tmp_path / "curves.png")
    charts.overlaid({"$a_{b}$ 猫": rows}, ["train/$\\x$"])
    assert not [w for w in recwarn if "Glyph" in str(w.message)]
