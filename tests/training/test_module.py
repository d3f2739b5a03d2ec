import math

import pytest
import torch
from torch import nn

from zoo.errors import UserError
from zoo.training import module as modules
from zoo.training.keys import Optimizer, Scheduler
from zoo.training.module import Training, create_optimizer, create_schedule


def rates(scheduler, steps, *, lr=1.0):
    """The lr of every step (or epoch) as a torch optimiser sees it."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    factor, _ = create_schedule(scheduler, steps=steps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_the_step_schedule_falls_from_the_initial_rate_every_few_epochs():
    scheduler = Scheduler(name="step", every=3, gamma=0.1)
    assert create_schedule(scheduler, steps=100)[1] == "epoch"
    assert rates(scheduler, 9) == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01])


def test_cosine_and_poly_fall_with_every_step_to_their_end():
    assert rates(Scheduler(name="cosine"), 4) == pytest.approx(
        [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    )
    assert rates(Scheduler(name="poly", power=0.9), 4) == pytest.approx([1, 0.75**0.9, 0.5**0.9, 0.25**0.9])
    factor, counted = create_schedule(Scheduler(name="cosine", final=0.1), steps=10)
    assert counted == "step"
    assert factor(10) == pytest.approx(0.1)
    assert factor(11) == pytest.approx(0.1)


def test_the_warm_up_rises_in_a_straight_line_to_the_full_rate_and_takes_at_most_half():
    assert rates(Scheduler(name="constant", warmup=3), 6) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    assert rates(Scheduler(name="constant", warmup=50), 4) == pytest.approx([1 / 3, 2 / 3, 1, 1])


def test_without_a_known_end_only_schedules_without_one_serve():
    assert create_schedule(Scheduler(name="constant"), steps=math.inf)[0](10**9) == 1
    assert create_schedule(Scheduler(name="step"), steps=math.inf)[1] == "epoch"
    for scheduler in (Scheduler(name="cosine"), Scheduler(name="poly"), Scheduler(name="constant", warmup=3)):
        with pytest.raises(UserError, match=r"needs the number of steps.*trainer\.max_epochs"):
            create_schedule(scheduler, steps=math.inf)


@pytest.mark.parametrize(("own", "others"), [(math.nan, 0), (1.0, 1), (math.inf, 1)])
def test_a_loss_that_is_not_finite_on_one_process_stops_all_of_them(monkeypatch, own, others):
    module = Training(nn.Linear(1, 1), None)
    module._names, module._sums, module._last = ["loss"], torch.tensor([2.0, 4.0]), torch.tensor(own)

    def all_reduce(values):
        values[-1] += others

    monkeypatch.setattr(modules, "processes", lambda: (0, 2))
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(Training, "current_epoch", 2)
    with pytest.raises(UserError, match="infinite or not a number at the end of epoch 3"):
        module.reduce_terms()
    module._last, others = torch.tensor(1.0), 0
    module.reduce_terms()
    assert module.terms == {"loss": 0.5}


def test_the_step_schedule_has_no_warm_up():
    with pytest.raises(UserError, match="warmup is 5"):
        create_schedule(Scheduler(name="step", warmup=5), steps=10)


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", torch.optim.AdamW), ("Adam", torch.optim.Adam), ("SGD", torch.optim.SGD)]
)
def test_optimisers_are_torchs_by_name_in_any_case(name, kind):
    optimizer = create_optimizer([nn.Parameter(torch.zeros(1))], Optimizer(name=name, lr=0.5, weight_decay=0.25))
    assert type(optimizer) is kind
    assert optimizer.defaults["lr"] == 0.5
    assert optimizer.defaults["weight_decay"] == 0.25


def test_wrong_optimisers_are_sentences():
    parameters = [nn.Parameter(torch.zeros(1))]
    with pytest.raises(UserError, match=r"'admaw'.*did you mean 'adamw'"):
        create_optimizer(parameters, Optimizer(name="admaw"))
    with pytest.raises(UserError, match=r"'adamw' does not take.*momentum"):
        create_optimizer(parameters, Optimizer(name="adamw", momentum=0.9))
    with pytest.raises(UserError, match="no trainable parameters"):
        create_optimizer([], Optimizer())
