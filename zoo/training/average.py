"""A running average of a model's weights, beside the ones that are trained."""

import copy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average(nn.Module):
    """An exponential moving average of `model`: its weights, and what its norms have counted.

    After optimiser step n each weight is d average + (1 - d) weight, d = min(decay, (1 + n) / (10 + n)): without that
    warm-up the average of a short training would be mostly its first weights (at 0.999, still 37 % after 1000 steps).
    Running statistics are averaged likewise; whole numbers are copied. Its state is the averaged model's, so that a
    checkpoint that holds this module resumes it.
    Source: Polyak and Juditsky 1992; the warm-up is that of TensorFlow's ExponentialMovingAverage (`num_updates`).
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False)  # without gradients: other processes wait for none
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the model's weights after optimiser step `step`, counted from 1."""
        own, theirs = _state(self.model), _state(model)
        pairs = [(a, b) for a, b in zip(own, theirs, strict=True) if a.is_floating_point()]
        average = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
        average([a for a, _ in pairs], [b for _, b in pairs], step)
        for a, b in zip(own, theirs, strict=True):
            if not a.is_floating_point():
                a.copy_(b)


def _state(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
