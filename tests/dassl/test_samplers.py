"""Samplers: every order follows from the seed and the epoch, and groups that are used up begin in a new order."""

import random

import pytest

from dassl.config import get_cfg_default
from dassl.data.datasets import Datum
from dassl.data.samplers import build_sampler
from dassl.utils import derive_seed

SAMPLERS = {
    "RandomSampler": {},
    "RandomDomainSampler": {"batch_size": 6},
    "RandomClassSampler": {"batch_size": 6, "n_ins": 3},
}


@pytest.fixture
def order():
    """The order of an epoch: of 63 images, three are of class 0 and of domain 0, the others of class 1 and domain 1."""
    source = [Datum(str(number), int(number > 2), domain=int(number > 2)) for number in range(63)]

    def call(name: str, seed: int = 1, epoch: int = 0) -> list[int]:
        cfg = get_cfg_default()
        cfg.SEED = seed
        sampler = build_sampler(name, cfg, source, **SAMPLERS[name])
        sampler.epoch = epoch
        return list(sampler)

    return call


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_order_follows_from_the_seed_and_the_epoch(order, name):
    assert order(name) == order(name)
    assert len({tuple(order(name, seed, epoch)) for seed in (1, 2, 3) for epoch in (0, 1, 2)}) == 9


def test_the_order_of_all_images_is_one_shuffle(order):
    expected = list(range(63))
    random.Random(derive_seed(7, 2, "RandomSampler")).shuffle(expected)
    assert order("RandomSampler", seed=7, epoch=2) == expected


@pytest.mark.parametrize("name", ["RandomDomainSampler", "RandomClassSampler"])
def test_a_small_group_comes_again_and_again_each_time_in_another_order(order, name):
    """Each of the ten batches takes all three of its images."""
    found = order(name)
    assert len(found) == 60
    passes = [tuple(index for index in found[start : start + 6] if index < 3) for start in range(0, 60, 6)]
    assert all(sorted(one) == [0, 1, 2] for one in passes)
    assert len(set(passes)) > 3
    large = [index for index in found if index > 2]
    assert len(set(large)) == 30  # none twice before all have come


@pytest.mark.parametrize("name", ["RandomDomainSampler", "RandomClassSampler"])
def test_the_groups_of_a_batch_are_drawn(name):
    """One of four groups a batch: not always the same, and not in turn."""
    source = [Datum(str(number), number % 4, domain=number % 4) for number in range(80)]
    cfg = get_cfg_default()
    cfg.SEED = 1
    values = {"n_domain": 1} if name == "RandomDomainSampler" else {"n_ins": 4}
    sampler = build_sampler(name, cfg, source, batch_size=4, **values)
    sampler.epoch = 0
    groups = [index % 4 for index in sampler][::4]
    assert set(groups) == {0, 1, 2, 3}
    assert groups != (groups[:4] * 5)
