"""What holds for every decoder and every encoder: config in, config out; batches; half precision; gradients."""

import json

import pytest
import torch

import zoo
from tests.interchange.parts import KINDS, create, decoders, each, models, pictures, tensors

both = pytest.mark.parametrize(("decoder", "kind"), each(decoders(), list(KINDS)))
WITHOUT_GRADIENT: dict[str, str] = {}  # the start of a parameter's name -> why it is trained by nothing


@both
def test_the_config_is_json_and_rebuilds_the_model(decoder, kind):
    model = create(decoder, kind).eval()
    again = zoo.create_model(**json.loads(json.dumps(model.config))).eval()
    assert again.config == model.config
    assert shapes(again) == shapes(model)
    again.load_state_dict(model.state_dict())
    image, inputs = pictures(model, 1, 40, 56)
    with torch.no_grad():
        for one, other in zip(tensors(again(image, **inputs)), tensors(model(image, **inputs)), strict=True):
            assert torch.equal(one, other)


@both
def test_an_image_has_the_same_answer_alone_and_in_a_batch(decoder, kind):
    model = create(decoder, kind).eval()
    image, inputs = pictures(model, 3, 50, 70)
    with torch.no_grad():
        together = model(image, **inputs)
        alone = model(image[1:2], **{name: value[1:2] for name, value in inputs.items()})
    for name in model.task.maps:
        torch.testing.assert_close(together[name][1:2], alone[name], rtol=1e-5, atol=1e-5)


@both
def test_half_precision_gives_numbers(decoder, kind):
    model = create(decoder, kind).eval()
    image, inputs = pictures(model, 1, 50, 70)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(image, **inputs)
        model.to(torch.bfloat16)
        half = model(image.bfloat16(), **{name: value.bfloat16() for name, value in inputs.items()})
    assert all(value.isfinite().all() for value in tensors([mixed, half]))
    assert all(half[name].dtype == torch.bfloat16 for name in model.task.maps)


@pytest.mark.parametrize("frozen", [False, 2, True])
@both
def test_every_parameter_that_is_not_frozen_gets_a_finite_gradient(decoder, kind, frozen):
    model = create(decoder, kind, frozen=frozen).train()
    image, inputs = pictures(model, 2, 64, 96)
    outputs = list(tensors(model(image, **inputs)))
    sum(value.square().mean() for value in outputs).backward()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None, name
        elif not name.startswith(tuple(WITHOUT_GRADIENT)):
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    trained = [parameter.requires_grad for parameter in model.encoder.net.parameters()]
    assert any(trained) if not frozen else not (any(trained) if frozen is True else all(trained))
    assert all(parameter.requires_grad for parameter in model.decoder.parameters())


@pytest.mark.parametrize("name", models())
def test_a_published_model_comes_back_from_its_config(name):
    with torch.device("meta"):
        model = zoo.create_model(name)
        again = zoo.create_model(**json.loads(json.dumps(model.config)))
    assert again.config == model.config
    assert shapes(again) == shapes(model)


def shapes(model):
    return {key: tuple(value.shape) for key, value in model.state_dict().items()}
