"""Optimizers and schedules by name, and Dassl's warm-up schedulers."""

import math

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from dassl.config import get_cfg_default
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.optim.lr_scheduler import ConstantWarmupScheduler, LinearWarmupScheduler
from dassl.utils import UserError


def node(**values):
    """Return the OPTIM node of a config with SGD, LR 0.002 and some values."""
    optim = get_cfg_default().OPTIM
    optim.merge_from_list([x for key, value in {"NAME": "sgd", "LR": 0.002, **values}.items() for x in (key, value)])
    return optim


def collect_rates(optimizer, schedule, epochs: int) -> list[float]:
    """Return the rates of the next epochs."""
    result = []
    for _ in range(epochs):
        assert schedule.get_last_lr() == [optimizer.param_groups[0]["lr"]]
        result += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    return result


def rates(epochs: int, **values) -> list[float]:
    """Return the rates of the first epochs with the OPTIM node of ``node``."""
    optim = node(**values)
    optimizer = build_optimizer([torch.nn.Parameter(torch.zeros(1))], optim)
    return collect_rates(optimizer, build_lr_scheduler(optimizer, optim), epochs)


def test_a_cosine_schedule_follows_a_constant_warmup():
    actual = rates(4, LR_SCHEDULER="cosine", MAX_EPOCH=4, WARMUP_EPOCH=1, WARMUP_TYPE="constant", WARMUP_CONS_LR=1e-5)
    assert actual == pytest.approx([1e-5, 0.002, 0.001 * (1 + math.cos(math.pi / 4)), 0.001])


def test_parameter_groups_of_different_rates_warm_up_at_one_constant_rate():
    model = torch.nn.ModuleDict({"body": torch.nn.Linear(2, 2), "head": torch.nn.Linear(2, 2)})
    optim = node(STAGED_LR=True, NEW_LAYERS=("head",), BASE_LR_MULT=0.5, WARMUP_EPOCH=1, WARMUP_TYPE="constant")
    optimizer = build_optimizer(model, optim)
    schedule = build_lr_scheduler(optimizer, optim)
    assert schedule.get_last_lr() == pytest.approx([1e-5, 1e-5])
    optimizer.step()
    schedule.step()
    assert schedule.get_last_lr() == pytest.approx([0.001, 0.002])


def test_a_linear_warmup_starts_at_the_minimum_and_rises_in_equal_steps():
    assert rates(4, MAX_EPOCH=9, WARMUP_EPOCH=3) == pytest.approx([1e-5, 0.002 / 3, 0.004 / 3, 0.002])


def test_step_schedules_decay_at_their_epochs():
    single = rates(5, LR_SCHEDULER="single_step", STEPSIZE=(2,), GAMMA=0.5)
    assert single == pytest.approx([0.002, 0.002, 0.001, 0.001, 0.0005])
    multi = rates(5, LR_SCHEDULER="multi_step", STEPSIZE=(1, 3), GAMMA=0.5)
    assert multi == pytest.approx([0.002, 0.001, 0.001, 0.0005, 0.0005])


@pytest.mark.parametrize("after", ["cosine", "multi_step"])
@pytest.mark.parametrize("warmup", ["constant", "linear"])
def test_dassls_warmup_schedulers_follow_our_curve_and_resume(warmup, after, tmp_path):
    def build_scheduler():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        successor = CosineAnnealingLR(optimizer, 9) if after == "cosine" else MultiStepLR(optimizer, [2, 4], 0.5)
        kind = {"constant": ConstantWarmupScheduler, "linear": LinearWarmupScheduler}[warmup]
        return optimizer, kind(optimizer, successor, 3, 1e-5)

    steps = {"STEPSIZE": (2, 4), "GAMMA": 0.5}
    expected = rates(12, LR=0.1, MAX_EPOCH=9, WARMUP_EPOCH=3, WARMUP_TYPE=warmup, LR_SCHEDULER=after, **steps)
    assert len(set(expected)) >= 4
    for stop in (2, 3, 6):
        stopped, resumed = build_scheduler(), build_scheduler()
        assert collect_rates(*stopped, stop) == pytest.approx(expected[:stop])
        torch.save([stateful.state_dict() for stateful in stopped], tmp_path / "state")
        for stateful, state in zip(resumed, torch.load(tmp_path / "state", weights_only=True), strict=True):
            stateful.load_state_dict(state)
        assert collect_rates(*resumed, 12 - stop) == pytest.approx(expected[stop:])


def test_a_warmup_of_no_epochs_leaves_the_successor_alone():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = ConstantWarmupScheduler(optimizer, MultiStepLR(optimizer, [1], 0.5), -1, 1e-5)
    assert collect_rates(optimizer, schedule, 2) == [0.1, 0.05]


@pytest.mark.parametrize(
    ("name", "kind", "hyperparameters"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.7, "dampening": 0, "nesterov": True}),
        ("adam", torch.optim.Adam, {"betas": (0.8, 0.95), "amsgrad": False}),
        ("amsgrad", torch.optim.Adam, {"betas": (0.8, 0.95), "amsgrad": True}),
        ("adamw", torch.optim.AdamW, {"betas": (0.8, 0.95)}),
        ("radam", torch.optim.RAdam, {"betas": (0.8, 0.95)}),
        ("rmsprop", torch.optim.RMSprop, {"momentum": 0.7, "alpha": 0.9}),
    ],
)
def test_an_optimizer_has_the_hyperparameters_of_the_config(name, kind, hyperparameters):
    values = {"MOMENTUM": 0.7, "SGD_NESTEROV": True, "ADAM_BETA1": 0.8, "ADAM_BETA2": 0.95, "RMSPROP_ALPHA": 0.9}
    optim = node(NAME=name, LR=0.03, WEIGHT_DECAY=0.02, **values)
    optimizer = build_optimizer([torch.nn.Parameter(torch.ones(3))], optim)
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert group.items() >= {"lr": 0.03, "weight_decay": 0.02, **hyperparameters}.items()


def test_sgd_has_the_dampening_of_the_config():
    optimizer = build_optimizer([torch.nn.Parameter(torch.ones(3))], node(SGD_DAMPNING=1))
    assert optimizer.param_groups[0]["dampening"] == 1


def test_parameters_outside_of_layers_learn_at_the_base_rate():
    """CoCoOp has such a parameter, its context, beside the Meta-Net."""
    model = torch.nn.ModuleDict({"meta_net": torch.nn.Linear(2, 2)})
    model.register_parameter("ctx", torch.nn.Parameter(torch.zeros(3)))
    old, new = build_optimizer(model, node(STAGED_LR=True, NEW_LAYERS=("meta_net",), BASE_LR_MULT=0.5)).param_groups
    assert (old["params"], old["lr"]) == ([model.ctx], 0.001)
    assert (new["params"], new["lr"]) == (list(model["meta_net"].parameters()), 0.002)
    with pytest.raises(UserError, match="NEW_LAYERS"):
        build_optimizer(model, node(STAGED_LR=True, NEW_LAYERS=("tail",)))
