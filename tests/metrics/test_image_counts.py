import numpy as np
import pytest
import torch

from zoo.metrics import create_counts
from zoo.metrics.calibration import STEPS, reliability
from zoo.metrics.images import ImageCounts
from zoo.metrics.segmentation import SegmentationMetrics
from zoo.tasks.segmentation import Segmentation


def batch_of(mode, classes, number, seed):
    """(answer, batch) of images of 6x7 with paths p0, p1, ..."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(number, classes, 6, 7, generator=generator)
    answer = Segmentation(classes, mode=mode).answer({"logits": logits})
    shape = (number, classes, 6, 7) if mode == "multilabel" else (number, 6, 7)
    mask = torch.randint(0, 2 if mode != "multiclass" else classes, shape, generator=generator)
    if mode == "multilabel":
        mask = mask.bool()
    else:
        mask[:, 0, :3] = 255
    return answer, {"mask": mask, "path": [f"p{i}" for i in range(number)]}


@pytest.mark.parametrize(("mode", "classes"), [("binary", 1), ("multiclass", 4), ("multilabel", 3)])
def test_counts_of_images_add_up_to_the_metrics_of_the_split(mode, classes):
    answer, batch = batch_of(mode, classes, 5, seed=0)
    counter, metrics = ImageCounts(batch["path"], classes, mode=mode), SegmentationMetrics(classes, mode=mode)
    for rows in (slice(0, 2), slice(2, 5)):
        one = {k: v[rows] for k, v in answer.items()}, {k: v[rows] for k, v in batch.items()}
        counter.update(*one)
        metrics.update(*one)
    counts = counter.counts(counter.compute(), batch["path"])
    whole = {name: values[0] for name, values in counts.resampled(np.ones((1, 5))).items()}
    for name, value in metrics.compute().items():
        assert whole[name] == pytest.approx(float(value), abs=1e-6), name
    for i in range(5):
        alone = SegmentationMetrics(classes, mode=mode)
        alone.update({k: v[i : i + 1] for k, v in answer.items()}, {k: v[i : i + 1] for k, v in batch.items()})
        for name, value in alone.compute().items():
            assert counts.of_images()[name][i] == pytest.approx(float(value), abs=1e-6, nan_ok=True)
    assert counts.scores()[0] == ("iou" if mode == "binary" else "mean_iou")


def test_an_image_that_two_processes_measured_counts_once_and_an_unmeasured_one_not_at_all():
    answer, batch = batch_of("binary", 1, 2, seed=0)
    parts = []
    for rows in ([0], [0, 1]):
        counter = ImageCounts(["p0", "p1", "p2"], 1, mode="binary")
        counter.update(
            {k: v[rows] for k, v in answer.items()}, {"mask": batch["mask"][rows], "path": [f"p{i}" for i in rows]}
        )
        parts.append(counter)
    reduced = {}
    for name, reduction in parts[0]._reductions.items():  # what torchmetrics does over processes
        reduced[name] = reduction(torch.stack([getattr(part, name) for part in parts]))
    counts = parts[0].counts(reduced, ["a", "b", "c"])
    assert counts.images == ("a", "b")
    assert counts.pixels.tolist() == [39, 39]


def test_a_split_of_one_image_has_counts_too():
    answer, batch = batch_of("binary", 1, 1, seed=0)
    counter = ImageCounts(["p0"], 1, mode="binary")
    counter.update(answer, batch)
    assert counter.counts(counter.compute(), ["a"]).pixels.tolist() == [39]


def test_the_calibration_error_of_a_hand_case():
    histogram = np.zeros((STEPS + 1, 2), int)
    histogram[900] = 1, 3  # 0.9 sure, right in 3 of 4
    histogram[600] = 4, 2  # 0.6 sure, right in 2 of 6
    bins = reliability(histogram)
    assert bins["ece"] == pytest.approx(0.4 * abs(0.75 - 0.9) + 0.6 * abs(2 / 6 - 0.6))
    assert bins["pixels"] == [0, 0, 0, 0, 0, 0, 6, 0, 0, 4]
    assert bins["right"][9] == 0.75
    assert bins["confidence"][:6] == [None] * 6
    assert reliability(np.zeros((STEPS + 1, 2), int))["ece"] is None


def test_confidences_are_those_of_the_pixels_that_count():
    counter = ImageCounts(["p"], 1, mode="binary")
    probabilities = torch.tensor([[[[0.9, 0.9, 0.2, 1.0]]]])
    mask = torch.tensor([[[1, 0, 0, 255]]])
    counter.update({"mask": (probabilities > 0.5)[:, 0].long(), "probabilities": probabilities}, {
        "mask": mask, "path": ["p"],
    })  # fmt: skip
    found = counter.compute()["histogram"]
    assert found[900].tolist() == [1, 1]
    assert found[200].tolist() == [1, 0]
    assert found.sum() == 3

    counter = ImageCounts(["p"], 2, mode="multiclass")
    probabilities = torch.tensor([[[[0.7, 0.4]], [[0.3, 0.6]]]])
    counter.update({"mask": probabilities.argmax(1), "probabilities": probabilities}, {
        "mask": torch.tensor([[[0, 0]]]), "path": ["p"],
    })  # fmt: skip
    assert counter.compute()["histogram"][[700, 600]].tolist() == [[0, 1], [1, 0]]


def test_a_task_without_counts_has_none():
    class Other:
        name = "other"

    assert create_counts(Other(), ["p"]) is None
    assert create_counts(Segmentation(3, class_names=["a", "b", "c"]), ["p"]).classes == ("a", "b", "c")
