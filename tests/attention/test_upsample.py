"""Attention Upsample: the definition's numbers in 2-D and 3-D, and the interpolation that it starts as."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.attention.upsample import MODES, AttentionUpsample
from zoo.errors import UserError

sys.path.insert(0, str(Path(__file__).parent.parent / "parity"))
from fill import fill, uniform
from wau_reference import shapes, upsample

DEEP, SKIP, WIDTH, OUT, HEADS = 6, 5, 8, 4, 2

CASES = [  # big, window, scale
    ((8, 12), (2, 3), (2, 2)),  # whole windows
    ((9, 14), (2, 3), (2, 2)),  # clipped ones, an odd height
    ((6, 6), (4, 4), (2, 2)),  # a window larger than the map
    ((1, 13), (3, 3), (2, 2)),  # one pixel high
    ((1, 1), (2, 2), (2, 2)),
    ((4, 6, 8), (2, 2, 2), (2, 2, 2)),
    ((3, 4, 5), (2, 2, 2), (1, 2, 2)),  # in 3-D with flat cells
]


def filled(window, scale, query="skip", depth=1) -> tuple[AttentionUpsample, dict[str, np.ndarray]]:
    """The module in float64 and the definition's weights, which it has; of a size that makes a softmax uneven."""
    weights = fill(shapes(DEEP, SKIP, WIDTH, OUT, HEADS, window, scale, query, depth), gain=2.0)
    options = dict(scale=scale, width=WIDTH, heads=HEADS, query=query, depth=depth)
    module = AttentionUpsample(DEEP, SKIP, OUT, window, **options).double().eval()
    module.load_state_dict({key: torch.from_numpy(value) for key, value in ours(weights).items()})
    return module, weights


def ours(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Query, key and value in one, and attention's weights under its name."""
    found = {}
    for key, value in weights.items():
        *path, name, kind = key.split(".")
        layer = ".".join(path)
        if name == "query":
            value = np.concatenate([weights[f"{layer}.{part}.{kind}"] for part in ("query", "key", "value")])
            found[f"{layer}.attention.query_key_value.{kind}"] = value
        elif name == "out":
            found[f"{layer}.attention.out.{kind}"] = value
        elif kind == "bias_table":
            found[f"{layer}.{name}.attention.bias_table".lstrip(".")] = value
        elif name not in ("key", "value"):
            found[key] = value
    return found


def maps(big, scale):
    small = tuple(-(-n // r) for n, r in zip(big, scale, strict=True))
    return uniform("deep", (DEEP, *small), -1, 1), uniform("skip", (SKIP, *big), -1, 1)


def run(module: AttentionUpsample, deep: np.ndarray, skip: np.ndarray, **options) -> np.ndarray:
    return module(torch.from_numpy(deep)[None], torch.from_numpy(skip)[None], **options)[0].detach().numpy()


@pytest.mark.parametrize(("query", "depth"), [("skip", 1), ("skip", 2), ("deep", 2)])
@pytest.mark.parametrize(("big", "window", "scale"), CASES)
def test_equals_the_definition(big, window, scale, query, depth):
    module, weights = filled(window, scale, query, depth)
    deep, skip = maps(big, scale)
    expected = upsample(deep, skip, weights, window, scale, query, depth)
    np.testing.assert_allclose(run(module, deep, skip), expected, rtol=0, atol=1e-10)
    with torch.no_grad():
        np.testing.assert_allclose(run(module, deep, skip), expected, rtol=0, atol=1e-10)
        np.testing.assert_allclose(
            run(module.float(), deep.astype("f4"), skip.astype("f4")), expected, rtol=0, atol=3e-4
        )


@settings(max_examples=15, deadline=None)
@given(st.data(), st.sampled_from(["skip", "deep"]))
def test_equals_the_definition_at_any_size_and_window(data, query):
    big = tuple(data.draw(st.integers(1, 9)) for _ in range(2))
    window = tuple(data.draw(st.integers(1, 4)) for _ in range(2))
    scale = tuple(data.draw(st.integers(1, 3)) for _ in range(2))
    module, weights = filled(window, scale, query, depth=2)
    deep, skip = maps(big, scale)
    expected = upsample(deep, skip, weights, window, scale, query, depth=2)
    np.testing.assert_allclose(run(module, deep, skip), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("query", ["skip", "deep"])
def test_masked_cells_equal_the_definition(query):
    (big, window, scale), module_weights = CASES[1], filled(CASES[1][1], CASES[1][2], query, 2)
    module, weights = module_weights
    deep, skip = maps(big, scale)
    memory = deep if query == "skip" else skip
    mask = uniform("mask", memory.shape[1:], 0, 1) > 0.4
    expected = upsample(deep, skip, weights, window, scale, query, 2, mask)
    np.testing.assert_allclose(run(module, deep, skip, mask=torch.from_numpy(mask)[None]), expected, atol=1e-10)


def test_rubbish_in_masked_lateral_pixels_reaches_neither_answer_nor_gradients():
    module, _ = filled((2, 3), (2, 2), "deep")
    deep, skip = (torch.from_numpy(t)[None] for t in maps((9, 14), (2, 2)))
    mask = torch.rand(1, 9, 14, generator=torch.Generator().manual_seed(0)) > 0.4
    clean = module(deep, skip, mask)
    spoiled = module(deep, skip.masked_fill(~mask[:, None], float("nan")), mask)
    torch.testing.assert_close(spoiled, clean, rtol=0, atol=0)
    spoiled.sum().backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("query", ["skip", "deep"])
@pytest.mark.parametrize(("big", "window", "scale"), CASES)
def test_a_new_one_is_the_interpolation_of_its_shortcut_cropped(big, window, scale, query):
    torch.manual_seed(0)
    module = AttentionUpsample(DEEP, SKIP, OUT, window, scale=scale, query=query).double()
    deep, skip = (torch.from_numpy(t)[None] for t in maps(big, scale))
    projected = module.shortcut(deep.movedim(1, -1)).movedim(-1, 1)
    plain = F.interpolate(projected, scale_factor=[float(r) for r in scale], mode=MODES[len(scale)])
    plain = plain[(..., *map(slice, big))]
    torch.testing.assert_close(module(deep, skip), plain, rtol=0, atol=1e-14)


def test_without_a_shortcut_it_starts_as_the_deep_map_enlarged():
    module = AttentionUpsample(OUT, SKIP, OUT, (2, 2), shortcut=False)
    deep = torch.rand(1, OUT, 3, 4)
    torch.testing.assert_close(module(deep, torch.rand(1, SKIP, 6, 8)), F.interpolate(deep, (6, 8), mode="bilinear"))


def test_a_deep_map_of_another_size_is_resized_first():
    module, _ = filled((2, 2), (2, 2))
    deep, skip = torch.rand(1, DEEP, 4, 4).double(), torch.rand(1, SKIP, 9, 9).double()
    fitting = F.interpolate(deep, (5, 5), mode="bilinear", align_corners=False)
    torch.testing.assert_close(module(deep, skip), module(fitting, skip), rtol=0, atol=0)


@pytest.mark.parametrize("query", ["skip", "deep"])
def test_every_parameter_learns(query):
    module, _ = filled((2, 3), (2, 2), query, depth=2)
    run_on = [torch.from_numpy(t)[None] for t in maps((9, 14), (2, 2))]
    module(*run_on).square().sum().backward()
    assert not [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]


def test_a_zero_start_is_left_in_the_first_step():
    module = AttentionUpsample(DEEP, SKIP, OUT, (2, 2))
    module(torch.rand(1, DEEP, 3, 3), torch.rand(1, SKIP, 6, 6)).square().sum().backward()
    assert module.project.weight.grad.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(query="both"), "no query 'both'; choose 'skip' or 'deep'"),
        (dict(depth=0), "depth is 0"),
        (dict(mlp_ratio=0), "mlp_ratio 0"),
        (dict(heads=3), "4 channels can't be shared among 3 heads"),
        (dict(scale=(2,)), r"scale is \(2,\)"),
        (dict(shortcut=False), "6 channels can't become 4 without a shortcut"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        AttentionUpsample(DEEP, SKIP, OUT, (2, 2), **options)
