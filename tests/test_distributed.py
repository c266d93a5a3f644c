"""Two processes of torchrun do what one does: the same steps, the same results, one log; and end with one message."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
from dassl.data.samplers import PARTS, TURNS, SharedBatches
from dassl.utils import distributed, listdir_nohidden
from tests.common import REPOSITORY, tensors
from tests.conftest import Run

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
        ("unaveraged", command(*COOP, out="unaveraged")),
        ("refused", command("TEST.EVALUATOR", "Clasification", out="refused")),
        ("mistaken", command(*COOP, out="mistaken")),
        ("killed", command(*TUNE, out="killed")),
    )
    codes = dict(re.findall(r"^(\w+) ended in (\d+)$", ended.stdout, re.MULTILINE))
    mistakes = dict.fromkeys(("unaveraged", "refused", "mistaken", "killed"), "2")
    assert codes == {**dict.fromkeys(("gradients", *runs), "0"), **mistakes}, ended.stderr
    for name, (trainer, model, settings) in runs.items():
        one = run(*settings, trainer=trainer, out=name)
        assert one.code == 0, one.error
        same_results(one, Run(0, tmp_path / f"{name}2", ""), model)
    assert "Processes: 2, each" in (tmp_path / "tune2/log.txt").read_text()
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
