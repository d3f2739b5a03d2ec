import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from zoo.errors import UserError
from zoo.training import loader as loaders
from zoo.training.loader import EpochSampler, Rates, begin, eval_loader, train_loader


class Numbers(Dataset):
    """Sample i of epoch e: an image full of one number, drawn from (seed, e, i) as the folder data set draws."""

    def __init__(self, sizes, soft=False):
        self.sizes, self.soft = sizes, soft

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, key):
        epoch, index = key
        height, width = self.sizes[index]
        value = float(np.random.default_rng([7, epoch, index]).random())
        image = torch.full((3, height, width), value)
        mask = torch.zeros(height, width, dtype=torch.int64)
        mask[: height // 2] = 1
        return {"image": image, "mask": mask[None].float() if self.soft else mask, "path": f"{index}"}


def passes(loader, epochs):
    """[(path, drawn number) for every sample] of each epoch."""
    seen = []
    for epoch in epochs:
        loader.batch_sampler.sampler.set_epoch(epoch)
        seen.append([(p, v) for b in loader for p, v in zip(b["path"], b["image"][:, 0, 0, 0].tolist(), strict=True)])
    return seen


def test_a_samples_draws_depend_on_seed_epoch_and_sample_not_on_workers():
    data = Numbers([(8, 8)] * 10)
    alone = passes(train_loader(data, batch_size=4, seed=3), [0, 1])
    with_workers = passes(train_loader(data, batch_size=4, seed=3, num_workers=2), [0, 1])
    assert alone == with_workers
    assert alone[0] != alone[1]
    assert dict(alone[0])["4"] != dict(alone[1])["4"]


def test_any_epoch_can_be_the_first_one_asked_for():
    data = Numbers([(8, 8)] * 10)
    both = passes(train_loader(data, batch_size=4, seed=3), [0, 1])
    assert passes(train_loader(data, batch_size=4, seed=3), [1]) == both[1:]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("rates", [None, [1, 2, 3]])
def test_a_pass_can_begin_in_the_midst_of_an_epoch_and_the_next_is_whole(workers, rates):
    data = Numbers([(32, 32)] * 10)
    whole = passes(train_loader(data, batch_size=4, seed=3, rates=rates), [1, 2])
    loader = train_loader(data, batch_size=4, seed=3, rates=rates, num_workers=workers)
    begin(loader, 1, 2)
    assert len(loader) == 3 * len(rates or [1])
    # Lightning sets the epoch only after it has asked for the first batches
    first = [(p, v) for b in loader for p, v in zip(b["path"], b["image"][:, 0, 0, 0].tolist(), strict=True)]
    assert first == whole[0][8:]
    assert passes(loader, [2]) == whole[1:]


def test_order_is_a_permutation_that_changes_with_epoch_and_seed():
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        sampler = EpochSampler(50, seed=seed)
        sampler.set_epoch(epoch)
        keys = list(sampler)
        assert {e for e, _ in keys} == {epoch}
        orders.append([i for _, i in keys])
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]


@pytest.mark.parametrize(("size", "world"), [(10, 3), (9, 3), (3, 3)])
def test_processes_train_on_equally_many_and_evaluate_each_sample_once(monkeypatch, size, world):
    training, evaluation = [], []
    for rank in range(world):
        monkeypatch.setattr(loaders, "processes", lambda rank=rank: (rank, world))
        sampler, original = EpochSampler(size), EpochSampler(size, shuffle=False)
        training.append([i for _, i in sampler])
        evaluation.append([i for _, i in original])
        assert len(sampler) == len(training[-1])
        assert len(original) == len(evaluation[-1])
    assert len({len(indices) for indices in training}) == 1
    assert {i for indices in training for i in indices} == set(range(size))
    assert sorted(i for indices in evaluation for i in indices) == list(range(size))


def test_fewer_images_than_processes_are_trained_on_by_all_but_not_measured(monkeypatch):
    for rank in range(3):
        monkeypatch.setattr(loaders, "processes", lambda rank=rank: (rank, 3))
        assert len(list(EpochSampler(2))) == 1
        for ask in (len, list):
            with pytest.raises(UserError, match=r"has 2 image\(s\), fewer than the 3 processes"):
                ask(EpochSampler(2, shuffle=False))


def test_a_single_sample_left_over_is_dropped_on_every_process(monkeypatch):
    loader = train_loader(Numbers([(8, 8)] * 10), batch_size=4)  # built before the processes know of each other
    for rank in range(2):
        monkeypatch.setattr(loaders, "processes", lambda rank=rank: (rank, 2))
        assert [len(b["path"]) for b in loader] == [4]  # of 5 samples
        assert len(loader) == 1


def test_global_batches_are_the_same_for_any_number_of_processes(monkeypatch):
    alone = [i for _, i in EpochSampler(12, seed=5)]
    shares = []
    for rank in range(2):
        monkeypatch.setattr(loaders, "processes", lambda rank=rank: (rank, 2))
        shares.append([i for _, i in EpochSampler(12, seed=5)])
    for start in range(0, 6, 3):
        assert {*shares[0][start : start + 3], *shares[1][start : start + 3]} == {*alone[2 * start : 2 * start + 6]}


def test_the_last_batch_is_kept_unless_it_is_one_sample():
    assert [len(b["path"]) for b in train_loader(Numbers([(8, 8)] * 10), batch_size=4)] == [4, 4, 2]
    assert [len(b["path"]) for b in train_loader(Numbers([(8, 8)] * 9), batch_size=4)] == [4, 4]
    assert [len(b["path"]) for b in train_loader(Numbers([(8, 8)] * 3), batch_size=1)] == [1, 1, 1]


def test_rates_hand_out_each_batch_at_three_sizes_in_order():
    plain = train_loader(Numbers([(352, 352)] * 3, soft=True), batch_size=2)
    rated = train_loader(Numbers([(352, 352)] * 3, soft=True), batch_size=2, rates=(0.75, 1, 1.25))
    assert isinstance(rated, Rates)
    assert len(rated) == 3 * len(plain) == 3
    batch, batches = next(iter(plain)), list(rated)
    assert [b["image"].shape[-1] for b in batches] == [256, 352, 448]
    assert [b["mask"].shape[-2] for b in batches] == [256, 352, 448]
    assert torch.equal(batches[1]["image"], batch["image"])
    for rate in (0, 2):
        side = batches[rate]["image"].shape[-1]
        for key in ("image", "mask"):
            expected = F.interpolate(batch[key], (side, side), mode="bilinear", align_corners=True)
            assert torch.equal(batches[rate][key], expected)
        assert batches[rate]["path"] == batch["path"]


def test_rates_keep_class_ids_whole_and_sides_multiples_of_32():
    [small, large] = list(train_loader(Numbers([(96, 40)] * 2), batch_size=2, rates=(0.2, 1.5)))
    assert small["image"].shape[-2:] == (32, 32)
    assert large["image"].shape[-2:] == (128, 64)  # 144 / 32 = 4.5, which Python's round, as in PraNet's code, makes 4
    assert large["mask"].dtype == torch.int64
    assert set(large["mask"].unique().tolist()) == {0, 1}


def test_rates_pass_the_epoch_on():
    rated = train_loader(Numbers([(32, 32)] * 4), batch_size=2, rates=(1, 2))
    rated.batch_sampler.sampler.set_epoch(5)
    assert rated.loader.batch_sampler.sampler.epoch == 5


def test_evaluation_batches_equal_neighbours_up_to_the_limits():
    sizes = [(8, 8), (8, 8), (8, 8), (4, 8), (8, 8), (8, 8)]
    groups = [b for chunk in eval_loader(Numbers(sizes), batch_size=6, pixels=128) for b in chunk]
    assert [b["path"] for b in groups] == [["0", "1"], ["2"], ["3"], ["4", "5"]]
    assert [tuple(b["image"].shape[-2:]) for b in groups] == [(8, 8), (8, 8), (4, 8), (8, 8)]


def test_an_image_above_the_limit_of_pixels_is_measured_alone():
    groups = [b for chunk in eval_loader(Numbers([(8, 8)] * 2), batch_size=2, pixels=10) for b in chunk]
    assert [b["path"] for b in groups] == [["0"], ["1"]]


def test_errors_are_sentences():
    with pytest.raises(UserError, match=r"differ in size.*--data\.size"):
        list(train_loader(Numbers([(8, 8), (8, 4)]), batch_size=2))
    with pytest.raises(UserError, match=r"data\.rates"):
        train_loader(Numbers([(8, 8)] * 3), batch_size=2, rates=[0.5, -1])


@pytest.mark.parametrize(("images", "batches"), [(1, [1]), (3, [3]), (8, [8]), (9, [8]), (10, [8, 2])])
def test_a_small_split_gives_small_batches_but_none_of_a_single_left_over(images, batches):
    loader = train_loader(Numbers([(8, 8)] * images), batch_size=8)
    assert [len(batch["image"]) for batch in loader] == batches
