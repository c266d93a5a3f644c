"""The engine as a trainer that was written for Dassl uses it, on a model of two layers."""

import math
import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY, TrainerBase, TrainerX, build_trainer
from dassl.evaluation import build_evaluator
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import UserError, set_random_seed


@TRAINER_REGISTRY.register()
class TwoLayers(TrainerX):
    """Trains two models, each with its optimizer, in the way of third-party trainers."""

    def check_cfg(self, cfg):
        assert cfg.OPTIM.NAME == "sgd"

    def build_model(self):
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4)).to(self.device)
        self.head = nn.Linear(4, self.num_classes).to(self.device)
        for name in ("body", "head"):
            optim = build_optimizer(getattr(self, name), self.cfg.OPTIM)
            self.register_model(name, getattr(self, name), optim, build_lr_scheduler(optim, self.cfg.OPTIM))
        self.model = nn.Sequential(self.body, self.head)
        self.batches = []

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device), batch["domain"].to(self.device)

    def forward_backward(self, batch):
        image, label, _ = self.parse_batch_train(batch)
        self.batches.append((self.epoch, self.batch_idx, batch["index"].tolist()))
        output = self.model(image)
        loss = F.cross_entropy(output, label)
        self.model_backward_and_update(loss)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}


@pytest.fixture
def trainer(make_config):
    """A function that builds a TwoLayers trainer."""

    def make(out="run", **values):
        set_random_seed(1)
        return build_trainer(make_config("TwoLayers", out, **values))

    return make


def test_a_trainer_has_dassls_attributes(make_config, tmp_path):
    cfg = make_config("TwoLayers", INPUT__WHITE_LEVEL=0, INPUT__ORIENTATION="stored")
    trainer = build_trainer(cfg)
    assert trainer.cfg is cfg
    assert trainer.dm.dataset.classnames == ["dark", "bright"]
    assert trainer.lab2cname == {0: "dark", 1: "bright"}
    assert (trainer.num_classes, trainer.num_source_domains) == (2, 0)
    assert trainer.device.type in ("cpu", "cuda")
    assert (trainer.output_dir, trainer.best_result) == (str(tmp_path / "run"), -float("inf"))
    assert trainer.scaler is None
    assert callable(trainer.evaluator.evaluate)
    lengths = {name: len(getattr(trainer, name).dataset) for name in vars(trainer) if "_loader" in name}
    assert lengths == {"train_loader_x": 12, "train_loader_u": 20, "val_loader": 4, "test_loader": 8}
    assert trainer._models == {"body": trainer.body, "head": trainer.head}
    assert trainer._optims.keys() == trainer._scheds.keys() == trainer._models.keys()


def test_the_steps_of_the_loop_are_called_in_order_and_counters_are_set(trainer, monkeypatch):
    steps, calls = ["before_train", "before_epoch", "run_epoch", "after_epoch", "after_train"], []
    for step in steps:

        def recorded(self, step=step):
            calls.append(step)
            getattr(TrainerX, step)(self)

        monkeypatch.setattr(TwoLayers, step, recorded)
    learner = trainer(OPTIM__MAX_EPOCH=2)
    learner.train()
    assert calls == [steps[0], *2 * steps[1:4], steps[4]]
    assert (learner.epoch, learner.max_epoch, learner.batch_idx, learner.num_batches) == (1, 2, 2, 3)
    assert learner.test(split="val") == learner.results["accuracy"]


@pytest.mark.parametrize("behind", [("body", "head"), ("head",)])
def test_a_run_resumes_exactly_from_the_last_epoch_that_all_its_models_have(trainer, tmp_path, behind):
    """The file ``checkpoint`` of one model, or of both, names epoch 2, as after a kill between two checkpoints."""
    unbroken = trainer(TRAIN__CHECKPOINT_FREQ=2)
    unbroken.train()
    assert unbroken.results["accuracy"] > 80  # chance is 50
    for name in ("body", "head"):
        saved = {path.name for path in (tmp_path / "run" / name).iterdir()}
        assert saved == {"checkpoint", "model.pth.tar-2", "model.pth.tar-4"}
    for name in behind:
        (tmp_path / "run" / name / "checkpoint").write_text("model.pth.tar-2\n")
    resumed = trainer()
    resumed.train()
    assert resumed.start_epoch == 2
    assert resumed.batches == unbroken.batches  # the attribute is in the checkpoints
    assert all(torch.equal(a, b) for a, b in zip(unbroken.model.parameters(), resumed.model.parameters(), strict=True))
    epochs = [[i for e, _, batch in unbroken.batches if e == epoch for i in batch] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4


def test_trainers_that_replace_init_and_before_train_can_train_and_resume(trainer, monkeypatch):
    """Third-party trainers override before_train and __init__ without calling ours."""

    def before_train(self):
        self.start_epoch = self.resume_model_if_exist(self.output_dir)
        self.init_writer(self.output_dir)
        self.time_start = time.time()

    def initialize(self, cfg):
        TrainerBase.__init__(self)
        self.cfg, self.device = cfg, torch.device("cpu")
        self.start_epoch, self.max_epoch = 0, cfg.OPTIM.MAX_EPOCH
        self.output_dir, self.best_result = cfg.OUTPUT_DIR, -float("inf")
        self.build_data_loader()
        self.build_model()
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)

    monkeypatch.setattr(TwoLayers, "before_train", before_train)
    monkeypatch.setattr(TwoLayers, "__init__", initialize)
    first = trainer(TEST__FINAL_MODEL="best_val")
    first.train()
    resumed = trainer(TEST__FINAL_MODEL="best_val")
    resumed.train()
    assert resumed.start_epoch == 4
    assert resumed.results == first.results


def test_a_best_result_of_0_counts_and_is_read_from_the_best_model_if_the_newest_has_none(trainer, tmp_path):
    """Checkpoints of the original have no best result."""
    settings = {"TEST__FINAL_MODEL": "best_val", "OPTIM__MAX_EPOCH": 2}
    trainer(**settings).train()
    for name in ("body", "head"):
        for path in (tmp_path / "run" / name).glob("model*"):
            state = torch.load(path, weights_only=True)
            del state["best_result"]
            torch.save({**state, "val_result": 0.0 if "best" in path.name else None}, path)
    resumed = trainer(**settings)
    resumed.before_train()
    assert resumed.best_result == 0.0
    resumed.close_writer()


def test_the_best_model_is_copied_when_a_run_resumes_in_another_folder(trainer, tmp_path):
    trainer("one", TEST__FINAL_MODEL="best_val").train()
    (tmp_path / "one/body/model-best.pth.tar").rename(tmp_path / "best")
    unbeaten = torch.load(tmp_path / "best", weights_only=True) | {"val_result": 101.0}
    torch.save(unbeaten, tmp_path / "one/body/model-best.pth.tar")
    resumed = trainer("resumed", TEST__FINAL_MODEL="best_val", RESUME=str(tmp_path / "one"))
    resumed.train()
    assert all(torch.equal(resumed.body.state_dict()[key], value) for key, value in unbeaten["state_dict"].items())


def test_best_val_without_a_best_model_is_refused(trainer):
    trainer().train()
    with pytest.raises(UserError, match="best_val, but there is no"):
        trainer(TEST__FINAL_MODEL="best_val").train()


def test_a_run_without_a_test_saves_no_best_model_and_can_resume(trainer):
    settings = {"TEST__FINAL_MODEL": "best_val", "TEST__NO_TEST": True}
    trainer(**settings).train()
    resumed = trainer(**settings)
    resumed.train()
    assert resumed.start_epoch == 4


def test_a_checkpoint_without_its_epoch_is_refused(trainer, tmp_path):
    trainer().train()
    path = tmp_path / "run/body/model.pth.tar-4"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["epoch"]
    torch.save(checkpoint, path)
    with pytest.raises(UserError, match="does not say after which epoch"):
        trainer().train()


def test_a_resumed_run_keeps_its_optimizer(trainer):
    trainer().train()
    with pytest.raises(UserError, match="Resume with the same optimizer settings"):
        trainer(OPTIM__MAX_EPOCH=6, OPTIM__LR=0.5).train()


def test_modes_and_learning_rates_can_be_set_for_chosen_models(trainer):
    learner = trainer()
    learner.set_model_mode("eval", "head")
    assert (learner.body.training, learner.head.training) == (True, False)
    learner.set_model_mode("train")
    assert learner.head.training
    learner.model_update("head")
    learner.update_lr("head")
    assert learner.get_current_lr("body") == 0.05
    assert learner.get_current_lr("head") == pytest.approx(0.025 * (1 + math.cos(math.pi / 4)))
    with pytest.raises(KeyError, match="tail"):
        learner.get_model_names("tail")
    with pytest.raises(ValueError, match="head"):
        learner.register_model("head", learner.head)


def test_metrics_are_written_to_tensorboard(trainer, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer().train()
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    assert {"train/loss", "train/acc", "train/lr", "test/accuracy"} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("train/loss")) == 12


def test_loaders_may_be_dicts_of_lists():
    class Domains(TrainerBase):
        train_loader_x, train_loader_u = {"photo": [1], "sketch": [2]}, None
        total = 0

        def run_epoch(self):
            self.total += sum(sum(loader) for loader in self.train_loader_x.values())

    trainer = Domains()
    trainer.train(0, 2)
    assert trainer.total == 6
