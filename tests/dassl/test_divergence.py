"""Training that diverges stops with a message that names the batch, and leaves good checkpoints alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dassl.engine import TrainerBase
from dassl.engine.checkpoint import DivergenceError
from tests.common import load_tensors
from trainers.coop import CoOp

# 40 images: two batches an epoch; the last 8 images are dropped
SHORT = ("DATASET.NUM_SHOTS", 4, "OPTIM.MAX_EPOCH", 4, "DATALOADER.TRAIN_X.BATCH_SIZE", 16)


def assert_diverged(result, *messages: object) -> None:
    """Check that a run ended in one error line that contains all ``messages``, and left no result."""
    assert result.code == 2
    assert result.error.startswith("error: ")
    assert result.error.count("\n") == 1
    for message in messages:
        assert str(message) in result.error
    assert "=> result" not in result.log
    assert not (result.folder / "result.json").exists()


def step(self, batch, loss_of):
    """Make a step of CoOp without the engine's methods, as third-party trainers do; ``loss_of`` changes the loss."""
    features, label, _ = self.parse_batch_train(batch)
    loss = loss_of(self, F.cross_entropy(self.model(features), label))
    self.optim.zero_grad()
    loss.backward()
    self.optim.step()
    if self.batch_idx + 1 == self.num_batches:
        self.update_lr()
    return {"loss_ce": loss.item(), "acc": float("nan")}  # a NaN metric that is no loss is not a divergence


def test_divergence_is_reported_with_its_batch_learning_rate_and_remedies(run):
    result = run(*SHORT, "OPTIM.LR", "1e30")
    assert_diverged(
        result, "infinite or NaN", "epoch 2, batch 2 of 2, at a learning rate of 1e+30", "none was saved yet"
    )
    assert_diverged(result, "OPTIM.LR", "OPTIM.WARMUP_EPOCH", "fp32")
    assert "--force-resume" not in result.error
    assert list(result.folder.glob("prompt_learner/model*")) == []


def test_a_method_that_does_not_check_its_loss_is_stopped(run, monkeypatch):
    def loss_of(trainer, loss):
        return loss * float("nan") if (trainer.epoch, trainer.batch_idx) == (2, 1) else loss

    monkeypatch.setattr(CoOp, "forward_backward", lambda self, batch: step(self, batch, loss_of))
    result = run(*SHORT, "TRAIN.CHECKPOINT_FREQ", 1)
    # The learning rate is that of the batch, although the schedule has made its step to the next epoch.
    assert_diverged(result, "Loss is", "epoch 3, batch 2 of 2, at a learning rate of 0.001707", result.checkpoint(2))
    assert "--force-resume" in result.error
    assert not result.checkpoint(3).exists()
    assert all(value.isfinite().all() for value in load_tensors(result.checkpoint(2)).values())


def test_parameters_that_are_not_finite_are_never_saved(run, monkeypatch):
    """The loss of the last step is finite; the parameters after it are not."""
    original = CoOp.forward_backward

    def break_parameters(self, batch):
        metrics = original(self, batch)
        if (self.epoch, self.batch_idx) == (1, 1):
            self.model.prompt_learner.ctx.data[0, 0] = float("nan")
        return metrics

    settings = (*SHORT, "OPTIM.MAX_EPOCH", 3, "TRAIN.CHECKPOINT_FREQ", 1)
    monkeypatch.setattr(CoOp, "forward_backward", break_parameters)
    stopped = run(*settings)
    assert_diverged(stopped, "ctx in prompt_learner is infinite or NaN", "epoch 2", stopped.checkpoint(1))
    assert not stopped.checkpoint(2).exists()
    assert (stopped.folder / "prompt_learner/checkpoint").read_text() == "model.pth.tar-1\n"
    monkeypatch.undo()
    resumed, unbroken = run(*settings), run(*settings, out="unbroken")
    assert resumed.code == 0, resumed.error
    assert resumed.accuracy == unbroken.accuracy


def test_no_model_is_saved_if_one_is_not_finite(tmp_path):
    trainer, model, broken = TrainerBase(), nn.Linear(2, 2), nn.Linear(2, 2)
    model.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))  # infinite, but not a parameter
    trainer.register_model("model", model)
    trainer.save_model(0, str(tmp_path / "good"))
    assert (tmp_path / "good/model/model.pth.tar-1").is_file()
    broken.bias.data[0] = torch.inf
    trainer.register_model("other", broken)
    with pytest.raises(DivergenceError, match="bias in other is infinite or NaN"):
        trainer.save_model(0, str(tmp_path / "bad"))
    assert not (tmp_path / "bad").exists()


def test_detect_anomaly_raises_unless_the_loss_is_finite():
    trainer = TrainerBase()
    trainer.detect_anomaly(torch.tensor([1.0, 2.0]))
    for value in (torch.nan, torch.inf, -torch.inf):
        with pytest.raises(FloatingPointError, match="Loss is infinite or NaN! It happened in epoch 1"):
            trainer.detect_anomaly(torch.tensor([1.0, value]))


def test_validation_outputs_that_are_not_finite_are_reported_with_their_batch(run, monkeypatch):
    monkeypatch.setattr(CoOp, "model_inference", lambda self, x: self.model(x) * (float("nan") if self.epoch else 1))
    result = run(*SHORT, "TEST.FINAL_MODEL", "best_val")
    assert result.code == 2
    assert "some outputs are NaN or infinite: the model has diverged" in result.error
    assert "It happened in epoch 2, batch 2 of 2, at a learning rate of 0.002" in result.error
    assert f"The last good checkpoint: {result.folder}/prompt_learner/model-best.pth.tar." in result.error
