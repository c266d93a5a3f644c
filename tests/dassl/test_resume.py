"""Resumed runs: which checkpoint they take, changed settings, removing old checkpoints, and Ctrl-C."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dassl.config import get_cfg_default
from dassl.data.datasets import DatasetBase, Datum
from dassl.engine.checkpoint import diff_origins, get_origin, latest_common_checkpoints
from dassl.utils import UserError, load_checkpoint, save_checkpoint
from dassl.utils.checkpoint import BEST_NAME, LATEST_NAME, remove_old_checkpoint_files, resume_from_checkpoint_file
from tests.common import assert_same_tensors
from trainers.backbone import Backbone
from trainers.coop import CoOp

SHORT = ("DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 6)


def stop_after(monkeypatch, epochs: int, error=KeyboardInterrupt):
    """Make the next run raise ``error`` after so many completed epochs."""
    original = CoOp.forward_backward

    def stopping(self, batch):
        if self.epoch == epochs:
            monkeypatch.setattr(CoOp, "forward_backward", original)
            raise error
        return original(self, batch)

    monkeypatch.setattr(CoOp, "forward_backward", stopping)


def test_ctrl_c_prints_the_epoch_and_the_command_that_resumes_the_run(run, monkeypatch):
    unbroken = run(*SHORT, out="unbroken")
    stop_after(monkeypatch, 3)
    stopped = run(*SHORT, "TRAIN.CHECKPOINT_FREQ", 2, out="a folder")
    assert stopped.code == 130
    message, command = stopped.error.strip().splitlines()
    assert message == "stopped in epoch 4 of 6; this command resumes after epoch 2:"
    assert re.fullmatch(r"  python (.*/)?train.py --root .* --output-dir '.*/a folder' .*", command)
    assert command.split()[-2:] == ["TRAIN.CHECKPOINT_FREQ", "2"]
    assert stopped.log.endswith(f"{message}\n{command}\n")
    resumed = run(*SHORT, "TRAIN.CHECKPOINT_FREQ", 2, out="a folder")
    assert "epoch [2/6]" not in resumed.log
    assert_same_tensors(unbroken.checkpoint(6), resumed.checkpoint(6))


def test_old_checkpoints_are_removed_after_a_kill_at_the_end_of_training(run):
    settings = ("DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 2, "TRAIN.CHECKPOINT_FREQ", 1, "TRAIN.KEEP_CHECKPOINTS", 1)
    last = run(*settings).checkpoint(2)
    (last.parent / "model.pth.tar-1").write_bytes(last.read_bytes())  # as if it had not been removed yet
    assert run(*settings).code == 0
    assert [path.name for path in sorted(last.parent.glob("model*"))] == [last.name]


def test_a_renamed_class_without_training_images_is_another_origin():
    def origin(name):
        dataset = DatasetBase(train_x=[Datum("data/0.jpg", 0, classname="cat")])
        dataset._classnames = ["cat", name]
        return get_origin(SimpleNamespace(cfg=get_cfg_default(), provenance={}, dm=SimpleNamespace(dataset=dataset)))

    assert diff_origins(origin("dog"), origin("dog")) == []
    (change,) = diff_origins(origin("dog"), origin("cow"))
    assert change.startswith("class names ")


def test_ctrl_c_before_the_first_checkpoint_says_that_the_run_starts_again(run, monkeypatch):
    stop_after(monkeypatch, 0)
    assert "stopped in epoch 1 of 6; this command resumes from the beginning:\n" in run(*SHORT).error


def test_a_negative_number_of_checkpoints_to_keep_is_refused(run):
    refused = run("TRAIN.KEEP_CHECKPOINTS", -1)
    assert refused.code == 2
    assert "TRAIN.KEEP_CHECKPOINTS is -1" in refused.error


def test_the_newest_checkpoint_is_never_removed(tmp_path):
    for epoch in (1, 2, 10):
        save_checkpoint({"state_dict": {}, "epoch": epoch}, tmp_path)
    (tmp_path / "checkpoint").write_text("model.pth.tar-1\n", encoding="utf-8")
    remove_old_checkpoint_files(tmp_path, keep=1)
    assert {path.name for path in tmp_path.glob("model*")} == {"model.pth.tar-1", "model.pth.tar-10"}


def test_models_resume_from_the_last_epoch_that_all_of_them_have(tmp_path):
    def save(model: str, epoch: int, name: str = "") -> Path:
        save_checkpoint({"state_dict": {}, "epoch": epoch}, tmp_path / model, model_name=name)
        return tmp_path / model / (name or f"model.pth.tar-{epoch}")

    def common(*names: str) -> list[Path]:
        return latest_common_checkpoints(tmp_path, names or ("a", "b"))

    assert common() == []
    a2 = save("a", 2)
    assert common() == []
    b2 = save("b", 2)
    a3 = save("a", 3, LATEST_NAME.format(3))
    assert common() == [a2, b2]
    b3 = save("b", 3, LATEST_NAME.format(3))
    assert common() == [a3, b3]
    assert common("a") == [a3]
    save("a", 4, LATEST_NAME.format(4))
    assert common() == [a3, b3]
    a3.unlink()
    assert common() == [a2, b2]
    a2.unlink()
    assert common() == []


def test_changed_settings_are_refused_by_key_unless_forced(run):
    first = run(*SHORT, "TRAIN.CHECKPOINT_FREQ", 3)
    other = (*SHORT, "OPTIM.LR", 0.1, "OPTIM.MAX_EPOCH", 8, "OPTIM.MOMENTUM", 0.5)
    refused = run(*other)
    assert refused.code == 2
    changes = "OPTIM.LR 0.002 -> 0.1; OPTIM.MAX_EPOCH 6 -> 8; OPTIM.MOMENTUM 0.9 -> 0.5."
    assert changes in refused.error
    assert "--force-resume (FORCE_RESUME True)" in refused.error  # the train.py of others has only KEY VALUE
    forced = run(*other, "FORCE_RESUME", True)
    assert forced.code == 0, forced.error
    assert f"--force-resume: {first.folder} holds the checkpoints of a run with other settings: {changes[:-1]}\n" in (
        forced.log
    )
    assert re.findall(r"epoch \[(\d)/8\]", forced.log) == ["7", "8"]
    group = load_checkpoint(forced.checkpoint(8))["optimizer"]["param_groups"][0]
    assert (group["initial_lr"], group["momentum"]) == (0.1, 0.5)
    rates = [float(rate) for rate in re.findall(r"lr (\S+)", forced.log)]
    new = run(*other, out="new")
    assert rates == [float(rate) for rate in re.findall(r"lr (\S+)", new.log)][6:]
    schedule = "from epoch 7 on, the learning rate is that of the new settings at this epoch"
    assert forced.record["forced"] == [f"after epoch 6, other settings: {changes[:-1]}", schedule]
    assert f"--force-resume: {schedule}\n" in forced.log
    assert run(*other).code == run(*SHORT).code == 2  # the checkpoints have neither config


def test_forced_changes_are_recorded_in_later_checkpoints(run, monkeypatch):
    stop_after(monkeypatch, 3)
    each_epoch = ("OPTIM.MAX_EPOCH", 6, "TRAIN.CHECKPOINT_FREQ", 1, "TEST.FINAL_MODEL", "best_val")
    run(*each_epoch, "DATASET.NUM_SHOTS", 2)
    stop_after(monkeypatch, 5)
    forced = run("--force-resume", *each_epoch, "DATASET.NUM_SHOTS", 1)
    assert "--force-resume: after epoch 3, other settings: DATASET.NUM_SHOTS 2 -> 1\n" in forced.log
    assert "--force-resume: after epoch 3, other train_x images " in forced.log
    changed = run(*each_epoch, "DATASET.NUM_SHOTS", 2)
    assert changed.code == 2
    assert "the checkpoints were made with other settings: DATASET.NUM_SHOTS 1 -> 2; train_x images" in changed.error
    unbroken = run("--force-resume", *each_epoch, "DATASET.NUM_SHOTS", 1)
    assert unbroken.code == 0, unbroken.error
    assert any("DATASET.NUM_SHOTS 2 -> 1" in change for change in unbroken.record["forced"])
    assert (
        load_checkpoint(unbroken.folder / "prompt_learner" / BEST_NAME)["epoch"] > 3
    )  # not from the epochs with two shots


def test_a_forced_run_that_fails_leaves_the_run_resumable(run, monkeypatch):
    stop_after(monkeypatch, 3)
    run(*SHORT, "TRAIN.CHECKPOINT_FREQ", 1)
    failed = run("--force-resume", *SHORT, "TRAINER.COOP.N_CTX", 4)
    assert "does not fit this configuration" in failed.error
    assert run(*SHORT).code == 0


def test_a_finished_run_with_other_weights_or_fewer_epochs_or_a_damaged_checkpoint_is_refused(run, monkeypatch):
    first = run(*SHORT)
    shorter = run("--force-resume", *SHORT, "OPTIM.MAX_EPOCH", 4)
    assert "is at epoch 6; OPTIM.MAX_EPOCH is 4" in shorter.error
    with monkeypatch.context() as patch:
        patch.setattr(Backbone, "report_parameters", lambda *_: {"weights": {"sha256": "0" * 64}})
        assert re.search("made with other weights [0-9a-f]{12} -> 000000000000", run(*SHORT).error)
    path = first.checkpoint(6)
    torch.save({**torch.load(path, weights_only=True), "random": {"python": 1}}, path)
    damaged = run(*SHORT)
    assert damaged.code == 2
    assert f"{path} is damaged" in damaged.error


def test_a_run_that_resumed_from_another_folder_resumes_from_its_own_checkpoints(run, monkeypatch):
    first = run(*SHORT, "TRAIN.CHECKPOINT_FREQ", 2, out="first")
    (first.folder / "prompt_learner/checkpoint").write_text("model.pth.tar-2\n", encoding="utf-8")
    command = ("--resume", first.folder, *SHORT, "TRAIN.CHECKPOINT_FREQ", 1)
    stop_after(monkeypatch, 4)
    assert "this command resumes after epoch 4:" in run(*command, out="second").error
    second = run(*command, out="second")
    assert re.findall(r"epoch \[(\d)/6\]", second.log) == ["5", "6"]
    assert_same_tensors(first.checkpoint(6), second.checkpoint(6))


def test_a_resumed_run_without_a_seed_takes_that_of_the_earlier_run(run):
    first = run(*SHORT, out="first", seed=-1)
    second = run("--resume", first.folder, *SHORT, out="second", seed=-1)
    assert second.record["seed"] == first.record["seed"]


def test_the_state_of_another_optimizer_is_refused(tmp_path):
    one, two = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    saved = torch.optim.SGD([{"params": [p]} for p in one.parameters()], 0.1)
    state = {"state_dict": one.state_dict(), "epoch": 1, "optimizer": saved.state_dict(), "scheduler": None}
    save_checkpoint(state, tmp_path)
    with pytest.raises(UserError, match="model.pth.tar-1 holds the state of another optimizer"):
        resume_from_checkpoint_file(
            tmp_path / "model.pth.tar-1", two, torch.optim.SGD(two.parameters(), 0.1), force=True
        )
