"""MS-Dual-Guided's decoder against a plain twin of the official one, same weights: time and FLOPs in eval, memory.

    python -m benchmarks.self_guided [--threads 1] [--pairs 15] [--side 512]

The twin (benchmarks/twin_self_guided.py) passes the parity vectors and has the official FLOPs; it is checked first.
Both get the features of ResNeXt-101 and give the map at the image's size (256x256), or a training step's gradients at
--side.
"""

import argparse

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import zoo
from benchmarks.pairs import grown, peak_memory, ratio, told
from benchmarks.twin_self_guided import STAGES, Twin, TwinDecoder, check, loss, official
from zoo.decoders import SelfGuided
from zoo.layers import resize
from zoo.tasks import Segmentation

SIZE = 256


def decoders() -> tuple[torch.nn.Module, Twin]:
    """Ours and the twin, in eval mode, with the same drawn weights."""
    state, twin = official(), Twin().double()
    twin.load_state_dict(state)
    ours = zoo.create_model("ms_dual_guided")
    ours.load_state_dict(zoo.convert_weights("ms_dual_guided", state))
    return ours.decoder.float().eval(), twin.float().eval()


def features(side: int, *, learned: bool = False) -> list[Tensor]:
    torch.manual_seed(0)
    return [
        torch.rand(1, c, side // s, side // s, requires_grad=learned)
        for c, s in zip(STAGES.values(), (4, 8, 16, 32), strict=True)
    ]


def memory(which: str, side: int) -> str:
    """Peak memory of one training step of one decoder; nothing else was built in this process."""
    given, image = features(side, learned=True), torch.zeros(1, 1, side, side)
    label = torch.zeros(1, side, side, dtype=torch.int64)
    if which == "twin":
        twin = TwinDecoder()
        return grown(lambda: loss(twin(given, image), label).backward())
    ours, task = SelfGuided(tuple(STAGES.values()), 5), Segmentation(5)

    def step() -> None:
        outputs = ours(given, image)
        outputs["logits"] = resize(outputs["logits"], (side, side))
        task.loss(outputs, {"mask": label}, {"ce": 1.0}, decoder_weights=ours.loss_weights)["loss"].backward()

    return grown(step)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--memory", choices=("ours", "twin"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory:
        print(memory(args.memory, args.side))
        return
    check()
    ours, twin = decoders()
    given, image = features(SIZE), torch.zeros(1, 1, SIZE, SIZE)

    def run_ours() -> Tensor:
        return resize(ours(given, image)["logits"], (SIZE, SIZE))

    def run_twin() -> Tensor:
        return TwinDecoder.forward(twin, given, image)

    with torch.inference_mode():
        off = (run_ours() - run_twin()).abs().max()
        counts = []
        for run in (run_ours, run_twin):  # the plain kernel, since of the fused one on the CPU no FLOPs are counted
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                run()
            counts.append(counter.get_total_flops() / 1e9)
        print(f"off by {off:.1e} (map up to {run_twin().abs().max():.1f}); {counts[0]:.1f} / {counts[1]:.1f} GFLOPs")
        print(told(f"decoder, eval, {args.threads} thread(s)", ratio(run_ours, run_twin, args.pairs), 0.9))
    given_on = ("--threads", str(args.threads), "--side", str(args.side))
    a, b = (peak_memory("benchmarks.self_guided", "--memory", w, *given_on)["MiB"] for w in ("ours", "twin"))
    print(f"training step's peak memory at {args.side}x{args.side}: {a:.0f} / {b:.0f} MiB = {a / b:.3f}; target <= 0.4")


if __name__ == "__main__":
    main()
