"""PraNet's protocol against figures of its toolbox, against slow implementations of its formulas, and by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from tests.parity import fill
from zoo.errors import UserError
from zoo.metrics import create_metrics
from zoo.metrics.pranet import PraNetMetrics, dice_iou_e, s_measure, stretched, weighted_f, written
from zoo.tasks import Segmentation

VECTORS = load_file(Path(__file__).parents[1] / "parity" / "pranet.safetensors")
SHAPE = (72, 88)


def grey(wave):
    return np.clip(np.floor(255 * (wave + 1) / 2 + 0.5), 0, 255)


def vector(name):
    """(map as stored, in [0, 1]; mask) of one of the vectors."""
    a, b = (grey(fill.image(f"pranet/metric_pred_{case}", SHAPE)) for case in "ab")
    truth_a, truth_b = (fill.image(f"pranet/metric_gt_{case}", SHAPE) > 0.3 for case in "ab")
    b = np.clip(np.floor(0.4 * b + 0.6 * 255 * truth_b + 0.5), 0, 255)
    found, truth = {
        "a": (a, truth_a),
        "b": (b, truth_b),
        "perfect": (255.0 * truth_b, truth_b),
        "const": (np.full(SHAPE, 128.0), truth_b),
        "emptygt": (b, np.zeros(SHAPE, bool)),
    }[name]
    return found / 255, truth


def measure(*pairs, u8=True):
    """compute() after one update for each (probabilities (H, W), mask (H, W))."""
    metrics = PraNetMetrics(u8=u8)
    for probabilities, truth in pairs:
        answer = {"probabilities": torch.as_tensor(np.asarray(probabilities))[None, None]}
        metrics.update(answer, {"mask": torch.as_tensor(np.asarray(truth)).long()[None]})
    result = metrics.compute()
    assert all(value.dtype == torch.float64 and value.ndim == 0 for value in result.values())
    return {name: value.item() for name, value in result.items()}


@pytest.mark.parametrize("name", ["a", "b", "perfect", "const", "emptygt"])
def test_figures_of_an_image_equal_the_toolboxs(name):
    found, truth = vector(name)
    found = stretched(found)
    figures = [s_measure(found, truth), weighted_f(found, truth), np.abs(truth - found).mean()]
    assert figures == pytest.approx(list(VECTORS[f"metric/{name}/sm_wf_mae"]), abs=1e-10, nan_ok=True)
    curves, expected = dice_iou_e(found, truth), VECTORS[f"metric/{name}/curves_dice_iou_sen_spe_e"][[0, 1, 4]]
    if name == "a":  # a pixel that lies on a threshold falls to either side of it, by the last bit of a division
        assert curves.mean(axis=1) == pytest.approx(expected.mean(axis=1), abs=1e-4)
        assert (np.abs(curves - expected) > 1e-10).sum() <= 3
    else:
        np.testing.assert_allclose(curves, expected, rtol=0, atol=1e-10)


def test_figures_of_a_data_set_equal_the_toolboxs():
    names = ["dice_mean256", "iou_mean256", "weighted_f", "s_measure", "e_mean256", "mae", "e_max256", "dice_max256"]
    expected = VECTORS["metric/dataset_ab/meandice_meaniou_wf_sm_meane_mae_maxe_maxdice_maxiou"]
    result = measure(vector("a"), vector("b"), u8=False)
    assert [result[name] for name in (*names, "iou_max256")] == pytest.approx(list(expected), abs=1e-4)
    for name in ("weighted_f", "s_measure", "mae"):
        assert result[name] == pytest.approx(expected[names.index(name)], abs=1e-10)


def slow_curves(found, truth):
    """Dice, IoU and E of 256 passes over all pixels, threshold 1 first."""
    rows, n = [], truth.size
    for k in range(255, -1, -1):
        on = found >= k / 255
        both, either = (on & truth).sum(), (on | truth).sum()
        dice = 2 * both / (on.sum() + truth.sum()) if both else 0.0
        iou = both / either if both else 0.0
        if not truth.any():
            enhanced = 1.0 - on
        elif truth.all():
            enhanced = 1.0 * on
        else:
            g, b = truth - truth.mean(), on - on.mean()
            enhanced = (2 * g * b / (g * g + b * b + 2.0**-52) + 1) ** 2 / 4
        rows.append((dice, iou, enhanced.sum() / (n - 1 + 2.0**-52)))
    return np.array(rows).T


def drawn(seed, *, steps):
    """A random map in [0, 1] and a mask that it resembles; both at times empty or full."""
    rng = np.random.default_rng(seed)
    shape = rng.integers(2, 12, 2)
    truth = rng.random(shape) < rng.choice([0, 0.05, 0.5, 1])
    found = np.clip(rng.choice([0.0, 0.4, 1.0]) * truth + rng.random(shape) * rng.choice([0.0, 0.6, 1.0]), 0, 1)
    return np.round(found * steps) / steps if steps else found, truth


@given(seed=st.integers(0, 2**32 - 1), steps=st.sampled_from([255, 510, 2, None]))
@settings(max_examples=60, deadline=None)
def test_curves_from_histograms_equal_256_passes(seed, steps):
    found, truth = drawn(seed, steps=steps)
    np.testing.assert_allclose(dice_iou_e(found, truth), slow_curves(found, truth), rtol=0, atol=1e-12)


def slow_s(found, truth):
    def of_object(values):
        spread = (
            math.sqrt(sum((v - np.mean(values)) ** 2 for v in values) / (len(values) - 1)) if len(values) > 1 else 0
        )
        return 2 * np.mean(values) / (np.mean(values) ** 2 + 1 + spread)

    def of_block(p, g):
        if p.size == 1:
            return 1.0
        (vx, cov), (_, vy) = np.cov(p.ravel(), g.ravel())
        above, below = 4 * p.mean() * g.mean() * cov, (p.mean() ** 2 + g.mean() ** 2) * (vx + vy)
        return above / (below + 2.0**-52) if above else float(below == 0)

    height, width = truth.shape
    share = truth.mean()
    objects = share * of_object(found[truth]) + (1 - share) * of_object(1 - found[~truth])
    places = [(y + 1, x + 1) for y in range(height) for x in range(width) if truth[y, x]]
    y, x = (int(sum(place[i] for place in places) / len(places) + 0.5) for i in (0, 1))
    regions = 0.0
    for rows in (range(y), range(y, height)):
        for columns in (range(x), range(x, width)):
            if rows and columns:
                p, g = found[np.ix_(rows, columns)], truth[np.ix_(rows, columns)] * 1.0
                regions += of_block(p, g) * p.size / truth.size
    return max(0.0, (objects + regions) / 2)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_the_s_measure_equals_a_slow_one(seed):
    rng = np.random.default_rng(seed)
    shape = rng.integers(2, 10, 2)
    truth = rng.random(shape) < 0.4
    truth.flat[rng.choice(truth.size, 2, replace=False)] = (False, True)
    found = rng.random(shape)
    assert s_measure(found, truth) == pytest.approx(slow_s(found, truth), abs=1e-10)


def slow_weighted_f(found, truth):
    height, width = truth.shape
    places = [(y, x) for y in range(height) for x in range(width)]
    object_ = [place for place in places if truth[place]]
    near = {p: min(object_, key=lambda q: math.dist(p, q)) for p in places}
    error = np.abs(found - truth)
    kernel = {(i, j): math.exp(-(i * i + j * j) / (2 * 5**2)) for i in range(-3, 4) for j in range(-3, 4)}
    total = sum(kernel.values())
    missed = false = 0.0
    for y, x in places:
        around = {(i, j): (y + i, x + j) for i, j in kernel}
        blurred = sum(kernel[k] * error[near[q]] for k, q in around.items() if q in near) / total  # else 0
        if truth[y, x]:
            missed += min(error[y, x], blurred)
        else:
            false += error[y, x] * (2 - 0.5 ** (math.dist((y, x), near[y, x]) / 5))
    hit, recall = truth.sum() - missed, 1 - missed / truth.sum()
    precision = hit / (hit + false + 2.0**-52)
    return 2 * recall * precision / (recall + precision + 2.0**-52)


@given(seed=st.integers(0, 2**32 - 1), even=st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_weighted_f_equals_a_slow_one(seed, even):
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 12, 2)
    found, truth = rng.random(shape), np.zeros(shape, bool)
    if even:  # where every foreground pixel has the same error, it is all one which of two nearest ones is taken
        truth = rng.random(shape) < 0.3
        found[truth] = 0.7
    else:  # and to a column of pixels, each has one nearest
        truth[:, rng.integers(shape[1])] = True
    truth.flat[0] |= even
    assert weighted_f(found, truth) == pytest.approx(slow_weighted_f(found, truth), abs=1e-10)


SQUARE = np.zeros((8, 8), bool)
SQUARE[2:6, 1:5] = True


def test_a_perfect_map_has_no_perfect_mean():
    result = measure((SQUARE * 1.0, SQUARE))
    assert result["dice_max256"] == result["iou_max256"] == 1
    assert result["dice_mean256"] == pytest.approx((255 + 2 * 16 / (16 + 64)) / 256)  # all is on at threshold 0
    assert result["iou_mean256"] == pytest.approx((255 + 16 / 64) / 256)
    assert result["e_max256"] == pytest.approx(64 / 63)
    assert result["e_mean256"] == pytest.approx((255 + 0.25) / 256 * 64 / 63)
    assert (result["s_measure"], result["weighted_f"]) == pytest.approx((1, 1))
    assert result["mae"] == 0


def test_the_opposite_of_the_mask_gets_what_threshold_0_gives_alone():
    result = measure((1.0 - SQUARE, SQUARE))
    assert result["dice_mean256"] == pytest.approx(0.4 / 256)
    assert result["e_mean256"] == pytest.approx(0.25 / 256 * 64 / 63)
    assert (result["dice_max256"], result["iou_max256"]) == pytest.approx((0.4, 0.25))
    assert (result["mae"], result["s_measure"]) == (1, 0)
    assert result["weighted_f"] < 0.3  # at the object's rim, errors beyond the image's end are none


def test_only_the_order_and_the_spacing_of_probabilities_count():
    rng = np.random.default_rng(0)
    found = np.round(rng.random((8, 8)) * 255) / 255
    found.flat[:2] = (0, 1)
    assert measure((0.2 + found / 1000, SQUARE)) == pytest.approx(measure((found, SQUARE)), abs=1e-12)


def test_a_map_of_one_value_counts_as_all_background():
    for value in (0.0, 0.5, 1.0):
        result = measure((np.full((8, 8), value), SQUARE))
        assert result == measure((np.full((8, 8), 0.3), SQUARE), u8=False)
        assert (result["mae"], result["dice_max256"]) == (0.25, 0.4)


def test_probabilities_are_rounded_to_8_bits_half_up_unless_u8_is_off():
    found = np.array([[0.1, 0.2, 0.3]])  # 0, 127.5 and 255 once stretched; the middle a little beside
    assert (written(found) * 255).tolist() == [[0, 128, 255]]
    assert written(found, u8=False) == pytest.approx(np.array([[0, 0.5, 1]]))
    truth = np.array([[False, True, True]])
    assert measure((found, truth))["mae"] == pytest.approx(127 / 255 / 3)
    assert measure((found, truth), u8=False)["mae"] == pytest.approx(0.5 / 3)
    with_128, without = (measure((found, truth), u8=u8)["dice_mean256"] for u8 in (True, False))
    assert with_128 - without == pytest.approx((1 - 2 / 3) / 256)  # one threshold more is reached by both pixels


def test_the_maximum_is_of_the_mean_curve_not_the_mean_of_maxima():
    truth = np.array([[True, False, False]])
    low, high = np.array([[0.2, 0.0, 1.0]]), np.array([[1.0, 0.8, 0.0]])
    each = [measure((found, truth))["dice_max256"] for found in (low, high)]
    assert each == pytest.approx([2 / 3, 1])
    together = np.mean([slow_curves(found, truth)[0] for found in (low, high)], axis=0)
    assert measure((low, truth), (high, truth))["dice_max256"] == pytest.approx(together.max())
    assert together.max() < np.mean(each)


def test_large_images_weigh_as_much_as_small_ones():
    small, large = (SQUARE * 1.0, SQUARE), (np.zeros((64, 64)), np.kron(SQUARE, np.ones((8, 8))) > 0)
    both, alone = measure(small, large), [measure(pair) for pair in (small, large)]
    for name in ("dice_mean256", "iou_mean256", "e_mean256", "s_measure", "weighted_f", "mae"):
        assert both[name] == pytest.approx((alone[0][name] + alone[1][name]) / 2)


def test_an_image_without_foreground_has_no_dice_and_is_left_out_of_the_weighted_f():
    found, nothing = SQUARE * 1.0, np.zeros((8, 8), bool)
    alone = measure((found, nothing))
    assert math.isnan(alone.pop("weighted_f"))
    assert alone == pytest.approx(
        {"dice_mean256": 0, "dice_max256": 0, "iou_mean256": 0, "iou_max256": 0}
        | {"s_measure": 0.75, "mae": 0.25, "e_mean256": 0.75 * 255 / 256 * 64 / 63, "e_max256": 0.75 * 64 / 63}
    )
    both, perfect = measure((found, nothing), (found, SQUARE)), measure((found, SQUARE))
    assert both["weighted_f"] == perfect["weighted_f"]
    assert both["dice_mean256"] == pytest.approx(perfect["dice_mean256"] / 2)


def test_an_image_of_foreground_alone_is_measured():
    result = measure((SQUARE * 1.0, np.ones((8, 8), bool)))
    assert result["s_measure"] == 0.25
    assert result["mae"] == 0.75
    assert result["iou_mean256"] == pytest.approx((255 * 0.25 + 1) / 256)


def test_the_centroid_counts_from_1_and_rounds_half_up():
    truth = np.array([[True, True, False, False]])  # centroid 1.5, so the first block has two columns, all foreground
    found = np.array([[0.5, 1.0, 0.25, 0.0]])
    objects = 0.5 * 1.5 / (0.75**2 + 1 + math.sqrt(0.125)) + 0.5 * 1.75 / (0.875**2 + 1 + math.sqrt(0.03125))
    assert s_measure(found, truth) == pytest.approx(objects / 2)  # both blocks: the map varies, the mask doesn't, so 0


def test_blocks_in_which_neither_varies_are_alike():
    truth = np.zeros((9, 11), bool)
    truth[0, 0] = True  # the centroid: a block of one pixel and three of background
    found = np.where(truth, 1.0, 0.1)
    assert np.full((8, 10), 0.1).mean() != 0.1  # a spread of rounding errors alone is none
    objects = 1 / 99 + 98 / 99 * 2 * 0.9 / (0.9**2 + 1)
    assert s_measure(found, truth) == pytest.approx(0.5 * objects + 0.5)


def test_soft_masks_are_foreground_above_128_of_255():
    soft = torch.tensor([0, 127, 128, 129, 255]).float().div(255)[None, None, None]
    metrics = PraNetMetrics()
    metrics.update({"probabilities": torch.tensor([0.0, 0, 0, 1, 1])[None, None, None]}, {"mask": soft})
    assert metrics.compute()["mae"] == 0


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_the_figures_join_the_tasks_own_and_none_is_called_dice():
    task = Segmentation(1)
    both, own, alone = create_metrics(task, {"name": "pranet"}), create_metrics(task), PraNetMetrics()
    logits = torch.randn(2, 1, 9, 7, generator=torch.Generator().manual_seed(0))
    batch = {"mask": (logits[:, 0] > 0.5).long()}
    for metrics in (both, own, alone):
        metrics.update(task.answer({"logits": logits}), batch)
    assert both.compute() == own.compute() | alone.compute()
    assert not {"dice", "iou", "f", "e_measure"} & alone.compute().keys()
    both.reset()
    assert all(math.isnan(value) for value in both.compute().values())


def test_a_batch_is_measured_image_by_image_in_any_precision():
    rng = np.random.default_rng(1)
    found, truth = rng.random((3, 8, 9)).astype(np.float32), rng.random((3, 8, 9)) < 0.4
    metrics = PraNetMetrics().half()  # which does not touch the sums
    metrics.update({"probabilities": torch.from_numpy(found)[:, None]}, {"mask": torch.from_numpy(truth).long()})
    one_by_one = measure(*zip(found, truth, strict=True))
    assert {name: value.item() for name, value in metrics.compute().items()} == pytest.approx(one_by_one, abs=1e-12)


def test_processes_add_up_their_images():
    pairs = [drawn(seed, steps=None) for seed in range(7)]
    first, second = PraNetMetrics(), PraNetMetrics()
    for i, (found, truth) in enumerate(pairs):
        (first, second)[i % 3 == 0].update(
            {"probabilities": torch.from_numpy(found)[None, None]}, {"mask": torch.from_numpy(truth).long()[None]}
        )
    first.merge_state(second)
    together = {name: value.item() for name, value in first.compute().items()}
    assert together == pytest.approx(measure(*pairs), abs=1e-12)


HALVES = torch.tensor([[[[0.0, 1.0]]]])


@pytest.mark.parametrize(
    ("probabilities", "mask", "sentence"),
    [
        (HALVES, torch.zeros(1, 1, 3).long(), r"the probabilities are \(1, 1, 1, 2\).*at the mask's size"),
        (HALVES.repeat(1, 2, 1, 1), torch.zeros(1, 1, 2).long(), "the probabilities are"),
        (HALVES, torch.tensor([[[1, 255]]]), "1 pixels of a mask are 255, .* leaves no pixel out"),
        (HALVES, torch.tensor([[[[0.5, 255.0]]]]), "1 pixels of a mask are 255"),
        (HALVES, torch.tensor([[[2, 0]]]), "1 pixels of a mask are 2"),
        (HALVES * math.nan, torch.tensor([[[1, 0]]]), "not in 0 to 1, perhaps nan"),
        (HALVES * 255, torch.tensor([[[1, 0]]]), "not in 0 to 1"),
    ],
)
def test_what_cannot_be_measured_is_refused_and_changes_nothing(probabilities, mask, sentence):
    metrics = PraNetMetrics()
    with pytest.raises(UserError, match=sentence):
        metrics.update({"probabilities": probabilities}, {"mask": mask})
    assert metrics.images == 0
    assert metrics.curves.sum() == 0


@pytest.mark.parametrize(
    ("task", "protocol", "sentence"),
    [
        (Segmentation(3), {"name": "pranet"}, "needs a binary segmentation; this task has 3 classes"),
        (Segmentation(1, mode="multilabel"), {"name": "pranet"}, "needs a binary segmentation"),
        (Segmentation(1), {"name": "prannet"}, "no protocol 'prannet' - did you mean 'pranet'"),
        (Segmentation(1), {"u8": False}, "no protocol None"),
        (Segmentation(1), {"name": "pranet", "u_8": False}, "no option 'u_8' - did you mean 'u8'"),
        (Segmentation(1), {"name": "pranet", "u8": "no"}, "u8 of the protocol 'pranet' is true or false, not 'no'"),
    ],
)
def test_a_protocol_that_does_not_fit_is_a_sentence(task, protocol, sentence):
    with pytest.raises(UserError, match=sentence):
        create_metrics(task, protocol)
