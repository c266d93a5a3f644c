"""Training that diverges stops, says when, and leaves good checkpoints alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dassl.engine import TrainerBase
from dassl.engine.checkpoint import DivergenceError
from tests.common import tensors
from trainers.coop import CoOp

# 40 images: two batches an epoch, and a rest that is dropped
SHORT = ("DATASET.NUM_SHOTS", 4, "OPTIM.MAX_EPOCH", 4, "DATALOADER.TRAIN_X.BATCH_SIZE", 16)


def refused(result, *parts: object) -> None:
    assert result.code == 2
    assert result.error.startswith("error: ")
    assert result.error.count("\n") == 1
    for part in parts:
        assert str(part) in result.error
    assert "=> result" not in result.log
    assert not (result.folder / "result.json").exists()


def step(self, batch, loss_of):
    """A step of CoOp that leaves out what the engine offers, as trainers of the field do."""
    features, label, _ = self.parse_batch_train(batch)
    loss = loss_of(self, F.cross_entropy(self.model(features), label))
    self.optim.zero_grad()
    loss.backward()
    self.optim.step()
    if self.batch_idx + 1 == self.num_batches:
        self.update_lr()
    return {"loss_ce": loss.item(), "acc": float("nan")}  # a share of nothing is no sign of divergence


def test_it_says_when_at_which_rate_and_what_may_help(run):
    result = run(*SHORT, "OPTIM.LR", "1e30")
    refused(result, "infinite or NaN", "epoch 2, batch 2 of 2, at a learning rate of 1e+30", "none was saved yet")
    refused(result, "OPTIM.LR", "OPTIM.WARMUP_EPOCH", "fp32")
    assert "--force-resume" not in result.error
    assert list(result.folder.glob("prompt_learner/model*")) == []


def test_a_method_that_checks_nothing_itself_is_stopped_too(run, monkeypatch):
    def loss_of(trainer, loss):
        return loss * float("nan") if (trainer.epoch, trainer.batch_idx) == (2, 1) else loss

    monkeypatch.setattr(CoOp, "forward_backward", lambda self, batch: step(self, batch, loss_of))
    result = run(*SHORT, "TRAIN.CHECKPOINT_FREQ", 1)
    # The rate is that of the batch, though the schedule has gone on to that of the next epoch.
    refused(result, "Loss is", "epoch 3, batch 2 of 2, at a learning rate of 0.001707", result.checkpoint(2))
    assert "--force-resume" in result.error
    assert not result.checkpoint(3).exists()
    assert all(value.isfinite().all() for value in tensors(result.checkpoint(2)).values())


def test_a_checkpoint_of_broken_parameters_is_never_written(run, monkeypatch):
    """The loss of the last step was finite; its update was not."""
    original = CoOp.forward_backward

    def breaks(self, batch):
        figures = original(self, batch)
        if (self.epoch, self.batch_idx) == (1, 1):
            self.model.prompt_learner.ctx.data[0, 0] = float("nan")
        return figures

    settings = (*SHORT, "OPTIM.MAX_EPOCH", 3, "TRAIN.CHECKPOINT_FREQ", 1)
    monkeypatch.setattr(CoOp, "forward_backward", breaks)
    stopped = run(*settings)
    refused(stopped, "ctx in prompt_learner is infinite or NaN", "epoch 2", stopped.checkpoint(1))
    assert not stopped.checkpoint(2).exists()
    assert (stopped.folder / "prompt_learner/checkpoint").read_text() == "model.pth.tar-1\n"
    monkeypatch.undo()
    resumed, whole = run(*settings), run(*settings, out="whole")
    assert resumed.code == 0, resumed.error
    assert resumed.accuracy == whole.accuracy


def test_none_of_several_models_is_saved_if_one_is_broken(tmp_path):
    trainer, model, broken = TrainerBase(), nn.Linear(2, 2), nn.Linear(2, 2)
    model.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))  # which is no parameter
    trainer.register_model("model", model)
    trainer.save_model(0, str(tmp_path / "good"))
    assert (tmp_path / "good/model/model.pth.tar-1").is_file()
    broken.bias.data[0] = torch.inf
    trainer.register_model("other", broken)
    with pytest.raises(DivergenceError, match="bias in other is infinite or NaN"):
        trainer.save_model(0, str(tmp_path / "bad"))
    assert not (tmp_path / "bad").exists()


def test_the_contract_of_detect_anomaly():
    trainer = TrainerBase()
    trainer.detect_anomaly(torch.tensor([1.0, 2.0]))
    for value in (torch.nan, torch.inf, -torch.inf):
        with pytest.raises(FloatingPointError, match="Loss is infinite or NaN! It happened in epoch 1"):
            trainer.detect_anomaly(torch.tensor([1.0, value]))


def test_outputs_in_validation_that_are_no_numbers_say_it_too(run, monkeypatch):
    monkeypatch.setattr(CoOp, "model_inference", lambda self, x: self.model(x) * (float("nan") if self.epoch else 1))
    result = run(*SHORT, "TEST.FINAL_MODEL", "best_val")
    assert result.code == 2
    assert "some outputs are not numbers (NaN): the model has diverged" in result.error
    assert "It happened in epoch 2, batch 2 of 2, at a learning rate of 0.002" in result.error
    assert f"The last good checkpoint: {result.folder}/prompt_learner/model-best.pth.tar." in result.error
