"""Two processes of torchrun do what one process does: the same steps, the same results, one log."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader
from yacs.config import CfgNode

import train
from dassl import distributed
from dassl.data.data_manager import build_data_loader
from dassl.data.samplers import ShardedBatchSampler
from dassl.engine import TrainerXU
from dassl.utils import UserError, listdir_nohidden, load_checkpoint, save_checkpoint
from tests.common import IS_WINDOWS, REPOSITORY, load_tensors
from tests.conftest import Run
from tests.datasets.shapes import write_captions
from vlm.images import encoder

pytestmark = pytest.mark.skipif(IS_WINDOWS, reason="torchrun is not tested on Windows")

TUNE = (
    *("--trainer", "CLIPFineTune", "--config-file", REPOSITORY / "configs/trainers/CLIPFineTune/tiny.yaml"),
    *("DATASET.NUM_SHOTS", 2, "OPTIM.NAME", "sgd", "OPTIM.LR", 0.0003, "DATALOADER.TRAIN_X.BATCH_SIZE", 9),
    *("DATALOADER.TEST.BATCH_SIZE", 128, "TRAIN.PRINT_FREQ", 1, "TRAIN.CHECKPOINT_FREQ", 1),
    *("OPTIM.MAX_EPOCH", 2),
)  # 9 images: 4 for one process, 5 for the other; 896 test images: 7 batches, an odd number
COOP = (
    *("DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 2, "DATALOADER.TRAIN_X.BATCH_SIZE", 5, "TRAIN.PRINT_FREQ", 1),
    *("DATALOADER.TEST.BATCH_SIZE", 128, "TEST.FINAL_MODEL", "best_val"),
)


@pytest.fixture
def command(digits_root, tmp_path):
    """Return a function that returns the arguments with which the fixture ``run`` would call train.py."""

    def make(*arguments: object, out: str, trainer: str = "CoOp") -> list[str]:
        argv = ["--root", digits_root, "--trainer", trainer, "--seed", 1, "--output-dir", tmp_path / out]
        argv += ["--dataset-config-file", REPOSITORY / "configs/datasets/digits.yaml"]
        argv += ["--config-file", REPOSITORY / "configs/trainers/CoOp/tiny.yaml"]
        return [str(word) for word in [*argv, *arguments]]

    return make


@pytest.fixture
def without_openvino(monkeypatch):
    """Encode images with PyTorch, as the processes of tests/distributed_worker.py do."""
    monkeypatch.setattr(encoder, "_has_openvino", lambda: False)
    encoder.build_image_encoder.cache_clear()
    yield
    encoder.build_image_encoder.cache_clear()


def torchrun(*arguments: object) -> subprocess.CompletedProcess:
    """Run a script in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += map(str, arguments)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)


def stable_lines(log: str) -> list[str]:
    """Return the lines of a log that do not depend on times and folders."""
    lines = re.sub(r"time \S+ \(\S+\) data \S+ \(\S+\)|eta \S+", "", log).split("Loading trainer")[1].splitlines()
    return [line for line in lines if "/" not in line.replace("[1/", "").replace("[2/", "") and "Elapsed" not in line]


def assert_close_checkpoints(one: Path, two: Path) -> None:
    """Check that two checkpoints hold the same tensors up to rounding."""
    first, second = load_tensors(one), load_tensors(two)
    assert first.keys() == second.keys()
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=0, atol=1e-5)


def assert_same_results(one: Run, two: Run, model: str) -> None:
    """Check that runs in one and in two processes left the same files, log lines, results and ``model``."""
    for name in [path.name for path in (one.folder / model).glob("model*")] if model else []:
        assert_close_checkpoints(one.folder / model / name, two.folder / model / name)
    assert set(listdir_nohidden(one.folder / model)) == set(listdir_nohidden(two.folder / model))
    assert stable_lines(one.log) == stable_lines(two.log)
    for key in ("accuracy", "correct", "total", "macro_f1", "splits"):
        assert one.record[key] == two.record[key]
    assert (one.record.get("processes"), two.record["processes"]) == (None, 2)
    assert set(listdir_nohidden(one.folder)) == set(listdir_nohidden(two.folder))


def test_two_processes_do_what_one_does(run, command, tmp_path, without_openvino):
    """One test for all methods, since processes take longer to start than the runs take."""
    test_batch = ("DATALOADER.TEST.BATCH_SIZE", 128)
    runs = {
        "tune": ("CLIPFineTune", "clip", TUNE),
        "coop": ("CoOp", "prompt_learner", COOP),
        "zero": ("ZeroshotCLIP", "", test_batch),
        "probe": ("LinearProbe", "linear_probe", ("DATASET.NUM_SHOTS", 1, *test_batch)),
    }
    write_captions(tmp_path / "photos", 20, lambda number: [f"the number {number % 3}", f"{number % 7} digits"])
    retrieval = (
        *("--root", tmp_path / "photos", "--dataset-config-file", REPOSITORY / "configs/datasets/captions.yaml"),
        *("--eval-only", *TUNE[2:4], "DATALOADER.TEST.BATCH_SIZE", 3),
    )
    commands = [
        ("gradients", []),
        ("retrieval", command(*retrieval, trainer="CLIPFineTune", out="retrieval2")),
        *((name, command(*settings, trainer=trainer, out=f"{name}2")) for name, (trainer, _, settings) in runs.items()),
        ("custom_loop", command(*COOP, out="custom_loop")),
        ("local_gradients", command(*COOP, out="local_gradients")),
        ("killed", command(*TUNE, out="killed")),
    ]
    (tmp_path / "commands.json").write_text(json.dumps(commands), encoding="utf-8")
    finished = torchrun(REPOSITORY / "tests/distributed_worker.py", tmp_path / "commands.json")
    assert finished.returncode == 1
    codes = dict(re.findall(r"^(\w+) ended in (\d+)$", finished.stdout, re.MULTILINE))
    assert codes == {**dict.fromkeys(("gradients", "retrieval", *runs, "custom_loop"), "0"), "local_gradients": "2"}, (
        finished.stderr
    )
    assert "Signal 9 (SIGKILL)" in finished.stderr  # torchrun's own report
    for name, (trainer, model, settings) in runs.items():
        one = run(*settings, trainer=trainer, out=name)
        assert one.code == 0, one.error
        assert_same_results(one, Run(0, tmp_path / f"{name}2", ""), model)
    one, two = run(*retrieval, trainer="CLIPFineTune", out="retrieval"), Run(0, tmp_path / "retrieval2", "")
    metrics = [name for name in one.record if "recall" in name or "map" in name]
    assert len(metrics) == 9
    assert [two.record[name] for name in metrics] == [one.record[name] for name in metrics]  # bit for bit
    assert "Processes: 2, each" in (tmp_path / "tune2/log.txt").read_text(encoding="utf-8")
    assert load_checkpoint(tmp_path / "tune2/clip/model.pth.tar-2")["processes"] == [2]
    assert_close_checkpoints(*(tmp_path / name / "prompt_learner/model.pth.tar-2" for name in ("coop", "custom_loop")))
    mistake = "it steps an optimizer by gradients that model_backward has not averaged"
    assert re.search(rf"^error: .*{mistake}", finished.stderr, re.MULTILINE)
    assert mistake in (tmp_path / "local_gradients/log.txt").read_text(encoding="utf-8")
    for name in ("local_gradients", "killed"):
        assert not (tmp_path / name / "result.json").exists()
    resumed = torchrun(REPOSITORY / "train.py", *command(*TUNE, out="killed"))
    assert resumed.returncode == 0, resumed.stderr
    unbroken, resumed_run = (Run(0, tmp_path / name, "") for name in ("tune", "killed"))
    assert set(re.findall(r"epoch \[(\d)/2\]", resumed_run.log)) == {"2"}
    assert_close_checkpoints(*(each.folder / "clip/model.pth.tar-2" for each in (unbroken, resumed_run)))
    assert unbroken.record["correct"] == resumed_run.record["correct"]
    assert resumed_run.record["processes"] == 2


# ---- in one process ----


@pytest.fixture
def as_rank(monkeypatch):
    """Return a function that gives this process a rank and a world size, without other processes."""

    def become(rank: int, size: int) -> None:
        monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
        monkeypatch.setattr(distributed.dist, "get_rank", lambda: rank)
        monkeypatch.setattr(distributed.dist, "get_world_size", lambda: size)

    return become


@pytest.mark.parametrize("size", [2, 5])
def test_the_shards_of_all_processes_make_up_each_batch_and_the_epoch(as_rank, size):
    sampler = ShardedBatchSampler(range(23), 7, drop_last=False)
    expected = list(sampler)
    shards = {}
    for sampler.shard_by in ("images", "batches"):
        for rank in range(size):
            as_rank(rank, size)
            shards[sampler.shard_by, rank] = list(sampler)
            assert len(sampler) == len(shards[sampler.shard_by, rank])
    batches = [[shards["images", rank][i] for rank in range(size)] for i in range(len(expected))]
    assert [[*itertools.chain(*batch)] for batch in batches] == expected
    assert all(max(map(len, batch)) - min(map(len, batch)) <= 1 for batch in batches)
    assert sorted(batch for rank in range(size) for batch in shards["batches", rank]) == expected


def test_a_loader_is_sharded_only_in_the_engines_loop(as_rank):
    as_rank(1, 2)
    trainer, seen = object.__new__(TrainerXU), []
    loaders = [DataLoader(range(12), batch_sampler=ShardedBatchSampler(range(12), 6, False)) for _ in range(2)]
    trainer.train_loader_x, trainer.train_loader_u = loaders
    trainer.cfg = CfgNode({"TRAIN": {"COUNT_ITER": "train_x"}})

    def run_batches(batches):
        seen.extend((*(loader.batch_sampler.shard_by for loader in loaders), len(list(batches)), trainer.num_batches))

    trainer.run_batches = run_batches
    assert [len(indices) for indices in loaders[0].batch_sampler] == [6, 6]
    trainer.run_epoch()
    assert seen == ["images", "images", 2, 2]
    assert [len(indices) for indices in loaders[0].batch_sampler] == [6, 6]


def test_shards_of_labelled_and_unlabelled_batches_must_have_the_same_loss_weight(as_rank, monkeypatch):
    def weights(*batches: int) -> list[float]:
        weights = []
        for rank in range(3):
            as_rank(rank, 3)
            sizes = [len(distributed.shard(range(size))) for size in batches]
            monkeypatch.setattr(distributed.dist, "all_reduce", lambda total: total.copy_(torch.tensor(batches)))
            weights.append(distributed.local_loss_weight(*sizes))
        return weights

    assert weights(6, 12) == [1, 1, 1]
    assert weights(5) == weights(5, 5) == [0.6, 1.2, 1.2]
    with pytest.raises(UserError, match=r"must be equal, or multiples of 3 \(processes\)"):
        weights(6, 5)


def test_a_batch_with_fewer_images_than_processes_is_refused(as_rank, digits_root):
    cfg = train.setup_cfg(train.parse_args(["--trainer", "CoOp", "DATASET.NAME", "Digits", "SEED", "1"]))
    as_rank(0, 3)
    for images, batch_size in (4, 2), (2, 4):
        with pytest.raises(UserError, match="the batch size is 2; it must be at least 3"):
            build_data_loader(cfg, data_source=[*range(images)], batch_size=batch_size)


def test_processes_of_another_launcher_run_alone(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with distributed.process_group():
        assert (distributed.get_world_size(), distributed.is_main_process()) == (1, True)


def test_processes_that_cannot_connect_end_in_a_message(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="the processes of the run cannot connect: .*RANK"), distributed.process_group():
        pass


def test_a_run_resumed_with_another_number_of_processes_records_all_numbers(run):
    short = ("DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 1, "TEST.NO_TEST", True)
    first = run(*short)
    path = first.folder / "prompt_learner/model.pth.tar-1"
    checkpoint = load_checkpoint(path)
    assert not {"processes"} & (checkpoint.keys() | first.record.keys())
    save_checkpoint({**checkpoint, "processes": [3]}, path.parent)
    assert run(*short).record["processes"] == [3, 1]
