import numpy as np
import pytest
from scipy import stats

from zoo.metrics.bootstrap import differences, intervals
from zoo.metrics.counts import Counts, read_counts, write_counts


def counts_of(n=40, classes=("sky", "cat"), mode="multiclass", seed=0, right=0.8):
    """Images of 100 pixels whose truth depends on n alone, predicted right with that probability."""
    truths = np.random.default_rng(7).integers(0, len(classes), (n, 100))
    rng = np.random.default_rng(seed)
    predicted = np.where(rng.random((n, 100)) < right, truths, rng.integers(0, len(classes), (n, 100)))
    ids = np.arange(len(classes))
    hit = ((truths == predicted)[..., None] & (truths[..., None] == ids)).sum(axis=1)
    truth, found = (truths[..., None] == ids).sum(axis=1), (predicted[..., None] == ids).sum(axis=1)
    return Counts(mode, tuple(f"{i:03}.png" for i in range(n)), classes, hit, truth, found, np.full(n, 100))


def mean_iou(hit, truth, predicted):
    return (hit / (truth + predicted - hit)).mean()


def test_intervals_equal_those_of_scipy_but_for_the_draws():
    counts = counts_of()
    arrays = counts.hit, counts.truth, counts.predicted

    def statistic(indices):
        chosen = np.asarray(indices, dtype=int)
        return mean_iou(*(array[chosen].sum(axis=0) for array in arrays))

    other = stats.bootstrap(
        (np.arange(40),), statistic, n_resamples=4000, method="percentile", vectorized=False, rng=1
    ).confidence_interval
    own = intervals(counts, resamples=4000)["mean_iou"]
    assert own.value == pytest.approx(statistic(range(40)), abs=1e-12)
    width = own.high - own.low
    assert own.low == pytest.approx(other.low, abs=0.05 * width)
    assert own.high == pytest.approx(other.high, abs=0.05 * width)


def test_resamples_are_those_of_a_plain_loop_over_the_same_draws():
    counts, n = counts_of(12), 12
    draws = np.random.default_rng(3).multinomial(n, np.full(n, 1 / n), size=50)
    plain = []
    for draw in draws:
        chosen = np.repeat(np.arange(n), draw)
        plain.append(mean_iou(*(a[chosen].sum(axis=0) for a in (counts.hit, counts.truth, counts.predicted))))
    found = intervals(counts, resamples=50, seed=3)["mean_iou"]
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(plain, [2.5, 97.5])), abs=1e-12)


def test_an_interval_holds_what_is_measured_on_all_images_about_as_often_as_it_says():
    everything = counts_of(4000, right=0.7)
    truth = intervals(everything, resamples=1)["accuracy"].value
    held = 0
    for trial in range(100):
        some = everything.take(np.random.default_rng(trial).choice(4000, 50, replace=False))
        found = intervals(some, resamples=300, seed=trial)["accuracy"]
        held += found.low <= truth <= found.high
    assert 88 <= held <= 99


def test_differences_are_paired_and_so_narrower_than_two_intervals():
    rng = np.random.default_rng(0)
    hard = counts_of(60, right=0.6)
    hit = hard.hit - rng.integers(0, 2, hard.hit.shape) * (hard.hit > 0)  # a little worse, in the same images
    worse = Counts(hard.mode, hard.images, hard.classes, hit, hard.truth, hard.predicted, hard.pixels)
    found = differences(hard, worse)["accuracy"]
    assert found.value == pytest.approx((hit.sum() - hard.hit.sum()) / hard.pixels.sum())
    assert found.low <= found.value <= found.high < 0
    assert found.excludes_zero
    alone = intervals(hard)["accuracy"]
    assert found.high - found.low < 0.3 * (alone.high - alone.low)
    same = differences(hard, hard)["mean_iou"]
    assert (same.value, same.low, same.high, same.excludes_zero) == (0, 0, 0, False)


def test_one_image_has_no_interval_and_an_absent_class_no_figure():
    one = intervals(counts_of(1))["mean_iou"]
    assert np.isnan([one.low, one.high]).all()
    zero = np.zeros((3, 1), np.int64)
    absent = counts_of(3)
    absent = Counts("multiclass", absent.images, ("sky", "cat", "yeti"), *(
        np.hstack([a, zero]) for a in (absent.hit, absent.truth, absent.predicted)
    ), absent.pixels)  # fmt: skip
    found = intervals(absent)
    assert np.isnan([found["iou/yeti"].value, found["iou/yeti"].low]).all()
    assert found["mean_iou"].value == intervals(counts_of(3))["mean_iou"].value


def test_intervals_are_the_same_each_time_and_others_for_another_seed():
    counts = counts_of()
    assert intervals(counts) == intervals(counts)
    assert intervals(counts, seed=1)["mean_iou"].low != intervals(counts)["mean_iou"].low


def test_counts_come_back_from_their_table(tmp_path):
    splits = {"test": counts_of(3, classes=("a, b", '"c"')), "more": counts_of(2)}
    path = write_counts(tmp_path / "test_images.csv", splits)
    found = read_counts(path, {split: (one.mode, one.classes) for split, one in splits.items()})
    for split, one in splits.items():
        assert found[split].images == one.images
        for name in ("hit", "truth", "predicted", "pixels"):
            assert (getattr(found[split], name) == getattr(one, name)).all()
    assert read_counts(tmp_path / "none.csv", {"test": ("binary", ())}) == {}
