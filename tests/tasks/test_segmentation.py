"""The segmentation task: what it learns, what it answers, and what it refuses."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from zoo.errors import UserError
from zoo.registry import TASKS
from zoo.tasks import Segmentation, losses

BINARY, MULTICLASS, MULTILABEL = Segmentation(1), Segmentation(3), Segmentation(3, mode="multilabel")


def make_logits(classes, size=(12, 10), seed=0, batch=2):
    return torch.randn(batch, classes, *size, generator=torch.Generator().manual_seed(seed))


def make_ids(classes, size=(12, 10), seed=1, batch=2):
    return torch.randint(0, classes, (batch, *size), generator=torch.Generator().manual_seed(seed))


def make_maps(classes, size=(12, 10)):
    return make_ids(2, (classes, *size)).bool()


def test_it_is_found_by_name():
    assert TASKS.find("segmentation").build is Segmentation


def test_the_mode_follows_from_the_number_of_classes():
    assert (BINARY.mode, BINARY.exclusive, BINARY.num_outputs) == ("binary", False, 1)
    assert (MULTICLASS.mode, MULTICLASS.exclusive, MULTICLASS.num_outputs) == ("multiclass", True, 3)
    assert (MULTILABEL.mode, MULTILABEL.exclusive, MULTILABEL.num_outputs) == ("multilabel", False, 3)
    assert Segmentation(1, mode="multilabel").mode == "multilabel"


@pytest.mark.parametrize(
    "options",
    [
        dict(num_classes=1, threshold=0.3, class_names=["polyp"], class_colors=[[255, 0, 0]]),
        dict(num_classes=3, ignore_index=None, class_names=("sky", "road", "car")),
        dict(num_classes=2, mode="multilabel", threshold=1, class_colors=[(0, 0, 0), (1, 2, 3)]),
        dict(num_classes=300, ignore_index=-1),
    ],
)
def test_its_config_is_json_that_builds_it_again(options):
    config = json.loads(json.dumps(Segmentation(**options).config))
    again = Segmentation(options["num_classes"], **{key: value for key, value in config.items() if key != "name"})
    assert config["name"] == "segmentation"
    assert again.config == config
    assert set(options) - {"num_classes"} < set(config)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(num_classes=0), "whole number from 1 up, not 0"),
        (dict(num_classes=2.0), "not 2.0"),
        (dict(num_classes=3, mode="multilable"), "did you mean 'multilabel'"),
        (dict(num_classes=2, mode="binary"), "needs 1 class, the foreground, but num_classes is 2"),
        (dict(num_classes=1, mode="multiclass"), "needs 2 classes or more"),
        (dict(num_classes=1, threshold=1.5), "from 0 to 1, not 1.5"),
        (dict(num_classes=1, threshold=math.nan), "from 0 to 1, not nan"),
        (dict(num_classes=3, threshold=0.4), "no meaning in multiclass"),
        (dict(num_classes=1, ignore_index=1), "is a label of binary masks"),
        (dict(num_classes=3, ignore_index="void"), "not 'void'"),
        (dict(num_classes=3, class_names=["a", "b"]), "class_names has 2 entries"),
        (dict(num_classes=1, class_names=["background", "polyp"]), "the foreground's alone"),
        (dict(num_classes=2, class_names=["a", "a"]), "differ from each other"),
        (dict(num_classes=2, class_names=["a", ""]), "differ from each other"),
        (dict(num_classes=1, class_colors=[[0, 0, 256]]), "from 0 to 255"),
        (dict(num_classes=1, class_colors=[[0, 0]]), "red, green, blue"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        Segmentation(**options)


@pytest.mark.parametrize(
    ("task", "mask", "first"),
    [
        (BINARY, make_ids(2), "bce"),
        (BINARY, make_ids(2)[:, None] * 0.7, "bce"),
        (MULTICLASS, make_ids(3), "ce"),
        (MULTILABEL, make_maps(3), "bce"),
        (MULTILABEL, make_maps(3).byte(), "bce"),
    ],
    ids=["binary", "soft", "multiclass", "multilabel", "multilabel_uint8"],
)
def test_the_default_loss_is_cross_entropy_plus_dice(task, mask, first):
    logits = make_logits(task.num_outputs)
    terms = task.loss({"logits": logits}, {"mask": mask})
    assert list(terms) == ["loss", first, "dice"]
    target = mask[:, None] if task is BINARY and mask.ndim == 3 else mask
    assert terms[first] == getattr(losses, first)(logits, target)
    assert terms["dice"] == losses.dice(logits, target)
    assert terms["loss"] == terms[first] + terms["dice"]


def test_a_binary_mask_of_ids_gives_the_loss_of_the_same_soft_mask():
    logits, ids = make_logits(1), make_ids(2)
    ids[0, :3] = 255
    weights = {"bce": 1, "dice": 1, "focal": 1, "structure": 1, "structure_as_coded": 1}
    hard = BINARY.loss({"logits": logits}, {"mask": ids}, weights)
    soft = BINARY.loss({"logits": logits}, {"mask": ids[:, None].float()}, weights)
    assert hard == soft
    assert set(hard) == {"loss", *weights}


def test_weights_of_terms_maps_and_the_decoders_own_losses_are_multiplied_and_summed():
    logits, ids, own = make_logits(3), make_ids(3), torch.tensor(0.25)
    coarse = [make_logits(3, (3, 4), seed=2), make_logits(3, (7, 5), seed=3)]
    outputs = {"logits": logits, "aux": coarse, "losses": {"guided": own, "other": own.half()}}
    weights = {"ce": 2.0, "focal": 0.5, "main": 3.0, "aux": 0.4}
    terms = MULTICLASS.loss(outputs, {"mask": ids}, weights, decoder_weights={"guided": 0.1, "other": 5.0})

    fine = [F.interpolate(x, (12, 10), mode="bilinear", align_corners=False) for x in coarse]
    expected = {
        "ce": 6.0 * F.cross_entropy(logits, ids),
        "focal": 1.5 * losses.focal(logits, ids),
        "ce_aux": 0.8 * sum(F.cross_entropy(x, ids) for x in fine),
        "focal_aux": 0.2 * sum(losses.focal(x, ids) for x in fine),
        "guided": 0.1 * own,
        "other": 5.0 * own,
    }
    expected["loss"] = sum(expected.values())
    assert set(terms) == set(expected)
    for name in expected:
        assert terms[name].item() == pytest.approx(expected[name].item(), rel=1e-5), name


def test_a_recipe_may_weigh_the_decoders_losses_even_where_a_validation_pass_has_none():
    outputs, batch = {"logits": make_logits(3)}, {"mask": make_ids(3)}
    terms = MULTICLASS.loss(outputs, batch, {"guided": 2.0}, decoder_weights={"guided": 1.0})
    assert list(terms) == ["loss", "ce", "dice"]


def test_without_weight_on_the_main_map_only_the_auxiliary_ones_are_learned():
    outputs = {"logits": make_logits(1), "aux": [make_logits(1)]}
    terms = BINARY.loss(outputs, {"mask": make_ids(2)}, {"structure": 1, "main": 0})
    assert list(terms) == ["loss", "structure_aux"]


def test_coarse_half_precision_maps_are_resized_in_full_precision():
    coarse, mask = make_logits(1, (4, 4)).half(), make_ids(2)
    terms = BINARY.loss({"logits": make_logits(1), "aux": [coarse]}, {"mask": mask}, {"bce": 1})
    fine = F.interpolate(coarse.float(), (12, 10), mode="bilinear", align_corners=False)
    assert terms["bce_aux"] == losses.bce(fine, mask[:, None])


@pytest.mark.parametrize(
    ("task", "weights", "sentence"),
    [
        (BINARY, {"strukture": 1}, "did you mean 'structure'"),
        (BINARY, {"ce": 1}, "'ce' does not suit a binary task; choose from bce"),
        (MULTICLASS, {"structure": 1}, "'structure' does not suit a multiclass task; choose from ce, dice, focal"),
        (MULTICLASS, {"bce": 1}, "does not suit"),
        (MULTILABEL, {"dice": -1}, "from 0 up, not -1"),
        (BINARY, {"bce": "1"}, "from 0 up, not '1'"),
        (BINARY, {"bce": math.nan}, "not nan"),
    ],
)
def test_unknown_unsuitable_and_senseless_weights_are_refused(task, weights, sentence):
    with pytest.raises(UserError, match=sentence):
        task.check_weights(weights)
    with pytest.raises(UserError, match=sentence):
        task.loss({"logits": make_logits(task.num_outputs)}, {"mask": make_ids(2)}, weights)


def test_class_weights_are_of_the_terms_that_take_them_on_every_map():
    weights = torch.tensor([0.5, 2.0, 7.0])
    batch = {"mask": make_ids(3)}
    outputs = {"logits": make_logits(3), "aux": [make_logits(3, seed=2)]}
    plain = MULTICLASS.loss(outputs, batch)
    weighed = MULTICLASS.loss(outputs, batch, class_weights=weights)
    assert weighed["dice"] == plain["dice"]
    for name, logits in (("ce", outputs["logits"]), ("ce_aux", outputs["aux"][0])):
        torch.testing.assert_close(weighed[name], F.cross_entropy(logits, batch["mask"], weight=weights))
    soft = {"mask": make_ids(2)[:, None].float()}
    assert BINARY.loss({"logits": make_logits(1)}, soft, class_weights=weights[:2])["bce"] != 0


@pytest.mark.parametrize(
    ("task", "class_weights", "weights", "sentence"),
    [
        (MULTICLASS, [1, 2], None, r"has 2 entries; give 3, one for each class"),
        (BINARY, [1], None, r"has 1 entries; give 2, background and foreground"),
        (BINARY, [0, 0], None, r"not all of them 0"),
        (MULTICLASS, [1, -1, 1], None, r"numbers from 0 up"),
        (MULTICLASS, [1, math.inf, 1], None, r"numbers from 0 up"),
        (MULTILABEL, [1, 1, 1], None, r"in multilabel it may have several; take --class_weights null"),
        (BINARY, [1, 2], {"structure": 1}, r"weigh bce, ce, focal, but the loss is structure"),
        (BINARY, [1, 2], {"dice": 1, "bce": 0}, r"but the loss is bce, dice"),
    ],
)
def test_class_weights_that_do_not_fit_are_refused(task, class_weights, weights, sentence):
    with pytest.raises(UserError, match=sentence):
        task.check_class_weights(class_weights, weights)


def test_class_weights_that_fit_are_taken():
    MULTICLASS.check_class_weights([0, 1, 2.5])
    BINARY.check_class_weights((1, 3), {"focal": 1, "dice": 1})


@pytest.mark.parametrize(
    ("task", "mask", "sentence"),
    [
        (BINARY, make_ids(2, (12, 11)), r"\(2, 12, 11\), but the logits are \(2, 12, 10\)"),
        (BINARY, make_ids(2, batch=1), "but the logits are"),
        (BINARY, make_ids(2).byte(), "torch.uint8"),
        (BINARY, make_ids(2) * 255.0, r"soft mask is float of shape \(B, 1, H, W\)"),
        (BINARY, 100.0 * make_ids(2)[:, None], "value 100, but soft masks hold 0 to 1"),
        (BINARY, make_ids(2)[:, None] * math.nan, "value nan"),
        (BINARY, 2 * make_ids(2), "value 2, but binary masks hold the class ids 0 to 1"),
        (MULTICLASS, make_ids(3) + 1, r"value 3, but multiclass masks hold the class ids 0 to 2.*ignore_index \(255\)"),
        (MULTICLASS, make_ids(3) - 1, "value -1"),
        (MULTICLASS, make_ids(3).float(), "multiclass mask is int64 ids .*torch.float32"),
        (MULTICLASS, make_maps(3), "torch.bool"),
        (MULTILABEL, make_ids(3), r"of shape \(B, 3, H, W\)"),
        (MULTILABEL, make_maps(2), r"of shape \(B, 3, H, W\)"),
        (MULTILABEL, make_maps(3).byte() * 255, "value 255, but multilabel masks hold 0 and 1"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(task, mask, sentence):
    with pytest.raises(UserError, match=sentence):
        task.loss({"logits": make_logits(task.num_outputs)}, {"mask": mask})


def test_logits_of_another_number_of_classes_are_refused():
    with pytest.raises(UserError, match="2 channels, but the task has 3 classes"):
        MULTICLASS.loss({"logits": make_logits(2)}, {"mask": make_ids(3)})


def test_a_mask_is_checked_before_there_are_logits():
    BINARY.check({"mask": make_ids(2)})
    with pytest.raises(UserError, match="value 3"):
        MULTICLASS.check({"mask": make_ids(5).clamp_min(3)})


def test_every_pixel_ignored_gives_loss_zero_and_no_gradient():
    for task in (BINARY, MULTICLASS):
        logits = make_logits(task.num_outputs).requires_grad_()
        loss = task.loss({"logits": logits, "aux": [logits]}, {"mask": torch.full((2, 12, 10), 255)})["loss"]
        loss.backward()
        assert loss == 0
        assert (logits.grad == 0).all()


def test_binary_answers_the_foreground_above_the_threshold():
    logits = torch.tensor([-1.0, 0.0, 1.0, 2.0]).reshape(1, 1, 2, 2)
    answer = BINARY.answer({"logits": logits})
    assert answer["mask"].dtype == torch.uint8
    assert answer["mask"].tolist() == [[[0, 0], [1, 1]]]
    assert torch.equal(answer["probabilities"], logits.sigmoid())
    assert BINARY.answer({"logits": logits}, threshold=0.8)["mask"].tolist() == [[[0, 0], [0, 1]]]
    assert BINARY.answer({"logits": logits}, threshold=0)["mask"].all()
    assert Segmentation(1, threshold=0.2).answer({"logits": logits})["mask"].all()


def test_multiclass_answers_the_most_probable_class():
    logits = make_logits(3)
    answer = MULTICLASS.answer({"logits": logits})
    assert answer["mask"].dtype == torch.uint8
    assert torch.equal(answer["mask"].long(), logits.argmax(1))
    assert torch.allclose(answer["probabilities"].sum(1), torch.ones(2, 12, 10))


@pytest.mark.parametrize(("classes", "dtype"), [(255, torch.uint8), (256, torch.int64), (300, torch.int64)])
def test_many_classes_are_answered_in_ids_that_hold_them(classes, dtype):
    logits = torch.zeros(1, classes, 2, 2)
    logits[:, -1] = 1
    mask = Segmentation(classes).answer({"logits": logits})["mask"]
    assert mask.dtype == dtype
    assert (mask == classes - 1).all()


def test_multilabel_answers_each_class_alone():
    logits = make_logits(3)
    answer = MULTILABEL.answer({"logits": logits})
    assert answer["mask"].dtype == torch.bool
    assert torch.equal(answer["mask"], logits > 0)


def test_half_precision_logits_are_answered_in_float32():
    for task in (BINARY, MULTICLASS, MULTILABEL):
        logits = make_logits(task.num_outputs).half()
        assert task.answer({"logits": logits})["probabilities"].dtype == torch.float32


def test_a_threshold_that_has_no_meaning_is_refused():
    with pytest.raises(UserError, match="no meaning in multiclass"):
        MULTICLASS.answer({"logits": make_logits(3)}, threshold=0.5)
    with pytest.raises(UserError, match="not 2"):
        BINARY.answer({"logits": make_logits(1)}, threshold=2)


class Tiny(nn.Module):
    def __init__(self, task):
        super().__init__()
        self.task = task
        self.head = nn.Conv2d(3, task.num_outputs, 1)

    def forward(self, image):
        return self.task.answer({"logits": self.head(image)})


@pytest.mark.parametrize("task", [BINARY, MULTICLASS, MULTILABEL], ids=lambda task: task.mode)
def test_the_answer_is_exported_as_it_is(task):
    model = Tiny(task).eval()
    batch, height, width = (torch.export.Dim(name, min=2) for name in ("batch", "height", "width"))
    shapes = {"image": {0: batch, 2: height, 3: width}}
    program = torch.export.export(model, (make_logits(3),), dynamic_shapes=shapes)
    image = make_logits(3, (21, 17), batch=3)
    exported, eager = program.module()(image), model(image)
    assert exported.keys() == eager.keys()
    assert all(torch.equal(exported[name], eager[name]) for name in eager)


@pytest.mark.gpu
def test_loss_and_answer_on_a_gpu_equal_the_cpus():
    for task, mask in ((BINARY, make_ids(2)), (MULTICLASS, make_ids(3)), (MULTILABEL, make_maps(3))):
        logits = make_logits(task.num_outputs)
        here = task.loss({"logits": logits}, {"mask": mask})["loss"]
        there = task.loss({"logits": logits.cuda()}, {"mask": mask.cuda()})["loss"]
        assert there.item() == pytest.approx(here.item(), rel=1e-5)
        assert torch.equal(
            task.answer({"logits": logits.cuda()})["mask"].cpu(), task.answer({"logits": logits})["mask"]
        )
