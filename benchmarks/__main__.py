"""All figures that need no data, about half an hour on two cores.

CamVid's: `python -m benchmarks.table`; what takes 16 GB of memory: `python -m benchmarks.self_guided`.
"""

from benchmarks import demo, export, frozen, loop, pranet, pyramid, startup, tiles, unet, window

for part in (startup, pyramid, unet, pranet, window, loop, frozen, tiles, export, demo):
    print(f"== {part.__name__}", flush=True)
    part.main()
