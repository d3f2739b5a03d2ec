"""One function from pixels to answers: forward, answer and predict agree, on anything a person has."""

import copy
import pickle
import types

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from zoo.encoders import timm
from zoo.errors import UserError


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    decoder = {"name": "unet", "widths": [16, 16, 8, 8, 8]}
    task = {"name": "segmentation", "class_names": ["background", "cat", "dog"]}
    model = zoo.create_model(encoder="resnet10t", decoder=decoder, num_classes=3, task=task)
    model(torch.rand(4, 3, 64, 64))
    return model.eval()


@pytest.fixture(scope="module")
def photo():
    return np.random.default_rng(0).integers(0, 256, (45, 70, 3), dtype=np.uint8)


def test_predict_equals_answer(model, photo):
    image = torch.from_numpy(photo).permute(2, 0, 1)[None] / 255
    answer = model.answer(image)
    prediction = model.predict(photo)
    np.testing.assert_allclose(prediction.probabilities, answer["probabilities"][0].detach(), atol=1e-5)
    np.testing.assert_array_equal(prediction["mask"], answer["mask"][0])
    assert prediction.mask.dtype == np.uint8
    assert prediction.mask.shape == photo.shape[:2]


def test_predict_takes_what_a_person_has(model, photo, tmp_path):
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "photo.png"
    Image.fromarray(photo).save(path)
    expected = model.predict(photo).mask
    tensor = torch.from_numpy(photo).permute(2, 0, 1)
    for one in (path, str(path), Image.fromarray(photo), tensor, tensor / 255):
        np.testing.assert_array_equal(model.predict(one).mask, expected)
    listed = model.predict([path, photo])
    assert [p.path for p in listed] == [path, None]
    stream = model.predict(tmp_path)
    assert isinstance(stream, types.GeneratorType)
    assert [p.path for p in stream] == [path]
    assert len(list(model.predict(image for image in [photo, photo]))) == 2


def test_predict_batches_only_what_has_one_size(model, photo):
    images = [photo, photo, photo[:30], photo[:, :33], photo[:, :33]]
    single = [model.predict(image).probabilities for image in images]
    for batch_size in (2, 5):
        for one, many in zip(single, model.predict(images, batch_size=batch_size, num_workers=0), strict=True):
            np.testing.assert_allclose(many.probabilities, one, atol=1e-5)


def test_predict_leaves_the_model_as_it_is_and_sees_its_changes(model, photo):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    first = model.predict(photo).probabilities
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        bias = model.decoder.state_dict()[next(k for k in model.decoder.state_dict() if k.endswith("head.bias"))]
        bias[1] += 5
        assert model.predict(photo).probabilities[1].mean() > first[1].mean()
        bias[1] -= 5
    model.eval()


@pytest.mark.parametrize("change", [lambda w: w.flip(0), lambda w: w[[1, 0, 2]], lambda w: w.flip(1)])
def test_predict_sees_weights_that_are_permuted(model, photo, change):
    changed = copy.deepcopy(model)
    before = changed.predict(photo).probabilities
    head = [m for m in changed.decoder.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    with torch.no_grad():
        head.weight.copy_(change(head.weight))
    after = changed.predict(photo).probabilities
    assert not np.allclose(after, before)
    np.testing.assert_array_equal(after, copy.deepcopy(changed).predict(photo).probabilities)


def test_predict_sees_weights_written_through_data_and_draws_no_random_numbers(photo):
    model = zoo.create_model("unet", encoder="resnet10t").eval()
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first = model.predict(photo).probabilities
    assert torch.rand(1) == expected
    model.decoder.head.weight.data.mul_(0)  # as averages of weights do; no version counts it
    model.decoder.head.bias.data.fill_(0)
    assert (model.predict(photo).probabilities == 0.5).all()
    assert not (first == 0.5).all()


def test_predict_works_on_models_made_in_inference_mode_and_in_half_precision(photo):
    timm._plan.cache_clear()  # so that the encoder is asked in inference mode too
    with torch.inference_mode():
        model = zoo.create_model("unet", encoder="resnet10t").eval()
        full = model.predict(photo).probabilities
    half = model.to(torch.bfloat16).predict(photo).probabilities
    np.testing.assert_allclose(half, full, atol=0.05)
    tensor = torch.from_numpy(photo).permute(2, 0, 1).to(torch.bfloat16) / 255
    assert model.predict(tensor).mask.shape == photo.shape[:2]


@pytest.mark.parametrize("image", [torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 3, 0, 8)])
def test_forward_refuses_bytes_and_empty_images(model, image):
    with pytest.raises(UserError, match="float images that are not empty"):
        model(image)


def test_a_copy_of_a_model_that_has_predicted_is_a_model_alone(model, photo):
    expected = model.predict(photo).mask
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin._faster is None
        np.testing.assert_array_equal(twin.predict(photo).mask, expected)


def test_threshold_is_set_at_call_time(photo):
    model = zoo.create_model("unet", encoder="resnet10t")
    everything, nothing = model.predict(photo, threshold=0.0).mask, model.predict(photo, threshold=1.0).mask
    assert everything.all()
    assert not nothing.any()


def test_precision_is_close(model, photo):
    full, half = (model.predict(photo, precision=p).probabilities for p in ("32", "bf16"))
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, full, atol=0.05)


def test_input_size_is_inside_the_model(photo):
    model = zoo.create_model("unet", encoder="resnet10t", input_size=[64, 64]).eval()
    assert model.predict(photo).mask.shape == photo.shape[:2]
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(
        model(image)["logits"], model.decoder(model.encoder(n := (image - model.mean) / model.std), n)["logits"]
    )
    model.train()
    model(torch.rand(2, 3, 96, 96))  # the loader's size rules in training


def test_prediction_saves_and_shows(model, photo, tmp_path):
    prediction = model.predict(photo)
    paths = prediction.save(tmp_path, name="deep/er/one", probabilities=True)
    assert sorted(p.name for p in paths) == ["one.png", "one_overlay.png", "one_probabilities.npz"]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "deep/er/one.png")), prediction.mask)
    assert Image.open(tmp_path / "deep/er/one_overlay.png").size == (70, 45)
    np.testing.assert_array_equal(
        np.load(tmp_path / "deep/er/one_probabilities.npz")["probabilities"], prediction.probabilities
    )
    assert prediction._repr_png_().startswith(b"\x89PNG")
    background = prediction.mask == 0
    np.testing.assert_array_equal(np.asarray(prediction.overlay())[background], photo[background])
    assert repr(prediction).startswith("Prediction(an image, 70x45: mask uint8 (45, 70)")
    with pytest.raises(AttributeError, match="no 'alpha'"):
        _ = prediction.alpha
    assert pickle.loads(pickle.dumps(prediction)).mask.shape == (45, 70)


def test_overlapping_classes_are_saved_one_by_one(photo, tmp_path):
    task = {"name": "segmentation", "mode": "multilabel", "class_names": ["a", "b"]}
    model = zoo.create_model("unet", encoder="resnet10t", num_classes=2, task=task)
    prediction = model.predict(photo)
    assert prediction.mask.shape == (2, 45, 70)
    assert [p.name for p in prediction.save(tmp_path)] == [
        "prediction_a.png",
        "prediction_b.png",
        "prediction_overlay.png",
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(files="nowhere.png"), "nowhere.png"),
        (dict(files=np.zeros((0, 5, 3), np.uint8)), "empty"),
        (dict(files=np.zeros((5, 5, 3), np.uint8), device="gpu0"), "gpu0"),
        (dict(files=np.zeros((5, 5, 3), np.uint8), precision="8"), "'8'"),
        (dict(files=[np.zeros((5, 5, 3), np.uint8)], batch_size=0), "batch_size is 0"),
        (dict(files=torch.zeros(1, 3, 5, 5)), r"\(1, 3, 5, 5\)"),
        (dict(files=np.zeros((5, 5, 5), np.uint8)), "5 channel"),
        (dict(files=np.zeros((5, 5, 3), np.uint8), threshold=0.5), "threshold"),
    ],
)
def test_mistakes_are_one_sentence(model, options, words):
    with pytest.raises(UserError, match=words):
        model.predict(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without CUDA")
def test_a_device_that_is_not_there_is_named(model, photo):
    with pytest.raises(UserError, match="finds no device 'cuda'"):
        model.predict(photo, device="cuda")


@pytest.mark.gpu
def test_predict_on_a_gpu_equals_the_cpu(model, photo):
    cpu, gpu = model.predict(photo), model.predict(photo, device="cuda")
    np.testing.assert_allclose(gpu.probabilities, cpu.probabilities, atol=1e-3)
