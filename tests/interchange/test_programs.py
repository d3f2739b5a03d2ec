"""A model of any decoder and encoder is one program, for torch.compile and torch.export, with open sizes too."""

import shutil

import pytest
import torch
from torch import nn

from tests.interchange.parts import KINDS, create, decoders, each, pictures

CLOSED = {
    "windows": "cutting an open height and width into windows does not come to an end in minutes",
    "window_upsample": "an open height and width have no number of windows; one size with any batch exports",
}
FREE = torch.export.Dim.DYNAMIC

both = pytest.mark.parametrize(("decoder", "kind"), each(decoders(), list(KINDS)))


@pytest.fixture(autouse=True)
def _fresh():
    torch.manual_seed(0)
    torch._dynamo.reset()


class Raw(nn.Module):
    """A model's raw outputs, of inputs by place."""

    def __init__(self, model):
        super().__init__()
        self.model = model.eval()

    def forward(self, image, inputs):
        return self.model(image, **inputs)


def same(program, model, inputs, **tolerance):
    with torch.no_grad():
        torch.testing.assert_close(program(*inputs), Raw(model)(*inputs), **tolerance)


def exported_equals_eager(model, *, is_open):
    """With batch, height and width left open where asked, and then at other ones."""
    image, inputs = pictures(model, 2, 131, 203)
    some, all_of_them = {0: FREE}, {0: FREE, 2: FREE, 3: FREE}
    planes = {name: all_of_them if name in model.task.planes else some for name in inputs}
    shapes = {"image": all_of_them, "inputs": planes} if is_open else None
    with torch.no_grad():
        program = torch.export.export(Raw(model), (image, inputs), dynamic_shapes=shapes).module()
    for batch, height, width in [(1, 97, 130), (3, 64, 96)] if is_open else [(2, 131, 203)]:
        same(program, model, pictures(model, batch, height, width), rtol=0, atol=1e-5)


@both
def test_a_model_compiles_without_a_graph_break(decoder, kind):
    model = create(decoder, kind)
    program = torch.compile(Raw(model), backend="eager", fullgraph=True)
    same(program, model, pictures(model, 2, 70, 100), rtol=0, atol=1e-5)


@both
def test_a_model_exports(decoder, kind):
    exported_equals_eager(create(decoder, kind), is_open=False)


@pytest.mark.slow
@pytest.mark.parametrize("decoder", decoders())
def test_a_decoder_exports_with_open_batch_height_and_width(decoder):
    if decoder in CLOSED:
        pytest.skip(CLOSED[decoder])
    exported_equals_eager(create(decoder, "convolutional"), is_open=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_exports_with_open_batch_height_and_width(kind):
    if kind in CLOSED:
        pytest.skip(CLOSED[kind])
    exported_equals_eager(create("linear", kind), is_open=True)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")
@pytest.mark.parametrize(("decoder", "kind"), [("unet", "convolutional"), ("reverse_attention", "patch16")])
def test_inductors_program_equals_eager(decoder, kind):
    model = create(decoder, kind)
    same(torch.compile(Raw(model), fullgraph=True), model, pictures(model, 2, 70, 100), rtol=1e-4, atol=1e-4)
