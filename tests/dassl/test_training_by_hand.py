"""Training worked out by hand: which epoch's model is deployed, in which mode and at which rate each model learns, what
is drawn at random, what is logged."""

import math
import random
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import TRAINER_REGISTRY, TrainerX, build_trainer
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import UserError, load_checkpoint, set_random_seed

GREYS = {  # the grey level, of 255, and the label of each picture
    "train": ((25, 0), (50, 0), (200, 1), (230, 1)),
    "val": ((25, 0), (76, 0), (153, 1), (204, 1)),
    "test": ((25, 0), (64, 1), (153, 1), (204, 1)),
}
THRESHOLDS = (0.0, 0.2, 0.7, 0.9)  # after each epoch; brighter pictures are taken for label 1
ON_VAL = (50, 75, 75, 50)  # accuracies (%) with these, by counting
ON_TEST = (75, 100, 50, 25)


@DATASET_REGISTRY.register()
class Greys(DatasetBase):
    def __init__(self, cfg):
        splits = {}
        for split, pictures in GREYS.items():
            splits[split] = []
            for number, (level, label) in enumerate(pictures):
                path = f"{cfg.DATASET.ROOT}/{split}{number}.png"
                Image.new("RGB", (8, 8), (level, level, level)).save(path)
                splits[split].append(Datum(path, label, classname=("dark", "bright")[label]))
        super().__init__(train_x=splits["train"], val=splits["val"], test=splits["test"])


class Threshold(nn.Module):
    def __init__(self):
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(-1.0))

    def forward(self, images):
        distance = images.mean((1, 2, 3)) - self.threshold
        return torch.stack([-distance, distance], dim=1)


@TRAINER_REGISTRY.register()
class Scripted(TrainerX):
    """After each epoch, the first of its two models has the threshold that THRESHOLDS tells."""

    def build_model(self):
        self.model, self.other, self.notes = Threshold(), nn.Linear(1, 1), []
        for name, model in (("model", self.model), ("other", self.other)):
            optim = build_optimizer(model, self.cfg.OPTIM)
            self.register_model(name, model, optim, build_lr_scheduler(optim, self.cfg.OPTIM))

    def note(self):
        """What a test wants to know of each training step."""

    def forward_backward(self, batch):
        self.notes.append(self.note())
        self.model.threshold.data.fill_(THRESHOLDS[self.epoch])
        self.model_update()  # without gradients nothing moves
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": 4.0 * self.epoch + self.batch_idx}


@pytest.fixture
def trainer(config_of):
    def make(out="run", **values):
        values = {"DATASET__NAME": "Greys", "DATALOADER__TRAIN_X__BATCH_SIZE": 2, **values}
        set_random_seed(1)
        return build_trainer(config_of("Scripted", out, **values))

    return make


def run(trainer) -> list:
    """Train; returns what was noted of each step."""
    trainer.train()
    return trainer.notes


def stop_in(monkeypatch, trainer, epoch: int) -> None:
    """Train, and stop when that epoch, counted from 0, begins."""

    def before_epoch(self):
        if self.epoch == epoch:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Scripted, "before_epoch", before_epoch)
        with pytest.raises(KeyboardInterrupt):
            trainer.train()


# ---- which model is deployed ----


def test_the_best_epoch_on_validation_images_is_deployed_and_of_equal_ones_the_first(trainer, capsys):
    done = trainer(TEST__FINAL_MODEL="best_val")
    done.train()
    log = capsys.readouterr().out
    accuracies = [float(value) for value in re.findall(r"^\* accuracy: (.*)%$", log, re.MULTILINE)]
    assert accuracies == [*ON_VAL, ON_TEST[1]]
    assert done.results["accuracy"] == ON_TEST[1]
    assert done.model.threshold.item() == pytest.approx(THRESHOLDS[1])
    best = load_checkpoint(f"{done.output_dir}/model/model-best.pth.tar")
    assert (best["epoch"], best["val_result"]) == (2, ON_VAL[1])


def test_a_finished_run_is_loaded_at_its_best_epoch_or_at_the_one_asked_for(trainer):
    trainer(TEST__FINAL_MODEL="best_val", TRAIN__CHECKPOINT_FREQ=1).train()
    loaded = trainer()
    for epoch, threshold in ((None, THRESHOLDS[1]), (3, THRESHOLDS[2]), (4, THRESHOLDS[3])):
        loaded.load_model(loaded.output_dir, epoch)
        assert loaded.model.threshold.item() == pytest.approx(threshold)
    assert loaded.test() == ON_TEST[3]
    assert loaded.test("val") == ON_VAL[3]


def test_what_was_best_before_a_stop_stays_best(trainer, monkeypatch):
    """The epochs that follow reach at most as much."""
    settings = {"TEST__FINAL_MODEL": "best_val", "TRAIN__CHECKPOINT_FREQ": 1}
    stop_in(monkeypatch, trainer(**settings), 2)
    resumed = trainer(**settings)
    resumed.train()
    assert resumed.start_epoch == 2
    assert resumed.results["accuracy"] == ON_TEST[1]


def test_what_was_best_before_other_settings_were_forced_is_nothing_to_beat(trainer, monkeypatch):
    settings = {"TEST__FINAL_MODEL": "best_val", "TRAIN__CHECKPOINT_FREQ": 1}
    stop_in(monkeypatch, trainer(**settings), 2)
    resumed = trainer(**settings, OPTIM__LR=0.1, FORCE_RESUME=True)
    resumed.train()
    assert resumed.start_epoch == 2
    assert resumed.results["accuracy"] == ON_TEST[2]  # the second epoch was as good, and came first


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_run_does_not_go_on_over_other_images_to_learn_from_or_to_choose_on(trainer, monkeypatch, split):
    trainer(OPTIM__MAX_EPOCH=2).train()
    monkeypatch.setitem(GREYS, "test", GREYS["test"][:2])  # those may be others
    again = trainer(OPTIM__MAX_EPOCH=2)
    again.train()
    assert again.start_epoch == 2
    monkeypatch.setitem(GREYS, split, GREYS[split][::-1])  # the same names for other labels
    with pytest.raises(UserError, match=f"the checkpoints were made with other {split}.* images"):
        trainer(OPTIM__MAX_EPOCH=2).train()


def test_checkpoints_are_of_every_nth_epoch_and_of_the_last_which_is_deployed_by_default(trainer, tmp_path):
    done = trainer(TRAIN__CHECKPOINT_FREQ=3)
    done.train()
    assert done.results["accuracy"] == ON_TEST[-1]
    found = {path.name: load_checkpoint(path) for path in (tmp_path / "run/model").glob("model*")}
    assert set(found) == {"model.pth.tar-3", "model.pth.tar-4"}
    for epoch in (3, 4):
        checkpoint = found[f"model.pth.tar-{epoch}"]
        assert checkpoint["epoch"] == epoch
        assert checkpoint["state_dict"]["threshold"].item() == pytest.approx(THRESHOLDS[epoch - 1])


# ---- how it learns ----


def test_models_are_in_training_mode_while_they_learn_and_in_evaluation_mode_while_they_are_tested(
    trainer, monkeypatch
):
    def modes(self):
        return self.model.training, self.other.training

    tested = []
    monkeypatch.setattr(Scripted, "note", modes)
    monkeypatch.setattr(Scripted, "model_inference", lambda self, x: tested.append(modes(self)) or self.model(x))
    learned = run(trainer(TEST__FINAL_MODEL="best_val"))
    assert learned == [(True, True)] * 8
    assert tested == [(False, False)] * 5  # one batch each: after four epochs, and at the end


def test_testing_leaves_running_means_as_they_are_and_drops_nothing(trainer, monkeypatch):
    norm, dropout = nn.BatchNorm2d(3), nn.Dropout(0.5)

    def build_model(self, build=Scripted.build_model):
        build(self)
        self.register_model("layers", nn.Sequential(norm, dropout))

    monkeypatch.setattr(Scripted, "build_model", build_model)
    monkeypatch.setattr(Scripted, "model_inference", lambda self, x: self.model(dropout(norm(x))))
    tested = trainer()
    tested.model.threshold.data.fill_(0.2)
    assert tested.test() == ON_TEST[1]  # the layers begin as the identity
    assert norm.running_mean.tolist() == [0, 0, 0]


def test_every_model_follows_its_schedule(trainer, monkeypatch):
    """Cosine over four epochs of two steps."""
    monkeypatch.setattr(Scripted, "note", lambda self: [self.get_current_lr(name) for name in ("model", "other")])
    rates = run(trainer())
    due = [0.025 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4) for _ in range(2)]
    assert [one for one, _ in rates] == pytest.approx(due)
    assert [other for _, other in rates] == pytest.approx(due)


def test_each_step_goes_by_its_own_gradient(trainer, monkeypatch):
    """SGD without momentum and decay: each step takes the rate times the gradient, which is 1, from the threshold."""

    def forward_backward(self, batch):
        self.model_backward_and_update(self.model.threshold, names="model")
        self.notes.append(self.model.threshold.item())
        return {"loss": 1.0}

    monkeypatch.setattr(Scripted, "forward_backward", forward_backward)
    reached = run(trainer(OPTIM__MOMENTUM=0.0, OPTIM__WEIGHT_DECAY=0.0, OPTIM__MAX_EPOCH=2))
    assert reached == pytest.approx([-1.05, -1.10, -1.15, -1.20])


def drawn(self) -> tuple[float, ...]:
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_random_numbers_follow_from_the_seed_and_the_epoch(trainer, monkeypatch):
    """As those of a dropout mask do."""
    monkeypatch.setattr(Scripted, "note", drawn)
    first = run(trainer("first"))
    assert len(set(first)) == 8
    assert run(trainer("again")) == first
    assert not set(run(trainer("other", SEED=2))) & set(first)


def test_without_a_seed_a_resumed_run_goes_on_drawing_where_it_stopped(trainer, monkeypatch):
    monkeypatch.setattr(Scripted, "note", drawn)
    whole = run(trainer("whole", SEED=-1))
    stop_in(monkeypatch, trainer("stopped", SEED=-1, TRAIN__CHECKPOINT_FREQ=2), 2)
    resumed = trainer("stopped", SEED=-1, TRAIN__CHECKPOINT_FREQ=2)
    drawn(None)
    assert run(resumed) == whole


def test_tensorboard_s_steps_go_on_in_a_resumed_run(trainer, monkeypatch):
    steps = []
    monkeypatch.setattr(Scripted, "write_scalar", lambda self, tag, _, step: steps.append((tag, step)))
    stop_in(monkeypatch, trainer(TRAIN__CHECKPOINT_FREQ=2), 2)
    trainer(TRAIN__CHECKPOINT_FREQ=2).train()
    assert [step for tag, step in steps if tag == "train/loss"] == list(range(8))


def test_figures_are_logged_with_their_mean_over_the_epoch(trainer, capsys):
    run(trainer())
    logged = re.findall(r"epoch \[(\d)/4\] batch \[(\d)/2\] .* loss (\S+) \((\S+)\)", capsys.readouterr().out)
    figures = [tuple(map(float, line)) for line in logged]
    assert figures[:4] == [(1, 1, 0.0, 0.0), (1, 2, 1.0, 0.5), (2, 1, 4.0, 4.0), (2, 2, 5.0, 4.5)]
