"""Trainers in the ways that third-party repositories write them: they train, evaluate, and resume after a kill."""

from __future__ import annotations

import copy
import itertools
import random
import re
import time
from collections import defaultdict, deque
from dataclasses import dataclass
from enum import Enum

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY, TrainerX, build_trainer
from dassl.engine.extra_state import MAX_EXACT_ELEMENTS, digest_state, to_state
from dassl.engine.trainer import AverageMeter, MetricMeter
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import UserError, listdir_nohidden, load_checkpoint, set_random_seed

EPOCHS = 4


@TRAINER_REGISTRY.register()
class Field(TrainerX):
    """The base of these trainers: a linear model with dropout, so that random numbers matter."""

    def build_model(self):
        self.model = nn.Sequential(nn.Flatten(), nn.Dropout(0.3), nn.Linear(3 * 8 * 8, self.num_classes))
        self.model.to(self.device)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("linear", self.model, self.optim, self.sched)

    def loss(self, batch):
        image, label, _ = self.parse_batch_train(batch)
        return F.cross_entropy(self.model(image), label)

    def forward_backward(self, batch):
        loss = self.loss(batch)
        self.model_backward_and_update(loss)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}


@TRAINER_REGISTRY.register()
class FieldOwnTrain(Field):
    """Overrides train; at the end, it sets the epoch to -1 so that after_epoch saves nothing."""

    def train(self):
        self.before_train()
        for self.epoch in range(self.start_epoch, self.max_epoch):  # noqa: B020
            self.run_epoch()
        self.epoch = -1
        self.after_epoch()
        self.after_train()


@TRAINER_REGISTRY.register()
class FieldOwnAfterEpoch(Field):
    """Overrides after_epoch: it saves after each epoch, and the best model by training loss."""

    def before_train(self):
        super().before_train()
        self.lowest = float("inf")

    def after_epoch(self):
        is_best = self.last_loss < self.lowest
        self.lowest = min(self.last_loss, self.lowest)
        self.save_model(self.epoch, self.output_dir, is_best=is_best)

    def forward_backward(self, batch):
        metrics = super().forward_backward(batch)
        self.last_loss = metrics["loss"]
        return metrics


@TRAINER_REGISTRY.register()
class FieldOwnRunEpoch(Field):
    """Overrides run_epoch by a copy of the loop over batches, with meters from the engine's module."""

    def run_epoch(self):
        self.set_model_mode("train")
        losses, seconds = MetricMeter(), AverageMeter()
        self.num_batches = len(self.train_loader_x)
        end = time.time()
        for self.batch_idx, batch in enumerate(self.train_loader_x):  # noqa: B020
            losses.update(self.forward_backward(batch))
            seconds.update(time.time() - end)
            print(f"epoch [{self.epoch + 1}/{self.max_epoch}] {losses} time {seconds.avg:.3f}")
            end = time.time()


class Average:
    """Averaged weights of a model, in an object that is not a module."""

    def __init__(self, model):
        self.weights = {name: value.clone() for name, value in model.state_dict().items()}
        self.updates = 0

    def update(self, model):
        self.updates += 1
        for name, value in model.state_dict().items():
            self.weights[name].mul_(0.9).add_(value, alpha=0.1)


@dataclass(frozen=True)
class Progress:
    step: int = 0


@TRAINER_REGISTRY.register()
class FieldExtra(Field):
    """Calls its optimizer itself; sets averaged weights, further models, and attributes of every kind that a checkpoint
    holds."""

    def build_model(self):
        super().build_model()
        self.average = Average(self.model)
        self.teacher = copy.deepcopy(self.model)
        self.second = torch.optim.SGD(self.teacher.parameters(), lr=0.1, momentum=0.9)
        self.shadow = self.model[2].weight.detach()  # at first the registered weight itself
        self.nets = {"student": self.model, "other": copy.deepcopy(self.model[2]), "steps": 0}
        self.frozen = nn.Linear(300, 300)
        self.frozen.register_buffer("calls", torch.zeros(()))
        self.steps, self.averaged, self.last, self.progress = 0, None, None, Progress()
        self.trained_on, self.recent, self.labels = defaultdict(list), deque(maxlen=3), set()
        self.counts, self.memory = np.zeros(2), torch.zeros(1000, 50)
        self.hooks = [self.model[2].register_forward_hook(lambda *_: None)]

    def forward_backward(self, batch):
        loss = self.loss(batch) / (1 + 0.1 * self.steps)
        self.optim.zero_grad()
        loss.backward()
        self.optim.step()
        self.average.update(self.model)
        self.count(batch, loss.item())
        self.shadow = 0.9 * self.shadow + 0.1 * self.model[2].weight.detach()
        if self.averaged is None:
            self.averaged = [torch.zeros_like(p) for p in self.model.parameters()]
        for total, p in zip(self.averaged, self.model.parameters(), strict=True):
            total += p.detach()
        for averaged, current in zip(self.teacher.parameters(), self.model.parameters(), strict=True):
            averaged.data.mul_(0.8).add_(current.data, alpha=0.2)
            averaged.grad = 0.01 * current.grad
        self.second.step()
        with torch.no_grad():
            self.nets["other"].weight.lerp_(self.model[2].weight, 0.1)
            self.frozen.calls += 1
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}

    def count(self, batch, loss):
        self.steps += 1
        self.nets["steps"] += 1
        self.counts += [1, self.batch_idx]
        self.progress = Progress(self.progress.step + 1)
        self.trained_on[self.epoch].append(batch["index"].tolist())
        self.recent.append(loss)
        self.labels.add((self.epoch, self.batch_idx))
        self.last, self.view = (self.epoch, np.float32(loss)), self.memory[0]
        self.criterion, self.started = nn.CrossEntropyLoss(), time.strftime("%Y")

    def state(self) -> tuple[dict, torch.Tensor]:
        values = {name: getattr(self, name) for name in ("steps", "trained_on", "recent", "labels", "last", "progress")}
        tensors = [self.average.weights["2.bias"], self.teacher[2].bias, self.averaged[1], torch.tensor(self.counts)]
        tensors += [self.shadow, self.nets["other"].weight, self.frozen.calls, torch.tensor(self.nets["steps"])]
        return values, torch.cat([tensor.detach().flatten() for tensor in tensors])

    def after_train(self):
        self.final_state = self.state()
        super().after_train()


@TRAINER_REGISTRY.register()
class FieldDeepCopy(Field):
    """Reads the training images a second time in each epoch, from a copy of the loader."""

    def before_train(self):
        super().before_train()
        self.train_loader_copy = copy.deepcopy(self.train_loader_x)

    def before_epoch(self):
        self.means = torch.stack([batch["img"].mean() for batch in self.train_loader_copy])

    def loss(self, batch):
        return super().loss(batch) * (2 + self.means[self.batch_idx].tanh())


@pytest.fixture
def config(make_config):
    """A function that returns the config of one of the trainers above."""
    augmented = {"INPUT__TRANSFORMS": ("random_flip", "random_crop", "normalize"), "TRAIN__CHECKPOINT_FREQ": 1}
    return lambda kind="", out="run", **values: make_config(f"Field{kind}", out, **augmented | values)


def run(cfg: CfgNode, monkeypatch=None, stop_in: int | None = None):
    """Train; with ``stop_in``, until a step of that epoch raises KeyboardInterrupt. Return the trainer."""
    set_random_seed(7)
    trainer = build_trainer(cfg)
    if stop_in is not None:
        step = trainer.forward_backward

        def stopping(batch):
            if trainer.epoch == stop_in and trainer.batch_idx == 1:
                raise KeyboardInterrupt
            return step(batch)

        monkeypatch.setattr(trainer, "forward_backward", stopping, raising=False)
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    else:
        trainer.train()
    return trainer


def assert_same_runs(one, two) -> None:
    """Check that two trainers have the same results and parameters."""
    assert one.results == two.results
    for first, second in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("kind", ["OwnAfterEpoch", "DeepCopy"])
def test_a_trainer_that_is_killed_and_resumed_ends_as_an_unbroken_run(config, monkeypatch, kind, capsys):
    unbroken = run(config(kind, "unbroken"))
    run(config(kind, "stopped"), monkeypatch, stop_in=2)
    capsys.readouterr()
    resumed = run(config(kind, "stopped"))
    assert resumed.start_epoch == 2
    assert f"epoch [{resumed.start_epoch + 1}/{EPOCHS}]" in capsys.readouterr().out
    assert_same_runs(unbroken, resumed)
    assert getattr(resumed, "lowest", None) == getattr(unbroken, "lowest", None)


def test_extra_state_of_every_kind_is_resumed_during_and_after_training(config, tmp_path, monkeypatch):
    unbroken = run(config("Extra", "unbroken"))
    run(config("Extra", "stopped"), monkeypatch, stop_in=3)
    for start in (3, EPOCHS):
        resumed = run(config("Extra", "stopped"))
        assert resumed.start_epoch == start
        assert_same_runs(unbroken, resumed)
        assert resumed.final_state[0] == unbroken.final_state[0]
        assert torch.equal(resumed.final_state[1], unbroken.final_state[1])
        assert type(resumed.trained_on) is defaultdict
        assert resumed.nets["student"] is resumed.model
    saved = load_checkpoint(tmp_path / f"stopped/linear/model.pth.tar-{EPOCHS}")["trainer"]
    assert set(saved["frozen"]["module"]) == {"calls"}
    assert saved["view"].untyped_storage().nbytes() == 50 * 4


def test_nothing_is_saved_if_a_trainer_sets_the_epoch_to_minus_1(config, tmp_path):
    run(config("OwnTrain", TRAIN__CHECKPOINT_FREQ=0))
    assert not (tmp_path / "run/linear").exists()


def test_a_trainer_that_overrides_after_epoch_keeps_the_hooks(config, tmp_path):
    run(config("OwnAfterEpoch", TRAIN__KEEP_CHECKPOINTS=2, TRAIN__CHECKPOINT_MINUTES=1e-9))
    saved = {"checkpoint", "model-best.pth.tar", *(f"model.pth.tar-{n}" for n in (EPOCHS - 1, EPOCHS))}
    assert set(listdir_nohidden(tmp_path / "run/linear")) == saved  # no timed one beside that of the epoch


def test_a_trainer_that_overrides_run_epoch_keeps_timed_checkpoints_and_resumes_from_them(
    config, tmp_path, monkeypatch
):
    values = {"TRAIN__CHECKPOINT_FREQ": 0, "TRAIN__CHECKPOINT_MINUTES": 1e-9}
    unbroken = run(config("OwnRunEpoch", "unbroken"))
    for stop_in in (1, 3):
        run(config("OwnRunEpoch", **values), monkeypatch, stop_in)
        assert set(listdir_nohidden(tmp_path / "run/linear")) == {"checkpoint", f"model-latest.pth.tar-{stop_in}"}
    assert_same_runs(unbroken, run(config("OwnRunEpoch", **values)))
    assert set(listdir_nohidden(tmp_path / "run/linear")) == {"checkpoint", f"model.pth.tar-{EPOCHS}"}


def test_a_step_of_prograd_is_along_the_projected_gradient(config):
    trainer = build_trainer(config())
    trainer.model.eval()  # no dropout
    batch = next(iter(trainer.train_loader_x))
    image, label, _ = trainer.parse_batch_train(batch)
    output = trainer.model(image)
    parameters = list(trainer.model.parameters())
    before = [p.detach().clone() for p in parameters]
    losses = F.cross_entropy(output, label), F.cross_entropy(output, 1 - label)
    gradients_a, gradients_b = (
        [g.clone() for g in torch.autograd.grad(x, parameters, retain_graph=True)] for x in losses
    )
    trainer.batch_idx, trainer.num_batches = 0, 3
    trainer.prograd_backward_and_update(*losses, lambda_=0.5)
    rate = trainer.optim.param_groups[0]["lr"]
    units = [g / g.norm() for g in gradients_b]
    products = [(a * unit).sum().item() for a, unit in zip(gradients_a, units, strict=True)]
    assert min(products) < 0 < max(products)  # the gradients conflict in the weight, and agree in the bias
    for p, old, a, unit, product in zip(parameters, before, gradients_a, units, products, strict=True):
        step = (old - p.detach()) / rate - trainer.cfg.OPTIM.WEIGHT_DECAY * old
        torch.testing.assert_close(step, a - 0.5 * min(product, 0) * unit, atol=1e-5, rtol=1e-4)


def test_prograd_in_half_precision_stays_finite(config):
    trainer = build_trainer(config())
    trainer.model.half()
    weight = trainer.model[2].weight
    trainer.prograd_backward_and_update((weight * 2e-2).sum(), (weight * -1e-4).sum())
    assert weight.isfinite().all()


# ---- a config from another repository ----


@pytest.mark.parametrize("frozen", [True, False])
def test_a_config_from_a_copy_of_dassls_defaults_is_completed(config, frozen):
    incomplete, complete = config(), config(INPUT__WHITE_LEVEL=0, INPUT__ORIENTATION="stored")
    for node, key in (
        (incomplete, "FEATURES"),
        (incomplete.TRAIN, "CHECKPOINT_MINUTES"),
        (incomplete.MODEL.BACKBONE, "WEIGHTS"),
    ):
        del node[key]
    incomplete.TRAINER.MINE = complete.TRAINER.MINE = CfgNode({"DEPTH": 9})
    if frozen:
        incomplete.freeze()
    trainer = build_trainer(incomplete)
    assert trainer.cfg.is_frozen() == frozen
    assert trainer.cfg == complete
    assert "FEATURES" not in incomplete


# ---- what a trainer sets on itself ----


@TRAINER_REGISTRY.register()
class FieldTeacher(Field):
    """Predicts with averaged weights that are not registered."""

    def build_model(self):
        super().build_model()
        self.teacher = copy.deepcopy(self.model)

    def forward_backward(self, batch):
        metrics = super().forward_backward(batch)
        for averaged, current in zip(self.teacher.parameters(), self.model.parameters(), strict=True):
            averaged.data.lerp_(current.data, 0.5)
        return metrics

    def model_inference(self, image):
        return self.teacher.eval()(image)

    def train(self):
        self.before_train()
        for self.epoch in range(self.start_epoch, self.max_epoch):  # noqa: B020
            self.run_epoch()
            self.after_epoch()
        self.after_train()


def test_averaged_weights_are_used_by_a_finished_run_and_by_an_evaluation(config, tmp_path):
    unbroken = run(config("Teacher"))
    assert run(config("Teacher")).results == unbroken.results  # its loop has no epoch left
    evaluated = build_trainer(config("Teacher", "evaluated"))
    evaluated.load_model(str(tmp_path / "run"))
    evaluated.test()
    assert evaluated.results == unbroken.results
    assert torch.equal(evaluated.teacher[2].weight, unbroken.teacher[2].weight)


class Phase(Enum):
    WARM, MAIN = range(2)


@TRAINER_REGISTRY.register()
class FieldUnsavable(Field):
    """Sets attributes that no checkpoint can hold."""

    def build_model(self):
        super().build_model()
        self.rng, self.phase = np.random.default_rng(0), Phase.WARM

    def forward_backward(self, batch):
        self.phase, self.views = Phase.MAIN, [memoryview(b"bytes")]
        return super().forward_backward(batch)


def test_a_resume_is_refused_with_the_names_of_attributes_that_a_checkpoint_cannot_hold(config, monkeypatch):
    run(config("Unsavable"), monkeypatch, stop_in=2)
    unsaved = r"these attributes of its trainer: rng \(Generator\), phase \(Phase\), views \(memoryview\)\. Start"
    with pytest.raises(UserError, match=unsaved):
        run(config("Unsavable"))


@pytest.mark.parametrize("make", [random.Random, np.random.RandomState, np.random.default_rng, itertools.count])
def test_generators_and_iterators_always_count_as_changed(make):
    assert all(digest_state(to_state(value, {})) != digest_state(to_state(value, {})) for value in [make(0)] * 50)


class AttributeDict(dict):
    def __getattr__(self, name):
        return self[name]


def test_no_attribute_of_a_trainer_stops_training(config):
    cycle, chain = [], []
    cycle.append(cycle)
    for _ in range(3000):
        chain = [chain]
    values = [
        nn.CrossEntropyLoss,
        torch.optim.SGD,
        AttributeDict(a=1),
        cycle,
        chain,
        torch.empty(2, device="meta"),
        {1: {2}},
    ]
    values += [torch.eye(2).to_sparse(), torch.randn(2, dtype=torch.cfloat).conj(), nn.LazyLinear(2), np.longdouble(1)]
    values += [np.array(["a"]), re.compile("a"), torch.Size([1]), Phase.MAIN, lambda: 0, open(__file__, "rb"), object()]  # noqa: SIM115
    trainer = build_trainer(config())
    for number, value in enumerate(values):
        setattr(trainer, f"value{number}", value)
    trainer.train()
    assert trainer.results


def test_large_tensors_in_another_order_have_other_digests():
    order = torch.arange(MAX_EXACT_ELEMENTS + 5)
    assert digest_state(order) == digest_state(order.clone()) != digest_state(order.flip(0))
    assert digest_state(order) != digest_state(order.roll(1))


def test_setting_the_same_epoch_again_does_not_seed_it_again(config):
    trainer = build_trainer(config())
    draws = []
    for iteration in range(4):
        trainer.epoch = iteration // 2
        draws.append(torch.rand(1).item())
    assert len(set(draws)) == 4
