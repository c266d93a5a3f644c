"""Two processes of torchrun do what one does: the same steps, the same results, one log; and end with one message."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from filelock import FileLock, Timeout
from torch.utils.data import DataLoader
from yacs.config import CfgNode

import train
from dassl.data.samplers import PARTS, TURNS, SharedBatches, share_of, weight_of_part
from dassl.engine import TrainerXU
from dassl.engine.resumable import ResumableTrainer
from dassl.utils import UserError, distributed, endings, listdir_nohidden, load_checkpoint, save_checkpoint
from tests.common import REPOSITORY, tensors
from tests.conftest import Run
from vlm import feature_store

TUNE = (
    *("--trainer", "CLIPFineTune", "--config-file", REPOSITORY / "configs/trainers/CLIPFineTune/tiny.yaml"),
    *("DATASET.NUM_SHOTS", 2, "OPTIM.NAME", "sgd", "OPTIM.LR", 0.0003, "DATALOADER.TRAIN_X.BATCH_SIZE", 9),
    *("DATALOADER.TEST.BATCH_SIZE", 128, "TRAIN.PRINT_FREQ", 1, "TRAIN.CHECKPOINT_FREQ", 1),
    *("OPTIM.MAX_EPOCH", 3),
)  # parts of 4 and 5; 896 test images are 7 batches
COOP = (
    *("DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 2, "DATALOADER.TRAIN_X.BATCH_SIZE", 5, "TRAIN.PRINT_FREQ", 1),
    *("DATALOADER.TEST.BATCH_SIZE", 128, "TEST.FINAL_MODEL", "best_val"),
)


@pytest.fixture
def command(run, digits_root, tmp_path):
    """The arguments of train.py with which ``run`` would call it."""

    def of(*arguments: object, out: str, trainer: str = "CoOp") -> list[str]:
        argv = ["--root", digits_root, "--trainer", trainer, "--seed", 1, "--output-dir", tmp_path / out]
        argv += ["--dataset-config-file", REPOSITORY / "configs/datasets/digits.yaml"]
        argv += ["--config-file", REPOSITORY / "configs/trainers/CoOp/tiny.yaml"]
        return [str(word) for word in [*argv, *arguments]]

    return of


def torchrun(*arguments: object) -> subprocess.CompletedProcess:
    """Two processes of a script."""
    command = ["--standalone", "--nproc-per-node", "2", *map(str, arguments)]
    return start([sys.executable, "-m", "torch.distributed.run", *command])


def start(command: list[str]) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)


def several(tmp_path: Path, *todo: tuple[str, list[str]]) -> subprocess.CompletedProcess:
    (tmp_path / "commands.json").write_text(json.dumps(todo))
    return torchrun(REPOSITORY / "tests/several.py", tmp_path / "commands.json")


def lines_of(log: str) -> list[str]:
    """What a log says, without times and names of folders."""
    kept = re.sub(r"time \S+ \(\S+\) data \S+ \(\S+\)|eta \S+", "", log).split("Loading trainer")[1].splitlines()
    return [line for line in kept if "/" not in line.replace("[1/", "").replace("[2/", "") and "Elapsed" not in line]


def same_tensors(one: Path, two: Path) -> None:
    mine, theirs = tensors(one), tensors(two)
    assert mine.keys() == theirs.keys()
    for key in mine:
        torch.testing.assert_close(mine[key], theirs[key], rtol=0, atol=1e-5)


def same_results(one: Run, two: Run, model: str) -> None:
    saved = [path.name for path in (one.folder / model).glob("model*")] if model else []
    for name in saved:
        same_tensors(one.folder / model / name, two.folder / model / name)
    assert set(listdir_nohidden(one.folder / model)) == set(listdir_nohidden(two.folder / model))
    assert lines_of(one.log) == lines_of(two.log)
    assert two.log.count("=> result") == one.log.count("=> result")
    for key in ("accuracy", "correct", "total", "macro_f1", "splits"):
        assert one.record[key] == two.record[key]
    assert (one.record.get("processes"), two.record["processes"]) == (None, 2)
    assert set(listdir_nohidden(one.folder)) == set(listdir_nohidden(two.folder))


def test_two_processes_do_what_one_does_and_end_with_one_message(run, command, tmp_path):
    """One test, since processes take longer to start than anything here."""
    zero = ("DATALOADER.TEST.BATCH_SIZE", 128)
    runs = {
        "tune": ("CLIPFineTune", "clip", TUNE),
        "coop": ("CoOp", "prompt_learner", COOP),
        "zero": ("ZeroshotCLIP", "", zero),
        "probe": ("LinearProbe", "linear_probe", ("DATASET.NUM_SHOTS", 1, *zero)),
    }
    ended = several(
        tmp_path,
        ("gradients", []),
        *((name, command(*settings, trainer=trainer, out=f"{name}2")) for name, (trainer, _, settings) in runs.items()),
        ("own_loop", command(*COOP, out="own_loop")),
        ("unaveraged", command(*COOP, out="unaveraged")),
        ("refused", command("TEST.EVALUATOR", "Clasification", out="refused")),
        ("mistaken", command(*COOP, out="mistaken")),
        ("killed", command(*TUNE, out="killed")),
    )
    codes = dict(re.findall(r"^(\w+) ended in (\d+)$", ended.stdout, re.MULTILINE))
    mistakes = dict.fromkeys(("unaveraged", "refused", "mistaken", "killed"), "2")
    assert codes == {**dict.fromkeys(("gradients", "own_loop", *runs), "0"), **mistakes}, ended.stderr
    for name, (trainer, model, settings) in runs.items():
        one = run(*settings, trainer=trainer, out=name)
        assert one.code == 0, one.error
        same_results(one, Run(0, tmp_path / f"{name}2", ""), model)
    assert "Processes: 2, each" in (tmp_path / "tune2/log.txt").read_text()
    assert load_checkpoint(tmp_path / "tune2/clip/model.pth.tar-3")["processes"] == [2]
    same_tensors(*(tmp_path / name / "prompt_learner/model.pth.tar-2" for name in ("coop", "own_loop")))
    assert "a step of its own" in (tmp_path / "unaveraged/log.txt").read_text()
    check_messages(ended.stderr, tmp_path)
    again = check_loss(ended.stderr, tmp_path / "killed")
    resumed = start([sys.executable, "-m", "torch.distributed.run", *again[1:]])
    assert resumed.returncode == 0, resumed.stderr
    whole, parts = (Run(0, tmp_path / name, "") for name in ("tune", "killed"))
    assert set(re.findall(r"epoch \[(\d)/3\]", parts.log)) == {"2", "3"}
    same_tensors(*(each.folder / "clip/model.pth.tar-3" for each in (whole, parts)))
    assert whole.record["correct"] == parts.record["correct"]


def check_messages(errors: str, folder: Path) -> None:
    """Each mistake is told once, with the number of the process if it is one's alone."""
    told = re.findall(r"^error: .*$", errors, re.MULTILINE)
    assert len(told) == 4, errors
    assert "CoOp does not run in several processes: it steps" in told[0]
    assert 'did you mean "Classification"' in told[1]
    assert told[2] == "error: rank 1: this process cannot go on"
    assert (folder / "mistaken/log.txt").read_text().endswith(f"{told[2]}\n")


def check_loss(errors: str, folder: Path) -> list[str]:
    """Whoever is left names the process that was killed, and the command that goes on, which is returned."""
    ((who, command),) = re.findall(
        r"^error: (rank 1 \(process \d+ on .*\) was lost .*:)\n  (.*)$", errors, re.MULTILINE
    )
    assert who.endswith("was lost in epoch 2 of 3; this goes on after epoch 1:")
    assert (folder / "log.txt").read_text().endswith(f"error: {who}\n  {command}\n")
    assert not (folder / "result.json").exists()
    again = shlex.split(command)
    assert again[:5] == ["torchrun", "--standalone", "--nproc-per-node", "2", "train.py"]
    return again


# ---- in one process ----


@pytest.fixture
def as_rank(monkeypatch):
    """Make this process one of several, as far as it is only asked which."""

    def become(rank: int, size: int) -> None:
        monkeypatch.setattr(distributed, "_group", distributed._Group(rank, size, None))

    return become


@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_parts_of_all_processes_are_the_batch_and_their_turns_the_epoch(as_rank, size):
    batches = SharedBatches(range(23), 7, drop_last=False)
    whole = list(batches)
    shares = {}
    for batches.share in (PARTS, TURNS):
        for rank in range(size):
            as_rank(rank, size)
            shares[batches.share, rank] = list(batches)
            assert len(batches) == len(shares[batches.share, rank])
    parts = [[shares[PARTS, rank][at] for rank in range(size)] for at in range(len(whole))]
    assert [[*itertools.chain(*of)] for of in parts] == whole
    assert all(max(map(len, of)) - min(map(len, of)) <= 1 for of in parts)
    assert sorted(batch for rank in range(size) for batch in shares[TURNS, rank]) == whole


@pytest.mark.parametrize("size", [2, 3])
def test_a_loader_is_shared_in_the_engines_own_loop_alone(as_rank, size):
    as_rank(1, size)
    trainer, seen = object.__new__(TrainerXU), []
    loaders = [DataLoader(range(12), batch_sampler=SharedBatches(range(12), 6, False)) for _ in range(2)]
    trainer.train_loader_x, trainer.train_loader_u = loaders
    trainer.cfg = CfgNode({"TRAIN": {"COUNT_ITER": "train_x"}})
    trainer.run_batches = lambda batches, number: seen.extend((*map(share_of, loaders), len(list(batches)), number))
    assert [len(indices) for indices in loaders[0].batch_sampler] == [6, 6]
    trainer.run_epoch()
    assert seen == [PARTS, PARTS, 2, 2]
    assert [len(indices) for indices in loaders[0].batch_sampler] == [6, 6]


def test_parts_of_the_batches_of_a_step_weigh_the_same_or_are_refused_by_all(as_rank):
    assert weight_of_part([{"parts": [3, 4]}]) == 1  # of one process
    for rank in range(3):
        as_rank(rank, 3)
        assert weight_of_part([{"parts": [2, 2, 2]}, {"parts": [4, 4, 4]}, "whole"]) == 1
        assert weight_of_part([{"parts": [1, 2, 2]}, {"parts": [2, 4, 4]}]) == [0.6, 1.2, 1.2][rank]
        with pytest.raises(UserError, match="must be a multiple of the 3 processes, or the same"):
            weight_of_part([{"parts": [1, 2, 3]}, {"parts": [2, 2, 2]}])  # the second one's weights are alike


def test_other_launchers_processes_run_alone_and_none_waits_without_end(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with endings.one_of_several():
        assert distributed.world_size() == 1
    monkeypatch.setenv("LOCAL_RANK", "1")
    handlers, join = [], distributed.join
    monkeypatch.setattr(endings, "join", lambda: (handlers.append(signal.getsignal(signal.SIGTERM)), join()))
    before = signal.getsignal(signal.SIGTERM)
    told = "processes of the run do not find each other: .*MASTER_ADDR.*; start it with torchrun$"
    with pytest.raises(UserError, match=told), endings.one_of_several():
        pass
    assert handlers == [before]
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setattr(distributed, "RENDEZVOUS", timedelta(seconds=1))
    with pytest.raises(UserError, match="start it with torchrun$"), endings.one_of_several():
        pass


def test_a_run_of_several_processes_waits_for_another_run_for_a_while(as_rank, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_store, "PATIENCE", 0.1)
    store = feature_store.FeatureStore(tmp_path, {"weights": "sha"}, 1)
    left, written = (store.folder / f".{name}.x1y2.tmp" for name in ("left", "written"))
    left.touch()
    os.utime(left, (0, 0))
    written.touch()
    as_rank(0, 2)
    with FileLock(store.folder / ".lock") as other:
        with store.locked():
            assert other.is_locked
        with pytest.raises(Timeout):
            FileLock(store.folder / ".lock").acquire(timeout=0)
    assert (left.exists(), written.exists()) == (False, True)


def test_it_is_known_how_many_processes_each_part_of_a_run_had(as_rank):
    trainer = object.__new__(ResumableTrainer)
    assert trainer.processes == [1]
    for size, before, all_of_them in ((3, (), [3]), (3, (3,), [3]), (2, (3,), [3, 2]), (1, (1, 2), [1, 2, 1])):
        as_rank(0, size)
        trainer._processes = before
        assert trainer.processes == all_of_them


def test_the_record_of_a_run_that_went_on_with_another_number_of_processes_tells_all(run):
    short = ("DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 1, "TEST.NO_TEST", True)
    first = run(*short)
    path = first.folder / "prompt_learner/model.pth.tar-1"
    checkpoint = load_checkpoint(path)
    assert not {"processes"} & (checkpoint.keys() | first.record.keys())
    save_checkpoint({**checkpoint, "processes": [3]}, path.parent)
    assert run(*short).record["processes"] == [3, 1]


def test_without_torchrun_nothing_is_shared(monkeypatch, run):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert (distributed.rank(), distributed.world_size(), distributed.launcher()) == (0, 1, ["python"])
    assert distributed.gather("own") == ["own"]
    assert distributed.part_of([1, 2, 3]) == [1, 2, 3]
    code = "import sys, train; train.main(['--help'])"
    loaded = f"import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); {code}"
    shown = subprocess.run([sys.executable, "-c", loaded], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert shown.stdout.endswith("False\n"), shown.stderr
    assert "torchrun" in train.__doc__
