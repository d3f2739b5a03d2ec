"""PraNet's decoder in eval at 352x352 against a plain twin of the official one, same weights: time, FLOPs, memory.

    python -m benchmarks.pranet [--threads 1] [--pairs 41]

The twin (benchmarks/twin_pranet.py) passes the parity vectors and has the official FLOPs; it is checked first. Both get
the encoder's features and give the map at the image's size.
"""

import argparse
import json
import statistics

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import zoo
from benchmarks.pairs import grown, peak_memory, ratio, told
from benchmarks.twin_pranet import VECTORS, Twin, TwinDecoder, check
from zoo.layers import resize

SIZE = 352


def decoders() -> tuple[torch.nn.Module, Twin]:
    """Ours and the twin, in eval mode, with the same drawn weights."""
    from fill import fill  # the vectors' folder is on the path once the twin was checked

    shapes = json.loads((VECTORS / "pranet.keys.json").read_text())
    state = {key: torch.from_numpy(value) for key, value in fill(shapes).items()}
    twin = Twin().double()
    twin.load_state_dict(state)
    ours = zoo.create_model("pranet")
    ours.load_state_dict(zoo.convert_weights("pranet", state))
    return ours.decoder.float().eval(), twin.float().eval()


def memory(which: str) -> str:
    """Peak memory of one decoder's forward; nothing else was built in this process."""
    given, image = features(), torch.zeros(1, 3, SIZE, SIZE)
    with torch.inference_mode():
        if which == "ours":
            decoder = zoo.create_model("pranet").decoder.eval()
            return grown(lambda: resize(decoder(given, image)["logits"], (SIZE, SIZE)))
        twin = TwinDecoder().eval()
        return grown(lambda: twin(given)[-1])


def features() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.rand(1, c, SIZE // s, SIZE // s) for c, s in ((512, 8), (1024, 16), (2048, 32))]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=41)
    parser.add_argument("--memory", choices=("ours", "twin"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory:
        print(memory(args.memory))
        return
    check()
    ours, twin = decoders()
    given, image = features(), torch.zeros(1, 3, SIZE, SIZE)

    def run_ours() -> Tensor:
        return resize(ours(given, image)["logits"], (SIZE, SIZE))

    def run_twin() -> Tensor:
        return TwinDecoder.forward(twin, given)[-1]

    with torch.inference_mode():
        off = (run_ours() - run_twin()).abs().max()
        with FlopCounterMode(display=False) as counter:
            run_ours()
        gflops = counter.get_total_flops() / 1e9
        print(f"off by {off:.1e} (maps up to {run_twin().abs().max():.1f}); ours {gflops:.3f} GFLOPs")
        print(told(f"decoder, eval, {args.threads} thread(s)", ratio(run_ours, run_twin, args.pairs), 0.85))
    threads = ("--threads", str(args.threads))
    a, b = (
        statistics.median(peak_memory("benchmarks.pranet", "--memory", which, *threads)["MiB"] for _ in range(5))
        for which in ("ours", "twin")
    )
    print(f"decoder peak memory, median of 5 processes: {a:.1f} / {b:.1f} MiB = {a / b:.3f}; target <= 1")


if __name__ == "__main__":
    main()
