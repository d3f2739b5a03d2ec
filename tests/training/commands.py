"""Commands in processes of their own: forked, so that a real kill costs no imports; one, or several as torchrun has."""

import multiprocessing
import os
import signal
import socket
import traceback

import pytest
import torch

from zoo.cli import main
from zoo.training.module import Training


def command(folder, *words, before=lambda patch: None, processes=1):
    """The exit code of `zoo WORDS` in `folder`, after `before` has patched something; of several processes, a list."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def child(rank):
        try:
            if processes > 1:
                launched = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
                launched |= {"GROUP_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": 1}
                os.environ |= {key: str(value) for key, value in launched.items()}
            os.chdir(folder)
            torch.set_num_threads(1)
            patch = pytest.MonkeyPatch()
            for figure in ("draw_curves", "draw_samples"):  # half of such a small run's time
                patch.setattr(f"zoo.training.record.{figure}", lambda *_: None)
            before(patch)
            code = main(words)
        except BaseException:
            traceback.print_exc()
            code = 99
        os._exit(code)

    children = [multiprocessing.get_context("fork").Process(target=child, args=(rank,)) for rank in range(processes)]
    for process in children:
        process.start()
    for process in children:
        process.join(120)
        process.kill()  # one that waits for another
        process.join()
    codes = [process.exitcode for process in children]
    return codes if processes > 1 else codes[0]


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def at_step(step, do=kill):
    """What patches a training so that it is hit in the midst of a step, counted from 0."""

    def patch(monkeypatch):
        real = Training.training_step

        def training_step(self, batch, index):
            if self.trainer.global_step == step:
                do()
            return real(self, batch, index)

        monkeypatch.setattr(Training, "training_step", training_step)

    return patch
