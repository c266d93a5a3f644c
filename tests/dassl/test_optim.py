"""Optimizers and schedules by name, and Dassl's own warm-ups."""

import math

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from dassl.config import get_cfg_default
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.optim.lr_scheduler import ConstantWarmupScheduler, LinearWarmupScheduler
from dassl.utils import UserError


def node(**values):
    optim = get_cfg_default().OPTIM
    optim.merge_from_list([x for key, value in {"NAME": "sgd", "LR": 0.002, **values}.items() for x in (key, value)])
    return optim


def rates_of(optimizer, schedule, epochs: int) -> list[float]:
    result = []
    for _ in range(epochs):
        assert schedule.get_last_lr() == [optimizer.param_groups[0]["lr"]]
        result += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    return result


def rates(epochs: int, **values) -> list[float]:
    optim = node(**values)
    optimizer = build_optimizer([torch.nn.Parameter(torch.zeros(1))], optim)
    return rates_of(optimizer, build_lr_scheduler(optimizer, optim), epochs)


def test_cosine_after_a_constant_warmup():
    found = rates(4, LR_SCHEDULER="cosine", MAX_EPOCH=4, WARMUP_EPOCH=1, WARMUP_TYPE="constant", WARMUP_CONS_LR=1e-5)
    assert found == pytest.approx([1e-5, 0.002, 0.001 * (1 + math.cos(math.pi / 4)), 0.001])


def test_layers_of_different_rates_warm_up_at_the_same_one():
    model = torch.nn.ModuleDict({"body": torch.nn.Linear(2, 2), "head": torch.nn.Linear(2, 2)})
    optim = node(STAGED_LR=True, NEW_LAYERS=("head",), BASE_LR_MULT=0.5, WARMUP_EPOCH=1, WARMUP_TYPE="constant")
    optimizer = build_optimizer(model, optim)
    schedule = build_lr_scheduler(optimizer, optim)
    assert schedule.get_last_lr() == pytest.approx([1e-5, 1e-5])
    optimizer.step()
    schedule.step()
    assert schedule.get_last_lr() == pytest.approx([0.001, 0.002])


def test_linear_warmup():
    assert rates(4, MAX_EPOCH=9, WARMUP_EPOCH=3) == pytest.approx([1e-5, 0.002 / 3, 0.004 / 3, 0.002])


def test_steps():
    single = rates(5, LR_SCHEDULER="single_step", STEPSIZE=(2,), GAMMA=0.5)
    assert single == pytest.approx([0.002, 0.002, 0.001, 0.001, 0.0005])
    multi = rates(5, LR_SCHEDULER="multi_step", STEPSIZE=(1, 3), GAMMA=0.5)
    assert multi == pytest.approx([0.002, 0.001, 0.001, 0.0005, 0.0005])


@pytest.mark.parametrize("after", ["cosine", "multi_step"])
@pytest.mark.parametrize("warmup", ["constant", "linear"])
def test_a_warmup_of_dassls_own_follows_our_curve_and_resumes(warmup, after, tmp_path):
    def manual():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        successor = CosineAnnealingLR(optimizer, 9) if after == "cosine" else MultiStepLR(optimizer, [2, 4], 0.5)
        kind = {"constant": ConstantWarmupScheduler, "linear": LinearWarmupScheduler}[warmup]
        return optimizer, kind(optimizer, successor, 3, 1e-5)

    steps = {"STEPSIZE": (2, 4), "GAMMA": 0.5}
    expected = rates(12, LR=0.1, MAX_EPOCH=9, WARMUP_EPOCH=3, WARMUP_TYPE=warmup, LR_SCHEDULER=after, **steps)
    assert len(set(expected)) >= 4
    for stop in (2, 3, 6):
        stopped, resumed = manual(), manual()
        assert rates_of(*stopped, stop) == pytest.approx(expected[:stop])
        torch.save([part.state_dict() for part in stopped], tmp_path / "state")
        for part, state in zip(resumed, torch.load(tmp_path / "state", weights_only=True), strict=True):
            part.load_state_dict(state)
        assert rates_of(*resumed, 12 - stop) == pytest.approx(expected[stop:])


def test_no_warmup_is_the_successor_alone():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = ConstantWarmupScheduler(optimizer, MultiStepLR(optimizer, [1], 0.5), -1, 1e-5)
    assert rates_of(optimizer, schedule, 2) == [0.1, 0.05]


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.7, "dampening": 0, "nesterov": True}),
        ("adam", torch.optim.Adam, {"betas": (0.8, 0.95), "amsgrad": False}),
        ("amsgrad", torch.optim.Adam, {"betas": (0.8, 0.95), "amsgrad": True}),
        ("adamw", torch.optim.AdamW, {"betas": (0.8, 0.95)}),
        ("radam", torch.optim.RAdam, {"betas": (0.8, 0.95)}),
        ("rmsprop", torch.optim.RMSprop, {"momentum": 0.7, "alpha": 0.9}),
    ],
)
def test_an_optimizer_has_the_settings_of_the_config(name, kind, settings):
    values = {"MOMENTUM": 0.7, "SGD_NESTEROV": True, "ADAM_BETA1": 0.8, "ADAM_BETA2": 0.95, "RMSPROP_ALPHA": 0.9}
    optim = node(NAME=name, LR=0.03, WEIGHT_DECAY=0.02, **values)
    optimizer = build_optimizer([torch.nn.Parameter(torch.ones(3))], optim)
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert group.items() >= {"lr": 0.03, "weight_decay": 0.02, **settings}.items()


def test_the_dampening_of_sgd():
    optimizer = build_optimizer([torch.nn.Parameter(torch.ones(3))], node(SGD_DAMPNING=1))
    assert optimizer.param_groups[0]["dampening"] == 1


def test_parameters_of_the_model_itself_are_among_the_layers_that_are_not_new():
    """As the context of CoCoOp beside its Meta-Net."""
    model = torch.nn.ModuleDict({"meta_net": torch.nn.Linear(2, 2)})
    model.register_parameter("ctx", torch.nn.Parameter(torch.zeros(3)))
    old, new = build_optimizer(model, node(STAGED_LR=True, NEW_LAYERS=("meta_net",), BASE_LR_MULT=0.5)).param_groups
    assert (old["params"], old["lr"]) == ([model.ctx], 0.001)
    assert (new["params"], new["lr"]) == (list(model["meta_net"].parameters()), 0.002)
    with pytest.raises(UserError, match="NEW_LAYERS"):
        build_optimizer(model, node(STAGED_LR=True, NEW_LAYERS=("tail",)))
