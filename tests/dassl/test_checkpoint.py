"""Checkpoints of the original CoOp: read without running code in them, and resumed at the right learning rate."""

import contextlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, StepLR

from dassl.config import get_cfg_default
from dassl.engine import TrainerBase
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import (
    UserError,
    load_checkpoint,
    load_pretrained_weights,
    resume_from_checkpoint,
    save_checkpoint,
    write_json,
)
from dassl.utils.checkpoint import find_checkpoints, resume_from_checkpoint_file
from tests.common import assert_same_tensors, load_tensors
from tests.stress.attacks import ATTACKS, MARKER, payload, text, torch_zip


def original_scheduler(optimizer, successor=CosineAnnealingLR, settings=(50,), epochs=3, rate=0.002) -> dict:
    """Return the state that the original's scheduler saves after ``epochs`` epochs, of which one is warm-up.

    It holds a live scheduler object.
    """
    live = successor(optimizer, *settings)
    live.last_epoch = epochs - 1
    return {
        "successor": live,
        "warmup_epoch": 1,
        "cons_lr": 1e-5,
        "base_lrs": [rate],
        "last_epoch": 1,  # it stands still after the warm-up
        "_step_count": 2,
        "_last_lr": [rate],
    }


def save_original(path: Path, learner: nn.Module, optimizer, scheduler: dict, epoch=3) -> Path:
    """Write a checkpoint as the original does, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "state_dict": learner.state_dict(),
        "epoch": epoch,
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler,
    }
    torch.save({**state, "val_result": np.float64(61.5)}, path)
    (path.parent / "checkpoint").write_text(f"{path.name}\n")
    return path


def make_optimizer(model: nn.Module, **values):
    """Return an optimizer that has made a step, and our schedule for it."""
    optim = get_cfg_default().OPTIM
    values = {"NAME": "sgd", "LR": 0.002, "LR_SCHEDULER": "cosine", "MAX_EPOCH": 50, **values}
    optim.merge_from_list([x for item in values.items() for x in item])
    optimizer = build_optimizer(model, optim)
    schedule = build_lr_scheduler(optimizer, optim)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return optimizer, schedule


@pytest.mark.parametrize(
    ("name", "successor", "settings"),
    [("sgd", CosineAnnealingLR, (50,)), ("adam", StepLR, (10,)), ("rmsprop", MultiStepLR, ([2, 5],))],
)
def test_a_checkpoint_of_the_original_is_read_without_its_live_scheduler(tmp_path, name, successor, settings):
    model = nn.Linear(2, 2)
    optimizer, _ = make_optimizer(model, NAME=name)
    scheduler = original_scheduler(optimizer, successor, settings)
    path = save_original(tmp_path / "model.pth.tar-3", model, optimizer, scheduler)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    checkpoint = load_checkpoint(path)
    assert set(checkpoint) == {"state_dict", "epoch", "optimizer", "scheduler", "val_result"}
    assert (checkpoint["val_result"], type(checkpoint["val_result"])) == (61.5, float)
    assert checkpoint["scheduler"] == {key: value for key, value in scheduler.items() if key != "successor"}
    assert all(torch.equal(checkpoint["state_dict"][key], value) for key, value in model.state_dict().items())
    loaded, _ = make_optimizer(nn.Linear(2, 2), NAME=name)
    loaded.load_state_dict(checkpoint["optimizer"])
    assert repr(loaded.state_dict()) == repr(optimizer.state_dict())


@pytest.mark.parametrize("warmup", [0, 1])
def test_our_schedule_resumes_from_a_checkpoint_of_the_original(tmp_path, warmup):
    def curve(optimizer, schedule, epochs):
        rates = []
        for _ in range(epochs):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return rates

    settings = {"WARMUP_EPOCH": warmup, "WARMUP_TYPE": "constant"}
    expected = curve(*make_optimizer(nn.Linear(2, 2), **settings), epochs=10)
    model = nn.Linear(2, 2)
    original, _ = make_optimizer(model)
    scheduler = original_scheduler(original)
    if not warmup:  # without warm-up, the original saves the state of PyTorch's class
        scheduler = scheduler["successor"].state_dict()
    original.param_groups[0]["lr"] = 0.5  # the schedule must not use it
    save_original(tmp_path / "model.pth.tar-3", model, original, scheduler)
    optimizer, schedule = make_optimizer(model, **settings)
    assert resume_from_checkpoint(tmp_path, model, optimizer, schedule) == 3
    assert schedule.get_last_lr() == expected[3:4]
    assert curve(optimizer, schedule, 7) == expected[3:]
    assert optimizer.state_dict()["state"][0]["momentum_buffer"].any()


def test_a_run_resumes_from_the_newest_checkpoint_not_from_the_best(tmp_path):
    for epoch, name in ((1, "model-best.pth.tar"), (2, "")):
        state = {"state_dict": {"weight": torch.full((1, 1), float(epoch))}, "epoch": epoch}
        save_checkpoint(state, tmp_path, model_name=name)
    model = nn.Linear(1, 1, bias=False)
    assert resume_from_checkpoint(tmp_path, model) == 2
    assert model.weight.item() == 2
    assert resume_from_checkpoint(tmp_path, model, epoch=2) == 2


def test_a_schedule_by_steps_resumes_at_its_step_with_the_current_learning_rate(tmp_path):
    """Resume with --force-resume after two of four epochs of five steps, in the middle of the cosine."""
    optim = get_cfg_default().OPTIM
    optim.merge_from_list(["NAME", "sgd", "LR_SCHEDULER", "cosine", "MAX_EPOCH", 4])
    model = nn.Linear(2, 2)

    def make(rate: float):
        optim.LR = rate
        optimizer = build_optimizer(model, optim)
        return optimizer, build_lr_scheduler(optimizer, optim, per_epoch=5)

    optimizer, schedule = make(0.1)
    for _ in range(10):
        optimizer.step()
        schedule.step()
    states = {"optimizer": optimizer.state_dict(), "scheduler": schedule.state_dict()}
    save_checkpoint({"state_dict": model.state_dict(), "epoch": 2, **states}, tmp_path)
    optimizer, schedule = make(0.3)
    resume_from_checkpoint_file(tmp_path / "model.pth.tar-2", model, optimizer, schedule, force=True)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.15)


def test_coop_resumes_a_run_of_the_original_and_saves_what_the_original_loads(run, tmp_path):
    settings = ("DATASET.NUM_SHOTS", 2, "DATASET.SUBSAMPLE_CLASSES", "base", "DATALOADER.TRAIN_X.BATCH_SIZE", 4)
    settings += ("OPTIM.MAX_EPOCH", 4, "TRAIN.CHECKPOINT_FREQ", 2)
    settings += ("INPUT.TRANSFORMS", '["random_resized_crop","normalize"]')
    unbroken = run(*settings, out="unbroken")
    assert torch.serialization.get_unsafe_globals_in_checkpoint(unbroken.checkpoint(4)) == []
    assert (unbroken.folder / "prompt_learner/checkpoint").read_text().strip() == "model.pth.tar-4"
    saved = load_tensors(unbroken.checkpoint(2))
    width = saved["ctx"].shape[1]
    shapes = {"ctx": (16, width), "token_prefix": (5, 1, width), "token_suffix": (5, 77 - 1 - 16, width)}
    assert {name: tuple(tensor.shape) for name, tensor in saved.items()} == shapes

    def as_the_original(epoch: int) -> Path:
        """Return a run's folder with the checkpoint of ``epoch`` as the original would have written it."""
        saved = torch.load(unbroken.checkpoint(epoch), weights_only=True)
        learner = nn.Module()
        learner.ctx = nn.Parameter(saved["state_dict"]["ctx"])
        for name in ("token_prefix", "token_suffix"):
            learner.register_buffer(name, saved["state_dict"][name])
        learner = nn.DataParallel(learner)  # the names in its state_dict begin with "module."
        optimizer = torch.optim.SGD(learner.parameters(), 0.002, momentum=0.9, weight_decay=5e-4)
        optimizer.load_state_dict(saved["optimizer"])
        scheduler = original_scheduler(optimizer, settings=(4,), epochs=epoch)
        folder = tmp_path / f"original{epoch}"
        save_original(folder / f"prompt_learner/model.pth.tar-{epoch}", learner, optimizer, scheduler, epoch)
        return folder

    resumed = run("--resume", as_the_original(2), *settings, out="resumed")
    assert resumed.code == 0, resumed.error
    assert_same_tensors(unbroken.checkpoint(4), resumed.checkpoint(4))
    evaluated = run("--eval-only", "--model-dir", as_the_original(4), "--load-epoch", 4, *settings, out="evaluated")
    assert evaluated.accuracy == unbroken.accuracy


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_code_in_a_checkpoint_is_run(tmp_path, attack):
    content = b"\x80\x02}(" + text("state_dict") + b"}" + text("scheduler") + payload(attack, tmp_path) + b"u."
    with contextlib.suppress(UserError):
        assert load_checkpoint(torch_zip(tmp_path / "model.pth.tar-1", content)) == {"state_dict": {}}
    assert not (tmp_path / MARKER).exists()


def test_numpy_numbers_are_saved_as_python_numbers(tmp_path):
    save_checkpoint({"state_dict": {}, "epoch": 1, "val_result": np.float32(61.5)}, tmp_path)
    assert torch.load(tmp_path / "model.pth.tar-1", weights_only=True)["val_result"] == 61.5


def test_checkpoints_in_the_format_before_zip_are_read(tmp_path):
    state = {"state_dict": {"w": torch.ones(2)}, "epoch": 1, "scheduler": {"last_epoch": 1}}
    torch.save(state, tmp_path / "old", _use_new_zipfile_serialization=False)
    assert load_checkpoint(tmp_path / "old")["scheduler"] == {"last_epoch": 1}
    torch.save({**state, "scheduler": Path}, tmp_path / "old", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="old cannot be read as a checkpoint"):
        load_checkpoint(tmp_path / "old")


def test_a_data_parallel_model_is_resumed(tmp_path):
    model = nn.DataParallel(nn.Linear(2, 2))
    optimizer, schedule = make_optimizer(model)
    before = model.module.weight.clone()
    save_checkpoint({"state_dict": model.state_dict(), "epoch": 1, "optimizer": optimizer.state_dict()}, tmp_path)
    nn.init.zeros_(model.module.weight)
    resume_from_checkpoint(tmp_path, model, optimizer, schedule)
    assert torch.equal(model.module.weight, before)


def test_the_scale_of_mixed_precision_is_resumed(tmp_path):
    def trainer(**scale) -> TrainerBase:
        trainer = TrainerBase()
        model = nn.Linear(2, 2)
        trainer.register_model("model", model, *make_optimizer(model))
        trainer.scaler = torch.amp.GradScaler("cpu", **scale)
        return trainer

    first, second = trainer(init_scale=8.0, growth_interval=1), trainer()
    first.model_backward_and_update(first._models["model"](torch.ones(1, 2)).sum())
    first.save_model(0, tmp_path)
    assert second.resume_model_if_exist(tmp_path) == 1
    assert second.scaler.get_scale() == first.scaler.get_scale() == 16
    assert torch.load(tmp_path / "model/model.pth.tar-1", weights_only=True)["scaler"] == first.scaler.state_dict()


def test_a_checkpoint_is_found_from_the_run_the_models_folder_or_the_file(tmp_path):
    folder = tmp_path / "prompt_learner"
    for epoch in (2, 10, 9):
        save_checkpoint({"state_dict": {}, "epoch": epoch}, folder)
    (folder / "checkpoint").unlink()  # a downloaded folder
    newest = folder / "model.pth.tar-10"
    for source in (tmp_path, folder, newest):
        assert find_checkpoints(source, ["prompt_learner"]) == {"prompt_learner": newest}
        assert find_checkpoints(source, ["prompt_learner"], 10) == {"prompt_learner": newest}
    assert find_checkpoints(folder, ["prompt_learner"], 2)["prompt_learner"] == folder / "model.pth.tar-2"
    with pytest.raises(UserError, match="epoch 10, not 2"):
        find_checkpoints(newest, ["prompt_learner"], 2)
    with pytest.raises(UserError, match="one checkpoint, but there are 2 models: a, b"):
        find_checkpoints(newest, ["a", "b"])
    save_checkpoint({"state_dict": {}, "epoch": 1}, folder, model_name="model-best.pth.tar")
    assert find_checkpoints(tmp_path, ["prompt_learner"])["prompt_learner"].name == "model-best.pth.tar"


class Masked(nn.Module):
    """A model with a batch normalisation and an attention mask, which is infinite by design."""

    def __init__(self):
        super().__init__()
        self.ctx, self.norm = nn.Parameter(torch.zeros(2, 3)), nn.BatchNorm1d(3)
        self.register_buffer("attn_mask", torch.full((2, 2), -torch.inf).triu_(1))


@pytest.mark.parametrize(("name", "value"), [("ctx", torch.nan), ("norm.running_var", torch.inf)])
def test_a_checkpoint_with_values_that_are_not_finite_is_refused_by_name(tmp_path, name, value):
    model, path = Masked(), tmp_path / "model.pth.tar-1"
    save_checkpoint({"state_dict": model.state_dict(), "epoch": 1}, tmp_path)
    resume_from_checkpoint_file(path, model)
    model.state_dict()[name][..., 0] = value
    damaged = {f"module.{key}": tensor for key, tensor in model.state_dict().items()}
    save_checkpoint({"state_dict": damaged, "epoch": 1}, tmp_path)
    for load in (resume_from_checkpoint_file, lambda path, model: load_pretrained_weights(model, path)):
        with pytest.raises(UserError, match=rf"model.pth.tar-1 is damaged.* values of {name} are NaN or infinite"):
            load(path, Masked())


def test_a_runs_model_with_nan_is_refused_in_evaluation_and_as_initial_weights(run):
    trained = run("DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 1, "TEST.NO_TEST", True, out="trained")
    path = trained.checkpoint(1)
    content = torch.load(path, weights_only=True)
    content["state_dict"]["ctx"][0, 0] = torch.nan
    torch.save(content, path)
    for arguments in (("--eval-only", "--model-dir", trained.folder), ("MODEL.INIT_WEIGHTS", path)):
        result = run(*arguments, "DATASET.NUM_SHOTS", 1, out="other")
        assert result.code == 2
        assert f"{path} is damaged" in result.error
        assert "1 of 2,048 values of ctx are NaN or infinite" in result.error


def test_nan_in_json_is_refused_and_nothing_is_written(tmp_path):
    for value in (float("nan"), float("inf")):
        with pytest.raises(UserError, match="result.json is not written: a number in it is NaN or infinite"):
            write_json({"accuracy": [value]}, tmp_path / "result.json")
    assert list(tmp_path.iterdir()) == []
