"""Losses against published values, closed forms and an independent implementation; finite where sums overflow."""

import importlib.util
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from segmentation_models_pytorch.losses import DiceLoss
from torchvision.ops import sigmoid_focal_loss

from zoo.errors import UserError
from zoo.tasks.losses import bce, ce, dice, focal, structure

PARITY = Path(__file__).parents[1] / "parity"
INDEPENDENT = {
    "bce": bce,
    "dice": dice,
    "focal": focal,
    "focal_weighted": partial(focal, gamma=0.5, alpha=0.25),
    "structure": structure,
    "structure_as_coded": partial(structure, as_coded=True),
}
EXCLUSIVE = {"ce": ce, "dice": dice, "focal": focal, "focal_sharp": partial(focal, gamma=0.5)}

independent = pytest.mark.parametrize("loss", INDEPENDENT.values(), ids=INDEPENDENT)
exclusive = pytest.mark.parametrize("loss", EXCLUSIVE.values(), ids=EXCLUSIVE)


def value_and_gradient(loss, logits, target, ignore_index=None):
    logits = logits.clone().requires_grad_()
    value = loss(logits, target, ignore_index)
    value.backward()
    return value.detach(), logits.grad


@pytest.fixture(scope="module")
def published():
    spec = importlib.util.spec_from_file_location("fill", PARITY / "fill.py")
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    logits = torch.from_numpy(4 * fill.image("pranet/loss_pred", (2, 1, 64, 80)))
    mask = torch.from_numpy(fill.image("pranet/loss_mask", (2, 1, 64, 80)))
    targets = {"binary": (mask > 0.2).double(), "soft": (0.5 + mask).clamp(0, 1)}
    return logits, targets, load_file(PARITY / "pranet.safetensors")


@pytest.mark.parametrize("kind", ["binary", "soft"])
@pytest.mark.parametrize("form", ["coded", "intended"])
def test_structure_equals_the_published_loss(published, kind, form):
    logits, targets, vectors = published
    value = structure(logits, targets[kind], as_coded=form == "coded")
    assert abs(value - vectors[f"loss/{kind}_{form}"]).max() < 1e-10


@pytest.mark.parametrize("form", ["coded", "intended"])
def test_structure_has_the_published_gradient(published, form):
    logits, targets, vectors = published
    _, gradient = value_and_gradient(partial(structure, as_coded=form == "coded"), logits, targets["binary"])
    assert abs(gradient[..., ::2, ::2] - vectors[f"loss/binary_{form}_grad_s2"]).max() < 1e-10


def test_structure_over_two_classes_is_the_mean_over_both(published):
    logits, targets, _ = published
    both = structure(torch.cat([logits, -logits], 1), torch.cat([targets["binary"], targets["soft"]], 1))
    assert both.item() == pytest.approx(
        (structure(logits, targets["binary"]) + structure(-logits, targets["soft"])).item() / 2, abs=1e-12
    )


def test_structure_takes_neighbourhoods_from_pixels_that_count():
    # All that counts is foreground and no window reaches over the border: no pixel is unlike its neighbourhood.
    target = torch.ones(1, 1, 64, 64, dtype=torch.float64)
    target[..., 20:44, 32:40] = 255
    logits = torch.randn(1, 1, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target[..., :15, :], target[..., -15:, :], target[..., :, :15], target[..., :, -15:] = 255, 255, 255, 255
    p = logits.sigmoid()[target == 1]
    n = p.numel()
    expected = -p.log().mean() + 1 - (p.sum() + 1) / (n + 1)
    assert structure(logits, target, 255).item() == pytest.approx(expected.item(), abs=1e-12)


@given(seed=st.integers(0, 2**32 - 1), gamma=st.floats(0, 4), alpha=st.floats(0.05, 0.95))
@settings(max_examples=25, deadline=None)
def test_focal_of_independent_classes_equals_torchvision(seed, gamma, alpha):
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=g)
    target = torch.randint(0, 2, logits.shape, generator=g).double()
    expected = sigmoid_focal_loss(logits, target, alpha=alpha, gamma=gamma, reduction="mean")
    assert focal(logits, target, gamma=gamma, alpha=alpha).item() == pytest.approx(expected.item(), rel=1e-9)


@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(2, 5), gamma=st.floats(0, 4))
@settings(max_examples=25, deadline=None)
def test_exclusive_losses_equal_a_loop_over_pixels(seed, classes, gamma):
    rng = np.random.default_rng(seed)
    logits, ids = 3 * rng.standard_normal((2, classes, 3, 4)), rng.choice([*range(classes), 255], (2, 3, 4))
    entropy, focused = [], []
    for b, y, x in np.ndindex(ids.shape):
        if ids[b, y, x] != 255:
            e = np.exp(logits[b, :, y, x])
            p = e[ids[b, y, x]] / e.sum()
            entropy.append(-math.log(p))
            focused.append(-((1 - p) ** gamma) * math.log(p))
    z, t = torch.from_numpy(logits), torch.from_numpy(ids)
    assert ce(z, t, 255).item() == pytest.approx(np.mean(entropy) if entropy else 0, rel=1e-9)
    assert focal(z, t, 255, gamma=gamma).item() == pytest.approx(np.mean(focused) if focused else 0, rel=1e-9)


@pytest.mark.parametrize("smooth", [0.0, 1.0])
@pytest.mark.parametrize("mode", ["binary", "multiclass", "multilabel"])
def test_dice_equals_segmentation_models_pytorch_where_all_classes_are_present(mode, smooth):
    g = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(3, 1 if mode == "binary" else 4, 16, 15, generator=g)
    ids = torch.randint(0, 4, (3, 16, 15), generator=g)
    maps = torch.randint(0, 2, logits.shape, generator=g).float()
    ids[0, :5], maps[0, :, :5] = 255, 255
    target = ids if mode == "multiclass" else maps
    expected = DiceLoss(mode, ignore_index=255, smooth=smooth)(logits, target)
    assert dice(logits, target, 255, smooth=2 * smooth).item() == pytest.approx(expected.item(), abs=1e-6)


def test_dice_averages_over_the_classes_present():
    logits = torch.randn(2, 5, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ids = torch.full((2, 8, 8), 3)
    ids[:, :4] = 1
    p = logits.softmax(1)
    each = [1 - 2 * p[:, k][ids == k].sum() / (p[:, k].sum() + (ids == k).sum()) for k in (1, 3)]
    assert dice(logits, ids).item() == pytest.approx(sum(each).item() / 2, abs=1e-12)


@independent
def test_ignored_pixels_have_no_say_among_independent_classes(loss):
    g = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 2, 40, 33, dtype=torch.float64, generator=g)
    target = torch.rand(logits.shape, dtype=torch.float64, generator=g)
    ignored = torch.rand(logits.shape, generator=g) < 0.4
    target[ignored] = 255
    value, gradient = value_and_gradient(loss, logits, target, 255)
    assert (gradient[ignored] == 0).all()
    assert (gradient[~ignored] != 0).all()
    assert value == loss(torch.where(ignored, 50.0, logits), target, 255)


@exclusive
def test_ignored_pixels_have_no_say_among_exclusive_classes(loss):
    g = torch.Generator().manual_seed(4)
    logits = torch.randn(2, 3, 12, 9, dtype=torch.float64, generator=g)
    ids = torch.randint(0, 3, (2, 12, 9), generator=g)
    ignored = torch.rand(ids.shape, generator=g) < 0.4
    value, gradient = value_and_gradient(loss, logits, ids.masked_fill(ignored, 255), 255)
    assert (gradient.movedim(1, -1)[ignored] == 0).all()
    assert (gradient.movedim(1, -1)[~ignored] != 0).all()
    moved = torch.where(ignored[:, None], torch.tensor([50.0, -3, 0])[:, None, None], logits)
    assert value == loss(moved, ids.masked_fill(ignored, 255), 255)


@exclusive
def test_an_ignored_id_may_be_one_of_the_classes(loss):
    g = torch.Generator().manual_seed(5)
    logits, ids = torch.randn(2, 3, 8, 8, generator=g), torch.randint(0, 3, (2, 8, 8), generator=g)
    assert loss(logits, ids, 0) == loss(logits, ids.masked_fill(ids == 0, 255), 255)


@independent
def test_an_ignored_image_changes_nothing(loss):
    g = torch.Generator().manual_seed(6)
    logits = torch.randn(2, 1, 20, 20, dtype=torch.float64, generator=g)
    target = torch.randint(0, 2, logits.shape, generator=g).double()
    target[1] = 255
    assert loss(logits, target, 255).item() == pytest.approx(loss(logits[:1], target[:1], 255).item(), rel=1e-12)


@independent
@pytest.mark.parametrize("fill", [0.0, 1.0, 0.5, 255.0], ids=["empty", "full", "soft", "ignored"])
@pytest.mark.parametrize("size", [60000.0, 1.0], ids=["extreme", "usual"])
def test_independent_losses_are_finite_on_half_precision_logits_of_a_large_image(loss, fill, size):
    g = torch.Generator().manual_seed(7)
    logits = (size * (2 * torch.rand(1, 1, 512, 512, generator=g) - 1)).half()
    value, gradient = value_and_gradient(loss, logits, torch.full((1, 1, 512, 512), fill), 255)
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert gradient.isfinite().all()
    if fill == 255:
        assert value == 0
        assert (gradient == 0).all()


@exclusive
@pytest.mark.parametrize("fill", [0, 2, 255], ids=["background", "one_class", "ignored"])
@pytest.mark.parametrize("size", [60000.0, 1.0], ids=["extreme", "usual"])
def test_exclusive_losses_are_finite_on_half_precision_logits_of_a_large_image(loss, fill, size):
    g = torch.Generator().manual_seed(8)
    logits = (size * (2 * torch.rand(1, 3, 512, 512, generator=g) - 1)).half()
    value, gradient = value_and_gradient(loss, logits, torch.full((1, 512, 512), fill), 255)
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert gradient.isfinite().all()
    if fill == 255:
        assert value == 0
        assert (gradient == 0).all()


@independent
def test_an_empty_mask_under_no_foreground_at_all_is_right_and_flat(loss):
    value, gradient = value_and_gradient(loss, torch.full((1, 1, 8, 8), -60000.0).half(), torch.zeros(1, 1, 8, 8))
    assert value == 0
    assert (gradient == 0).all()


@independent
def test_half_precision_logits_give_the_loss_of_the_same_numbers_in_float64(loss):
    g = torch.Generator().manual_seed(9)
    logits = (4 * torch.randn(2, 1, 64, 64, generator=g)).half()
    target = torch.rand(logits.shape, dtype=torch.float64, generator=g)
    assert loss(logits, target.float()).item() == pytest.approx(loss(logits.double(), target).item(), rel=1e-5)


def test_a_target_of_the_other_kind_is_refused():
    logits = torch.zeros(1, 2, 4, 4)
    with pytest.raises(UserError, match="use ce for class ids"):
        bce(logits, torch.zeros(1, 4, 4, dtype=torch.int64))
    with pytest.raises(UserError, match="use bce for one map per class"):
        ce(logits, torch.zeros(1, 2, 4, 4))
    with pytest.raises(UserError, match="alpha"):
        focal(logits, torch.zeros(1, 4, 4, dtype=torch.int64), alpha=0.25)


def drawn(classes, seed=0, size=(2, 9, 7)):
    """(logits, ids) with some pixels ignored (255)."""
    generator = torch.Generator().manual_seed(seed)
    batch, height, width = size
    logits = torch.randn(batch, classes, height, width, generator=generator, dtype=torch.float64)
    ids = torch.randint(0, max(classes, 2), size, generator=generator)
    ids[torch.rand(size, generator=generator) < 0.2] = 255
    return logits, ids


def test_weighted_cross_entropy_is_torchs():
    logits, ids = drawn(3)
    weights = torch.tensor([0.5, 2.0, 7.0], dtype=torch.float64)
    expected = torch.nn.functional.cross_entropy(logits, ids, weight=weights, ignore_index=255)
    torch.testing.assert_close(ce(logits, ids, 255, class_weights=weights), expected)
    torch.testing.assert_close(focal(logits, ids, 255, gamma=0.0, class_weights=weights), expected)


def test_weights_of_background_and_foreground_are_those_of_two_exclusive_classes():
    logits, ids = drawn(1)
    weights = torch.tensor([0.5, 7.0])
    two = torch.cat([torch.zeros_like(logits), logits], dim=1)  # softmax of (0, x) is sigmoid of x
    for one, other in ((bce, ce), (focal, focal)):
        expected = other(two, ids, 255, class_weights=weights)
        torch.testing.assert_close(one(logits, ids[:, None], 255, class_weights=weights), expected)


@pytest.mark.parametrize("loss", [bce, ce, focal])
def test_equal_class_weights_change_nothing_whatever_their_size(loss):
    logits, ids = drawn(1 if loss is bce else 3)
    target = ids[:, None] if loss is bce else ids
    weights = torch.full((2 if loss is bce else 3,), 4.0)
    torch.testing.assert_close(loss(logits, target, 255, class_weights=weights), loss(logits, target, 255))


@pytest.mark.parametrize("loss", [bce, ce, focal])
def test_ignored_pixels_have_no_weight_either(loss):
    logits, ids = drawn(1 if loss is bce else 3)
    target = ids[:, None] if loss is bce else ids
    weighed = partial(loss, class_weights=torch.tensor([1.0, 5.0] if loss is bce else [1.0, 5.0, 2.0]))
    value, gradient = value_and_gradient(weighed, logits, target, 255)
    ignored = (ids == 255)[:, None].expand_as(logits)
    assert (gradient[ignored] == 0).all()
    changed = torch.where(ignored, 50.0, logits)
    torch.testing.assert_close(weighed(changed, target, 255), value)
    nothing, still = value_and_gradient(weighed, logits, torch.full_like(target, 255), 255)
    assert nothing == 0
    assert (still == 0).all()


def test_a_soft_target_has_a_share_of_both_weights():
    x, t, off, on = 0.3, 0.25, 2.0, 5.0
    p = 1 / (1 + math.exp(-x))
    expected = -(on * t * math.log(p) + off * (1 - t) * math.log(1 - p)) / (on * t + off * (1 - t))
    logits, target = torch.full((1, 1, 2, 2), x), torch.full((1, 1, 2, 2), t)
    assert bce(logits, target, class_weights=torch.tensor([off, on])).item() == pytest.approx(expected, rel=1e-6)


def test_a_class_of_weight_zero_is_not_learned():
    logits, ids = drawn(3)
    _, gradient = value_and_gradient(partial(ce, class_weights=torch.tensor([0.0, 1.0, 1.0])), logits, ids, 255)
    none = (ids == 0)[:, None].expand_as(logits)
    assert (gradient[none] == 0).all()
    assert (gradient[~none & (ids != 255)[:, None]] != 0).any()
