"""Decoders of every kind go through the same door: create, forward, save, load, export, predict, with their inputs."""

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from tests.kinds import KINDS, register
from zoo.cli import main
from zoo.errors import UserError


@pytest.fixture(autouse=True)
def _kinds():
    with register():
        yield


def create(kind, **options):
    torch.manual_seed(0)
    task, _, encoder = KINDS[kind]
    model = zoo.create_model(task=task.name, encoder=encoder, decoder=f"test_{kind}", num_classes=3, **options)
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(64, 64), (37, 50), (1, 9)])
def test_every_kind_answers_at_the_images_size(kind, size):
    model = create(kind)
    image = torch.rand(2, 3, *size)
    inputs = model.example_inputs(image)
    answer = model.answer(image, **inputs)
    for name in model.task.maps:
        assert answer[name].shape[-2:] == size
    assert all(torch.isfinite(value).all() for value in answer.values() if value.is_floating_point())
    alone = model.answer(image[1:], **{name: value[1:] for name, value in inputs.items()})
    for name, value in alone.items():
        torch.testing.assert_close(value, answer[name][1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_and_comes_back_from_its_checkpoint(kind, tmp_path):
    model = create(kind).train()
    image = torch.rand(2, 3, 40, 56)
    inputs = model.example_inputs(image)
    batch = {"image": image, "alpha": torch.rand(2, 1, 40, 56), **inputs}
    model.task.loss(model(image, **inputs), batch)["loss"].backward()
    gradients = [name for name, p in model.decoder.named_parameters() if p.grad is None]
    assert not [name for name in gradients if not name.startswith("iou")]  # this loss leaves the scores out
    model.eval().save(tmp_path / "checkpoint")
    loaded = zoo.load_model(tmp_path / "checkpoint")
    for name, value in model.answer(image, **inputs).items():
        torch.testing.assert_close(loaded.answer(image, **inputs)[name], value, atol=0, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_one_traced_program(kind):
    model = create(kind)
    image = torch.rand(2, 3, 70, 90)
    inputs = model.example_inputs(image)

    class Answer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, image, inputs):
            return self.model.answer(image, **inputs)

    program = torch.export.export(Answer(), (image, inputs)).module()
    for name, value in model.answer(image, **inputs).items():
        torch.testing.assert_close(program(image, inputs)[name], value, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_predicts_with_its_inputs(kind):
    model = create(kind)
    photo = np.random.default_rng(0).integers(0, 256, (45, 70, 3), dtype=np.uint8)
    image = torch.from_numpy(photo).permute(2, 0, 1)[None] / 255
    inputs = model.example_inputs(image)
    one = {name: value[0] for name, value in inputs.items()}
    prediction = model.predict(photo, **one)
    answer = model.answer(image, **inputs)
    for name, array in prediction.arrays.items():
        np.testing.assert_allclose(array, answer[name][0].detach(), atol=1e-5)
    listed = model.predict([photo, photo], batch_size=2, **{name: [value, value] for name, value in one.items()})
    for name, array in prediction.arrays.items():
        np.testing.assert_allclose(listed[1][name], array, atol=1e-5)


def test_a_hole_is_filled_and_the_rest_is_left_bit_for_bit(tmp_path):
    model = create("hole")
    photo = np.random.default_rng(0).random((45, 70, 3)).astype(np.float32)
    hole = np.zeros((45, 70), np.uint8)
    hole[10:30, 20:40] = 255
    filled = model.predict(photo, hole=hole).arrays["image"].transpose(1, 2, 0)
    np.testing.assert_array_equal(filled[hole == 0], photo[hole == 0])
    assert (filled[hole > 0] != photo[hole > 0]).all()


def test_folders_of_inputs_are_matched_by_name(tmp_path, capsys):
    model = create("hole")
    model.save(tmp_path / "checkpoint")
    random = np.random.default_rng(0)
    for place in ("a.png", "sub/b.png"):
        for folder, shape in (("images", (20, 30, 3)), ("holes", (20, 30))):
            path = tmp_path / folder / place
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 2, shape, dtype=np.uint8) * 255).save(path)
    expected = [p["image"] for p in model.predict(tmp_path / "images", hole=tmp_path / "holes")]
    given = ["--given", f"hole={tmp_path / 'holes'}", "-o", str(tmp_path / "out")]
    assert main(["predict", str(tmp_path / "checkpoint"), str(tmp_path / "images"), *given]) == 0
    for place, planes in zip(("a", "sub/b"), expected, strict=True):
        written = np.asarray(Image.open(tmp_path / "out" / f"{place}_image.png"))
        assert np.abs(written / 255 - planes.transpose(1, 2, 0).clip(0, 1)).max() <= 0.5 / 255 + 1e-6
    (tmp_path / "holes" / "a.png").unlink()
    assert main(["predict", str(tmp_path / "checkpoint"), str(tmp_path / "images"), *given]) == 2
    assert "holds no file for the image 'a'" in capsys.readouterr().err
    assert main(["predict", str(tmp_path / "checkpoint"), str(tmp_path / "images"), "--given", "hole", *given[2:]]) == 2
    assert "write NAME=PATH" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "inputs", "sentence"),
    [
        ("hole", {}, "needs `hole` beside the image"),
        ("hole", {"hole": torch.zeros(1, 1, 8, 8)}, "is \\(1, 1, 8, 8\\); for this image it is \\(1, 1, 32, 32\\)"),
        ("hole", {"holes": torch.zeros(1, 1, 32, 32)}, "takes no input 'holes' - did you mean 'hole'"),
        ("prompt", {"boxes": torch.zeros(1, 1, 4)}, "needs `points`"),
        ("query", {"points": torch.zeros(1, 1, 2)}, "takes the image alone"),
        ("masked", {}, "needs `noise`"),
    ],
)
def test_inputs_that_are_missing_or_misshapen_are_told(kind, inputs, sentence):
    with pytest.raises(UserError, match=sentence):
        create(kind)(torch.rand(1, 3, 32, 32), **inputs)


def test_an_optional_prompt_may_be_left_out():
    model = create("prompt")
    image = torch.rand(1, 3, 32, 32)
    points = torch.rand(1, 2, 2)
    with_box = model(image, points=points, boxes=torch.rand(1, 1, 4))["masks"]
    assert (model(image, points=points)["masks"] != with_box).any()


def test_an_encoder_that_takes_whole_images_alone_is_refused_under_a_masked_decoder():
    with pytest.raises(UserError, match="'resnet10t' takes whole images alone"):
        zoo.create_model(task="test_pretraining", encoder="resnet10t", decoder="test_masked")


def test_lists_of_inputs_are_as_long_as_the_images():
    photo = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(UserError, match="`hole` has 1 entries for 2 images"):
        create("hole").predict([photo, photo], hole=[photo[..., 0]])
    with pytest.raises(UserError, match="is 4x8 for an image of 8x8"):
        create("hole").predict(photo, hole=photo[:4, :, 0])
