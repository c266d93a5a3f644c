"""Training with results worked out by hand: the deployed epoch, modes, learning rates, random draws, and the log."""

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

GREYS = {  # grey level (0 to 255) and label of each image
    "train": ((25, 0), (50, 0), (200, 1), (230, 1)),
    "val": ((25, 0), (76, 0), (153, 1), (204, 1)),
    "test": ((25, 0), (64, 1), (153, 1), (204, 1)),
}
THRESHOLDS = (0.0, 0.2, 0.7, 0.9)  # of the model after each epoch; brighter images are classified as label 1
ON_VAL = (50, 75, 75, 50)  # accuracies (%) with these thresholds, by counting
ON_TEST = (75, 100, 50, 25)


@DATASET_REGISTRY.register()
class Greys(DatasetBase):
    """Uniform grey images with the levels and labels of GREYS."""

    def __init__(self, cfg):
        splits = {}
        for split, images in GREYS.items():
            splits[split] = []
            for number, (level, label) in enumerate(images):
                path = f"{cfg.DATASET.ROOT}/{split}{number}.png"
                Image.new("RGB", (8, 8), (level, level, level)).save(path)
                splits[split].append(Datum(path, label, classname=("dark", "bright")[label]))
        super().__init__(train_x=splits["train"], val=splits["val"], test=splits["test"])


class Threshold(nn.Module):
    """Classifies an image by whether its mean is above a threshold, its only parameter."""

    def __init__(self):
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(-1.0))

    def forward(self, images):
        distance = images.mean((1, 2, 3)) - self.threshold
        return torch.stack([-distance, distance], dim=1)


@TRAINER_REGISTRY.register()
class Scripted(TrainerX):
    """Sets the threshold of its first model to that of THRESHOLDS for the epoch; the second model does nothing."""

    def build_model(self):
        self.model, self.other, self.observations = Threshold(), nn.Linear(1, 1), []
        for name, model in (("model", self.model), ("other", self.other)):
            optim = build_optimizer(model, self.cfg.OPTIM)
            self.register_model(name, model, optim, build_lr_scheduler(optim, self.cfg.OPTIM))

    def observe(self):
        """Return what a test observes in each training step; tests replace it."""

    def forward_backward(self, batch):
        self.observations.append(self.observe())
        self.model.threshold.data.fill_(THRESHOLDS[self.epoch])
        self.model_update()  # without gradients nothing moves
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": 4.0 * self.epoch + self.batch_idx}


@pytest.fixture
def trainer(make_config):
    """A function that builds a Scripted trainer."""

    def make(out="run", **values):
        values = {"DATASET__NAME": "Greys", "DATALOADER__TRAIN_X__BATCH_SIZE": 2, **values}
        set_random_seed(1)
        return build_trainer(make_config("Scripted", out, **values))

    return make


def run(trainer) -> list:
    """Train; return the observations of all steps."""
    trainer.train()
    return trainer.observations


def stop_in(monkeypatch, trainer, epoch: int) -> None:
    """Train, and stop when ``epoch`` (from 0) begins."""

    def before_epoch(self):
        if self.epoch == epoch:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Scripted, "before_epoch", before_epoch)
        with pytest.raises(KeyboardInterrupt):
            trainer.train()


# ---- which model is deployed ----


def test_best_val_deploys_the_first_of_the_best_epochs_on_validation_images(trainer, capsys):
    finished = trainer(TEST__FINAL_MODEL="best_val")
    finished.train()
    log = capsys.readouterr().out
    accuracies = [float(value) for value in re.findall(r"^\* accuracy: (.*)%$", log, re.MULTILINE)]
    assert accuracies == [*ON_VAL, ON_TEST[1]]
    assert finished.results["accuracy"] == ON_TEST[1]
    assert finished.model.threshold.item() == pytest.approx(THRESHOLDS[1])
    best = load_checkpoint(f"{finished.output_dir}/model/model-best.pth.tar")
    assert (best["epoch"], best["val_result"]) == (2, ON_VAL[1])


def test_a_finished_run_is_loaded_at_its_best_epoch_or_at_a_chosen_one(trainer):
    trainer(TEST__FINAL_MODEL="best_val", TRAIN__CHECKPOINT_FREQ=1).train()
    loaded = trainer()
    for epoch, threshold in ((None, THRESHOLDS[1]), (3, THRESHOLDS[2]), (4, THRESHOLDS[3])):
        loaded.load_model(loaded.output_dir, epoch)
        assert loaded.model.threshold.item() == pytest.approx(threshold)
    assert loaded.test() == ON_TEST[3]
    assert loaded.test("val") == ON_VAL[3]


def test_the_best_model_before_a_stop_stays_the_best_after_a_resume(trainer, monkeypatch):
    """The epochs after the resume are not better."""
    settings = {"TEST__FINAL_MODEL": "best_val", "TRAIN__CHECKPOINT_FREQ": 1}
    stop_in(monkeypatch, trainer(**settings), 2)
    resumed = trainer(**settings)
    resumed.train()
    assert resumed.start_epoch == 2
    assert resumed.results["accuracy"] == ON_TEST[1]


def test_a_best_result_before_forced_changes_does_not_count_after_them(trainer, monkeypatch):
    settings = {"TEST__FINAL_MODEL": "best_val", "TRAIN__CHECKPOINT_FREQ": 1}
    stop_in(monkeypatch, trainer(**settings), 2)
    resumed = trainer(**settings, OPTIM__LR=0.1, FORCE_RESUME=True)
    resumed.train()
    assert resumed.start_epoch == 2
    assert resumed.results["accuracy"] == ON_TEST[2]  # the second epoch, before the change, was as good


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_resume_with_other_training_or_validation_images_is_refused(trainer, monkeypatch, split):
    trainer(OPTIM__MAX_EPOCH=2).train()
    monkeypatch.setitem(GREYS, "test", GREYS["test"][:2])  # test images may change
    resumed = trainer(OPTIM__MAX_EPOCH=2)
    resumed.train()
    assert resumed.start_epoch == 2
    monkeypatch.setitem(GREYS, split, GREYS[split][::-1])  # the same file names with other labels
    with pytest.raises(UserError, match=f"the checkpoints were made with other {split}.* images"):
        trainer(OPTIM__MAX_EPOCH=2).train()


def test_every_nth_and_the_last_epoch_are_saved_and_the_last_one_is_deployed_by_default(trainer, tmp_path):
    finished = trainer(TRAIN__CHECKPOINT_FREQ=3)
    finished.train()
    assert finished.results["accuracy"] == ON_TEST[-1]
    saved = {path.name: load_checkpoint(path) for path in (tmp_path / "run/model").glob("model*")}
    assert set(saved) == {"model.pth.tar-3", "model.pth.tar-4"}
    for epoch in (3, 4):
        checkpoint = saved[f"model.pth.tar-{epoch}"]
        assert checkpoint["epoch"] == epoch
        assert checkpoint["state_dict"]["threshold"].item() == pytest.approx(THRESHOLDS[epoch - 1])


# ---- training steps ----


def test_models_train_in_training_mode_and_are_tested_in_evaluation_mode(trainer, monkeypatch):
    def modes(self):
        return self.model.training, self.other.training

    tested = []
    monkeypatch.setattr(Scripted, "observe", modes)
    monkeypatch.setattr(Scripted, "model_inference", lambda self, x: tested.append(modes(self)) or self.model(x))
    learned = run(trainer(TEST__FINAL_MODEL="best_val"))
    assert learned == [(True, True)] * 8
    assert tested == [(False, False)] * 5  # one batch each: after four epochs, and at the end


def test_testing_changes_no_running_means_and_uses_no_dropout(trainer, monkeypatch):
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


def test_every_model_follows_its_learning_rate_schedule(trainer, monkeypatch):
    """Cosine over four epochs of two steps."""
    monkeypatch.setattr(Scripted, "observe", lambda self: [self.get_current_lr(name) for name in ("model", "other")])
    rates = run(trainer())
    expected = [0.025 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4) for _ in range(2)]
    assert [one for one, _ in rates] == pytest.approx(expected)
    assert [other for _, other in rates] == pytest.approx(expected)


def test_each_step_uses_the_gradient_of_its_batch_alone(trainer, monkeypatch):
    """SGD without momentum and decay: each step takes the rate times the gradient, which is 1, from the threshold."""

    def forward_backward(self, batch):
        self.model_backward_and_update(self.model.threshold, names="model")
        self.observations.append(self.model.threshold.item())
        return {"loss": 1.0}

    monkeypatch.setattr(Scripted, "forward_backward", forward_backward)
    reached = run(trainer(OPTIM__MOMENTUM=0.0, OPTIM__WEIGHT_DECAY=0.0, OPTIM__MAX_EPOCH=2))
    assert reached == pytest.approx([-1.05, -1.10, -1.15, -1.20])


def draw(self) -> tuple[float, ...]:
    """Draw a number from each generator that SEED seeds."""
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_random_numbers_depend_on_the_seed_and_the_epoch(trainer, monkeypatch):
    """Dropout masks are drawn from the same generators."""
    monkeypatch.setattr(Scripted, "observe", draw)
    first = run(trainer("first"))
    assert len(set(first)) == 8
    assert run(trainer("again")) == first
    assert not set(run(trainer("other", SEED=2))) & set(first)


def test_without_a_seed_a_resumed_run_restores_the_random_states(trainer, monkeypatch):
    """A run of an earlier version, or a trainer that is built without build_trainer."""
    monkeypatch.setattr("dassl.engine.build.choose_seed", lambda cfg: cfg.SEED)
    monkeypatch.setattr(Scripted, "observe", draw)
    unbroken = run(trainer("unbroken", SEED=-1))
    stop_in(monkeypatch, trainer("stopped", SEED=-1, TRAIN__CHECKPOINT_FREQ=2), 2)
    resumed = trainer("stopped", SEED=-1, TRAIN__CHECKPOINT_FREQ=2)
    draw(None)  # which the resume must undo
    assert run(resumed) == unbroken


def test_tensorboard_steps_continue_in_a_resumed_run(trainer, monkeypatch):
    steps = []
    monkeypatch.setattr(Scripted, "write_scalar", lambda self, tag, _, step: steps.append((tag, step)))
    stop_in(monkeypatch, trainer(TRAIN__CHECKPOINT_FREQ=2), 2)
    trainer(TRAIN__CHECKPOINT_FREQ=2).train()
    assert [step for tag, step in steps if tag == "train/loss"] == list(range(8))


def test_metrics_are_logged_with_their_mean_over_the_epoch(trainer, capsys):
    run(trainer())
    logged = re.findall(r"epoch \[(\d)/4\] batch \[(\d)/2\] .* loss (\S+) \((\S+)\)", capsys.readouterr().out)
    metrics = [tuple(map(float, line)) for line in logged]
    assert metrics[:4] == [(1, 1, 0.0, 0.0), (1, 2, 1.0, 0.5), (2, 1, 4.0, 4.0), (2, 2, 5.0, 4.5)]


# ---- runs without a seed ----


def test_runs_without_a_seed_have_draws_of_their_own_and_resume_with_them(trainer, monkeypatch, capsys):
    """As from the train.py of another repository, which draws no seed and writes no config.yaml."""
    settings = {"SEED": -1, "TRAIN__CHECKPOINT_FREQ": 1}
    first, second = trainer("first", **settings), trainer("second", **settings)
    assert f"No seed is given; this run has the seed {first.cfg.SEED}\n" in capsys.readouterr().out
    assert first.seed == first.cfg.SEED >= 0
    assert first.seed != second.seed
    assert first.other.weight != second.other.weight
    stop_in(monkeypatch, first, 2)
    resumed = trainer("first", **settings)
    resumed.train()
    assert (resumed.seed, resumed.start_epoch) == (first.seed, 2)
    assert trainer("copy", RESUME=first.output_dir, **settings).seed == first.seed
