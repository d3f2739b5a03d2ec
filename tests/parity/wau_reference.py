"""Window attention upsample (WAU), written for reading: float64 NumPy, one window, head and pixel at a time.

`upsample` is the definition that the fast version is tested against; 2-D and 3-D take the same path. Maps are
(C, *size) without a batch axis, weights a dict under the names that `shapes` lists.
"""
# ruff: noqa: B905

import math
from itertools import product

import numpy as np


def shapes(deep, skip, dim, out, heads, window, scale, query="skip", depth=1, ratio=4):
    """{weight name: shape}; `deep`, `skip`, `dim`, `out` count channels, `window`, `scale` have one entry per axis."""
    source, memory = (skip, deep) if query == "skip" else (deep, skip)
    if query == "skip":
        table = [r * (2 * w - 1) for w, r in zip(window, scale)]
    else:
        table = [2 * w * r - 1 for w, r in zip(window, scale)]
    linear = {"query_proj": (dim, source), "memory_proj": (dim, memory), "project": (out, dim), "shortcut": (out, deep)}
    found = {}
    for i in range(depth):
        linear |= {f"layers.{i}.{name}": (dim, dim) for name in ("query", "key", "value", "out")}
        linear |= {f"layers.{i}.mlp.0": (ratio * dim, dim), f"layers.{i}.mlp.2": (dim, ratio * dim)}
        norms = ("norm_query", "norm_memory", "norm_mlp")
        found |= {f"layers.{i}.{n}.{kind}": (dim,) for n in norms for kind in ("weight", "bias")}
        found[f"layers.{i}.bias_table"] = (heads, *table)
    found |= {f"{name}.weight": shape for name, shape in linear.items()}
    return found | {f"{name}.bias": shape[:1] for name, shape in linear.items()}


def linear(x, p, name):
    return x @ p[name + ".weight"].T + p[name + ".bias"]


def norm(x, p, name):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5) * p[name + ".weight"] + p[name + ".bias"]


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def interpolate(x, scale):
    """(*size, C) enlarged by the integers `scale`: linear along each axis, pixel centres, edges clamped."""
    for axis, r in enumerate(scale):
        n, lines = x.shape[axis], []
        for i in range(r * n):
            at = max((i + 0.5) / r - 0.5, 0.0)
            low = int(at)
            a, b = x.take(low, axis), x.take(min(low + 1, n - 1), axis)
            lines.append(a + (at - low) * (b - a))
        x = np.stack(lines, axis)
    return x


def attend(q, k, v, table, window, shift, scale, mask=None):
    """Multi-head attention of pixels `q` (*big, C) to cells `k`, `v` (*small, C); cell J holds pixels rJ to rJ + r - 1.

    Window m covers the cells [shift - window + m * window, shift + m * window) (shift 0: from 0 on) that lie on the map
    and all their pixels. `mask` (*small) is False on cells that nobody may see; with none left the result is 0.
    """
    small, heads = k.shape[:-1], len(table)
    width, out = q.shape[-1] // heads, np.zeros(q.shape)
    shift = [0 if n <= w else s for n, w, s in zip(small, window, shift)]
    starts = [range(s - w if s else 0, n, w) for n, w, s in zip(small, window, shift)]
    for start in product(*starts):
        low = [max(o, 0) for o in start]
        high = [min(o + w, n) for o, w, n in zip(start, window, small)]
        cells = [c for c in product(*map(range, low, high)) if mask is None or mask[c]]
        ends = [min(r * b, n) for r, b, n in zip(scale, high, q.shape)]
        pixels = product(*(range(r * a, b) for r, a, b in zip(scale, low, ends)))
        for i, h in product(pixels if cells else (), range(heads)):
            part = slice(h * width, (h + 1) * width)
            place = [tuple(a - r * b + r * (w - 1) for a, b, r, w in zip(i, j, scale, window)) for j in cells]
            score = [q[i][part] @ k[j][part] / math.sqrt(width) + table[h][at] for j, at in zip(cells, place)]
            weight = np.exp(np.array(score) - max(score))
            out[i][part] = sum(a * v[j][part] for a, j in zip(weight / weight.sum(), cells))
    return out


def upsample(deep, skip, p, window, scale, query="skip", depth=1, mask=None):
    """(C_deep, *small) and (C_skip, *big) to (C_out, *big), where small = ceil(big / scale) on every axis.

    query="skip": the pixels of `skip` ask the cells of `deep`. query="deep": the pixels of the enlarged `deep` ask the
    pixels of `skip`, in the same windows. Layers 0, 2, ... are not shifted, layers 1, 3, ... by window // 2 cells.
    `mask` belongs to the map that gives the keys.
    """
    big = tuple(map(slice, skip.shape[1:]))
    deep, skip = np.moveaxis(deep, 0, -1), np.moveaxis(skip, 0, -1)
    shift, ones = [w // 2 for w in window], [1] * len(scale)
    if query == "skip":
        x, memory, cell = linear(skip, p, "query_proj"), linear(deep, p, "memory_proj"), scale
    else:
        x, memory, cell = interpolate(linear(deep, p, "query_proj"), scale)[big], linear(skip, p, "memory_proj"), ones
        window, shift = [w * r for w, r in zip(window, scale)], [s * r for s, r in zip(shift, scale)]
    for i in range(depth):
        here = f"layers.{i}."
        asked, told = norm(x, p, here + "norm_query"), norm(memory, p, here + "norm_memory")
        q, k, v = linear(asked, p, here + "query"), linear(told, p, here + "key"), linear(told, p, here + "value")
        move = shift if i % 2 else [0] * len(scale)
        x = x + linear(attend(q, k, v, p[here + "bias_table"], window, move, cell, mask), p, here + "out")
        inner = gelu(linear(norm(x, p, here + "norm_mlp"), p, here + "mlp.0"))
        x = x + linear(inner, p, here + "mlp.2")
    y = interpolate(linear(deep, p, "shortcut"), scale)[big] + linear(x, p, "project")
    return np.moveaxis(y, -1, 0)
