"""Tiles: where they lie, how they are weighed, and that what is blended is what the whole image gives."""

import importlib.util
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from zoo.errors import UserError
from zoo.inference.answer import WORK
from zoo.inference.memory import MARGIN, Counted
from zoo.inference.predict import predict
from zoo.inference.tiles import Tiling, blend

_spec = importlib.util.spec_from_file_location("local_net", Path(__file__).with_name("local.py"))
local = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(local)
Local, Task = local.Local, local.Task

SIZES = ((411, 530), (128, 700), (640, 190), (512, 512))


def photo(size, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, channels), np.uint8)


def taken(call):
    with Counted() as counted:
        call()
    return counted.peak


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    """No image is so small that its cost isn't counted."""
    monkeypatch.setattr("zoo.inference.answer.MOST", 2**30)


@pytest.mark.parametrize("length", [100, 128, 129, 400, 411, 1000, 4097])
@pytest.mark.parametrize(("side", "grid"), [(128, 32), (160, 32), (448, 224), (128, 8), (1024, 64)])
def test_tiles_cover_a_side_on_the_grid_and_their_weights_sum_to_one(length, side, grid):
    tiling = Tiling(side, grid)
    tiles = tiling.along(length)
    assert tiles[0].start == 0
    assert tiles[-1].stop == length
    assert all(tile.start % grid == 0 and tile.stop - tile.start <= side for tile in tiles)
    assert all(a.stop - b.start >= tiling.overlap for a, b in itertools.pairwise(tiles))
    total = torch.zeros(length)
    for tile, weight in zip(tiles, tiling.weights(tiles), strict=True):
        total[tile] += weight
        assert weight.min() >= 0
        margin = tiling.margin
        assert tile.start == 0 or weight[:margin].max() == 0
        assert tile.stop == length or weight[-margin:].max() == 0
    torch.testing.assert_close(total, torch.ones(length))


@pytest.mark.parametrize("size", SIZES)
def test_tiled_is_whole_for_a_net_that_looks_no_further_than_the_margin(size):
    net, image = Local(grid=32), photo(size)
    whole, tiled = predict(net, image, {}), predict(net, image, {}, memory="8MB")
    assert max(max(shape[2:]) for shape in net.seen[-2:]) < max(size)
    np.testing.assert_allclose(tiled.probabilities, whole.probabilities, atol=1e-6)
    assert (tiled.mask != whole.mask).mean() < 1e-4


def test_without_alignment_tiled_would_not_be_whole():
    net, image = Local(grid=33), photo((411, 530))
    whole, tiled = predict(net, image, {}), predict(net, image, {}, memory="8MB")
    assert np.abs(tiled.probabilities - whole.probabilities).max() > 1e-3


@pytest.mark.parametrize("pixelwise", [True, False])
def test_planes_are_tiled_with_the_image_and_the_whole_is_answered_where_pixels_are_not_alone(pixelwise):
    net = Local(Task({"hole": 1}, pixelwise=pixelwise), grid=32)
    image, hole = photo((411, 530)), photo((411, 530), 1, seed=1)
    whole = predict(net, image, {"hole": hole})
    tiled = predict(net, image, {"hole": hole}, memory="16MB")
    assert max(net.seen[-1][2:]) < 411
    np.testing.assert_allclose(tiled.probabilities, whole.probabilities, atol=1e-6)


def test_the_first_answer_of_rows_is_given_to_the_task_with_the_inputs_of_those_rows():
    net = Local(Task({"hole": 1}), grid=32)
    image, hole = photo((411, 530)), photo((411, 530), 1, seed=1)
    given = []

    def finish(outputs, inputs, threshold=None):
        given.append({name: x.clone() for name, x in inputs.items()})
        return net.task.answer(outputs, threshold, inputs)

    net.finish = finish
    predict(net, image, {"hole": hole}, memory="8MB")
    rows = [x["hole"] for x in given if x["hole"].shape[-1] == 530]
    assert len(rows) > 1
    np.testing.assert_array_equal(torch.cat(rows, dim=-2)[0, 0].numpy(), hole[..., 0].astype(np.float32) / 255)


def test_what_is_told_as_the_smallest_budget_is_enough():
    net, image = Local(grid=32), photo((411, 530))
    with pytest.raises(UserError, match="smallest tiles of an image of 411x530 need") as error:
        predict(net, image, {}, memory=1000)
    enough = re.search(r"memory='(\w+)'", str(error.value))[1]
    assert predict(net, image, {}, memory=enough).mask.shape == (411, 530)
    assert max(net.seen[-1][2:]) <= 128


def test_a_file_that_does_not_fit_is_named(tmp_path):
    Image.fromarray(photo((70, 90))).save(tmp_path / "small.png")
    Image.fromarray(photo((300, 90))).save(tmp_path / "large.png")
    with pytest.raises(UserError, match=r"^\S+small\.png of 70x90 needs \w+, memory is 1MB; give"):
        predict(Local(grid=32), tmp_path / "small.png", {}, memory="1MB")
    with pytest.raises(
        UserError, match=r"^The smallest tiles of \S+large\.png of 300x90 need \w+, memory is 1MB; give"
    ):
        predict(Local(grid=32), tmp_path / "large.png", {}, memory="1MB")


@pytest.mark.parametrize(
    ("net", "inputs", "why"),
    [
        (Local(grid=None), {}, "resizes the whole image"),
        (Local(Task(prompts=("points",))), {"points": np.zeros((3, 2), np.float32)}, "an image with `points`"),
        (Local(Task(pixelwise=False), more=("score",)), {}, "needs `score` of the whole image"),
    ],
)
def test_what_cannot_be_tiled_is_told_with_what_it_needs(net, inputs, why):
    image = photo((411, 530))
    with pytest.raises(UserError, match=why) as error:
        predict(net, image, inputs, memory="8MB")
    needs = re.search(r"needs about (\w+)", str(error.value))[1]
    assert predict(net, image, inputs, memory=needs).mask.shape == (411, 530)
    assert predict(net, image, inputs).mask.shape == (411, 530)  # nobody named a budget


def test_an_image_that_does_not_fit_is_left_out_where_failures_are_collected():
    failed = []
    images = [photo((60, 60)), photo((411, 530)), photo((60, 60))]
    found = predict(Local(grid=None), iter(images), {}, memory="8MB", failed=failed, batch_size=2)
    assert [prediction.mask.shape for prediction in found] == [(60, 60), (60, 60)]
    assert len(failed) == 1


def test_images_and_tiles_are_computed_together_as_far_as_the_budget_allows():
    net, images = Local(grid=32), [photo((200, 200), seed=i) for i in range(5)]
    one_by_one = [predict(net, image, {}) for image in images]
    together = predict(net, images, {}, memory=int(6e6 * MARGIN), batch_size=5)
    assert 1 < net.seen[-2][0] < 5
    for a, b in zip(one_by_one, together, strict=True):
        np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-6)


@pytest.fixture
def brought():
    """A model that brings every image to 256x256."""
    decoder = {"name": "unet", "widths": [16, 16, 8, 8, 8]}
    return zoo.create_model(encoder="resnet10t", decoder=decoder, num_classes=2, input_size=[256, 256]).eval()


def test_what_an_image_takes_that_is_brought_to_a_size_is_taken_by_each_of_a_batch(brought):
    sizes, net = [], brought.ready(torch.device("cpu"))
    images = [photo((64, 64), seed=i) for i in range(6)]
    with torch.inference_mode():
        one, two = (taken(lambda n=n: net(torch.rand(n, 3, 64, 64))) for n in (1, 2))
    assert two > 1.9 * one
    net.register_forward_hook(lambda module, args, out: sizes.append(len(args[0])))
    brought.predict(images, batch_size=6, memory=int(2.6 * MARGIN / WORK * one))
    assert sizes[-3:] == [2, 2, 2]


def test_a_small_image_that_is_brought_to_a_large_size_is_counted_as_large(brought, monkeypatch):
    monkeypatch.setattr("zoo.inference.answer.MOST", 2**13)
    with pytest.raises(UserError, match="needs about"):
        brought.predict(photo((8, 8)), memory="4MB")  # 8 KiB for each of its own pixels is 0.5 MB


def test_what_is_free_is_looked_up_when_the_weights_are_there(monkeypatch):
    net, order = Local(grid=32), []
    ready = net.ready
    net.ready = lambda device: (order.append("ready"), ready(device))[1]
    monkeypatch.setattr("zoo.inference.answer.budget", lambda device: order.append("budget") or 10**9)
    predict(net, photo((60, 60)), {})
    assert order[:2] == ["ready", "budget"]


@pytest.mark.parametrize("batch", [2, 3, 100])
def test_tiles_of_one_width_are_computed_together(batch):
    net, x = Local().eval(), torch.rand(1, 3, 200, 611)

    def rows(batch):
        with torch.inference_mode():
            bands = blend(net, ["logits"], lambda row: {"image": x[..., row, :]}, (200, 611), Tiling(128, 32, batch))
            return torch.cat([outputs["logits"] for _, outputs, _ in bands], dim=-2)

    together = rows(batch)
    assert max(shape[0] for shape in net.seen) == min(batch, 6)
    torch.testing.assert_close(together, rows(1))


def test_models_tile_on_the_grid_of_their_encoder():
    assert zoo.create_model("unet", encoder="resnet10t").grid == 32
    assert zoo.create_model("linear", encoder="vit_tiny_patch16_224").grid == 32
    assert zoo.create_model("pranet").grid is None  # its input_size


def test_a_model_in_tiles_answers_close_to_the_whole():
    torch.manual_seed(0)
    model = zoo.create_model("unet", encoder="resnet10t", num_classes=2).eval()
    image = photo((352, 416))
    whole, tiled = model.predict(image), model.predict(image, memory="60MB")
    assert np.abs(whole.probabilities - tiled.probabilities).mean() < 0.02
    assert np.abs(whole.probabilities - tiled.probabilities).max() > 0
