"""Window attention against MONAI's Swin module with the same weights, and against attention to the whole map.

python -m benchmarks.window [--threads 1] [--pairs 21]      MONAI's part needs pip install 'visionzoo[monai]'
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.pairs import grown, peak_memory, ratio, told
from zoo.attention.window import WindowAttention

SETTINGS = ((64, 2, 8, 64), (64, 2, 7, 56), (96, 3, 7, 56), (128, 4, 8, 32), (256, 8, 7, 14))  # Swin's and a U-Net's
DEEP, CHANNELS, HEADS = 64, 64, 2  # the global form: a deep map of 64x64 asked by 128x128 pixels
FORMS = {  # window and whether it has a bias
    "windows of 8 cells": (8, True),
    "one window of 64 cells": (DEEP, True),
    "the whole map without a bias": (None, False),
}


def twins(channels: int, heads: int, window: int, size: int) -> tuple[Any, Callable[[Tensor], Tensor], Any]:
    """Ours; MONAI's from map to map, with its partition and its way back; its module. All of the same weights."""
    from monai.networks.nets.swin_unetr import WindowAttention as Swin
    from monai.networks.nets.swin_unetr import window_partition, window_reverse

    torch.manual_seed(0)
    ours = WindowAttention(channels, heads, (window, window))
    swin = Swin(channels, heads, (window, window), qkv_bias=True)
    swin.qkv.load_state_dict(ours.query_key_value.state_dict())
    swin.proj.load_state_dict(ours.out.state_dict())
    swin.relative_position_bias_table.data = ours.bias_table.detach().flatten(1).T.contiguous()

    def theirs(x: Tensor) -> Tensor:
        windows = swin(window_partition(x, (window, window)), None)
        return window_reverse(windows, (window, window), (x.shape[0], size, size))

    return ours, theirs, swin


def beside_monai(pairs: int) -> None:
    try:
        import monai
    except ImportError:
        print("MONAI is not installed, so its Swin attention is left out; pip install 'visionzoo[monai]' adds it.")
        return
    print(f"monai {monai.__version__}")
    for setting in SETTINGS:
        compare(*setting, pairs)


def compare(channels: int, heads: int, window: int, size: int, pairs: int) -> None:
    ours, theirs, swin = twins(channels, heads, window, size)
    x, batch = torch.rand(1, size, size, channels), torch.rand(2, size, size, channels)
    name = f"{channels} channels, {heads} heads, windows of {window} on {size}x{size}"
    with torch.inference_mode():
        off = (ours(x) - theirs(x)).abs().max().item()
        if off > 1e-5:
            raise SystemExit(f"{name}: not the same function, off by {off:.1e}")
        print(f"{name}, off by {off:.1e}")
        print(told("  eval", ratio(lambda: ours(x), lambda: theirs(x), pairs, 5), 1.0))
        if hasattr(swin, "use_flash_attention"):  # an option since monai 1.6, for inference alone
            swin.use_flash_attention = True
            print(plain("  eval, its use_flash_attention", ratio(lambda: ours(x), lambda: theirs(x), pairs, 5)))
    figures = ratio(lambda: ours(batch).mean().backward(), lambda: theirs(batch).mean().backward(), pairs, 2)
    print(plain("  training step, batch 2", figures), flush=True)


def plain(what: str, figures: dict[str, float]) -> str:
    """A line of a result that has no target."""
    return told(what, figures, 1.0).split("; target")[0]


def form(name: str) -> Callable[[], Tensor]:
    """One of FORMS, run once for each call."""
    torch.manual_seed(0)
    window, position = FORMS[name]
    sides = None if window is None else (window, window)
    module = WindowAttention(CHANNELS, HEADS, sides, scale=(2, 2), position=position).eval()
    pixels, cells = torch.rand(1, 2 * DEEP, 2 * DEEP, CHANNELS), torch.rand(1, DEEP, DEEP, CHANNELS)

    def run() -> Tensor:
        with torch.inference_mode():
            return module(pixels, cells)

    return run


def memory(name: str) -> str:
    run = form(name)
    warm = WindowAttention(CHANNELS, HEADS, (8, 8), scale=(2, 2))
    with torch.inference_mode():  # what the libraries load when they are first used is nobody's
        warm(torch.rand(1, 16, 16, CHANNELS), torch.rand(1, 8, 8, CHANNELS))
    return grown(run)


def beside_global(pairs: int) -> None:
    windows, whole, bare = FORMS
    peak = {
        name: statistics.median(peak_memory("benchmarks.window", "--memory", name)["MiB"] for _ in range(3))
        for name in FORMS
    }
    share = peak[windows] / peak[whole]
    print(told(f"{windows} / {whole}, eval", ratio(form(windows), form(whole), max(pairs // 4, 3), 1), 1 / 20))
    print(
        f"  peak memory, median of 3 processes: {peak[windows]:.0f} / {peak[whole]:.0f} MiB = {share:.3f};"
        f" target <= 0.1: {'met' if share <= 0.1 else 'MISSED'}"
    )
    # without a bias the fused kernel never holds a score, so there is no memory to gain
    print(plain(f"{windows} / {bare}, eval", ratio(form(windows), form(bare), max(pairs // 4, 3), 1)))
    print(f"  peak memory: {peak[windows]:.0f} / {peak[bare]:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=21)
    parser.add_argument("--memory", choices=FORMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory:
        print(memory(args.memory))
        return
    beside_monai(args.pairs)
    beside_global(args.pairs)


if __name__ == "__main__":
    main()
