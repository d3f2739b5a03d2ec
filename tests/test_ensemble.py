import numpy as np
import pytest
import torch

import zoo
from zoo.errors import UserError
from zoo.tasks.segmentation import Segmentation


def model(seed=0, **keys):
    torch.manual_seed(seed)
    decoder = {"name": "unet", "widths": [8, 8, 4, 4, 4]}
    return zoo.create_model(encoder="resnet10t", decoder=decoder, **keys).eval()


@pytest.mark.parametrize(("mode", "classes"), [("binary", 1), ("multiclass", 4), ("multilabel", 3)])
def test_the_answer_has_the_mean_of_the_probabilities(mode, classes):
    task, generator = Segmentation(classes, mode=mode), torch.Generator().manual_seed(0)
    outputs = [{"logits": 40 * torch.randn(2, classes, 5, 6, generator=generator)} for _ in range(3)]
    mean = torch.stack([task.answer(one)["probabilities"].double() for one in outputs]).mean(dim=0)
    found = task.answer(task.average(outputs))
    assert torch.allclose(found["probabilities"].double(), mean, atol=1e-6)
    assert torch.isfinite(task.average(outputs)["logits"]).all()
    assert torch.allclose(task.average(outputs[:1])["logits"].softmax(1), outputs[0]["logits"].softmax(1), atol=1e-6)


def test_an_ensemble_predicts_the_mean_of_its_models_through_the_same_loop():
    models = [model(seed, num_classes=3) for seed in (0, 1)]
    ensemble = zoo.Ensemble(models)
    image = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    expected = np.mean([one.predict(image).probabilities for one in models], axis=0)
    assert np.abs(ensemble.predict(image).probabilities - expected).max() < 1e-5
    x = torch.rand(1, 3, 33, 47)
    with torch.no_grad():
        mean = sum(one.answer(x)["probabilities"] for one in models) / 2
        assert torch.allclose(ensemble.answer(x)["probabilities"], mean, atol=1e-6)


def test_models_of_several_sizes_and_encoders_answer_together():
    models = [model(num_classes=2), model(num_classes=2, input_size=(32, 64))]
    ensemble = zoo.Ensemble(models)
    assert ensemble.grid is None
    assert zoo.Ensemble(models[:1]).grid == models[0].grid
    assert ensemble.predict(np.zeros((40, 50, 3), np.uint8)).mask.shape == (40, 50)


def test_runs_are_loaded_together_and_a_threshold_holds(tmp_path):
    for seed in (0, 1):
        model(seed).save(tmp_path / str(seed))
    ensemble = zoo.load_model([tmp_path / "0", tmp_path / "1"])
    assert isinstance(ensemble, zoo.Ensemble)
    assert not ensemble.training
    image = np.zeros((40, 50, 3), np.uint8)
    assert ensemble.predict(image, threshold=1.0).mask.max() == 0
    assert ensemble.predict(image, threshold=0.0).mask.min() == 1


def test_models_that_differ_in_what_they_answer_are_refused():
    for keys, what in (
        (dict(num_classes=3), "the mode is binary in the one and multiclass"),
        (dict(in_channels=1), "the channels of an image is 3 in the one and 1"),
        (dict(task={"name": "segmentation", "class_names": ["polyp"]}), "the class names is None"),
        (dict(intensity={"bits": 12}), "the intensity"),
    ):
        with pytest.raises(UserError, match=what):
            zoo.Ensemble([model(), model(**keys)], ["runs/1", "runs/2"])
    with pytest.raises(UserError, match="needs a model"):
        zoo.Ensemble([])
