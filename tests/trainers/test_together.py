"""Runs that share the passes of the text encoder: each is the run that it is alone."""

import _thread
import json
import re
import sys
import threading
import time

import pytest
import torch

from dassl.utils import load_checkpoint
from tests.common import REPOSITORY, assert_same_tensors, tensors
from tools.sweep import main
from tools.sweeps import together
from tools.sweeps.grid import Cell
from trainers.together import Pass, run_together

SHORT = ("OPTIM.MAX_EPOCH", 3, "OPTIM.LR", 0.1)  # large steps, so that what is not the same soon shows
CHECKPOINT = "prompt_learner/model.pth.tar-3"
RUNS = {  # folder -> seed, shots, context tokens
    "a": (1, 1, 4),
    "b": (2, 4, 4),  # more steps than the others
    "c": (3, 1, 16),
    "d": (1, 1, 16),
}


def options(shots, n_ctx, *others):
    return (
        "DATASET.NUM_SHOTS",
        shots,
        "TRAINER.COOP.N_CTX",
        n_ctx,
        "DATALOADER.TRAIN_X.BATCH_SIZE",
        8,
        *SHORT,
        *others,
    )


@pytest.fixture
def cell(tmp_path, digits_root):
    """A cell of a sweep, as ``run`` would do it."""

    def make(name, seed, *values):
        config = ["--dataset-config-file", REPOSITORY / "configs/datasets/digits.yaml"]
        config += ["--config-file", REPOSITORY / "configs/trainers/CoOp/tiny.yaml"]
        words = ["--root", digits_root, "--trainer", "CoOp", "--seed", seed, "--output-dir", tmp_path / name, *config]
        return Cell(tmp_path / name, tuple(map(str, [*words, *values])))

    return make


@pytest.fixture
def sizes(monkeypatch):
    """How many runs each pass served."""
    found, make = [], Pass.__init__

    def count(self, steps):
        found.append(len(steps))
        make(self, steps)

    monkeypatch.setattr(Pass, "__init__", count)
    return found


def transcript(folder) -> str:
    """A log from there on where it tells no longer what was found on the disk; without times and names of folders."""
    text = (folder / "log.txt").read_text().replace(str(folder), "").replace(str(folder.resolve()), "")
    return re.sub(r"time \S+ \(\S+\) data \S+ \(\S+\)|eta \S+|Elapsed: \S+", "", text).partition(
        "Building custom CLIP"
    )[2]


def test_each_run_is_the_run_alone(cell, run, tmp_path, sizes):
    """With one that is refused, and one that diverges between the features and their gradient."""
    cells = [cell(name, seed, *options(shots, n_ctx)) for name, (seed, shots, n_ctx) in RUNS.items()]
    bad = [
        cell("refused", 1, *options(1, 4, "OPTIM.LR", "fast")),
        cell("diverged", 1, *options(1, 4, "OPTIM.LR", 1e38)),
    ]
    cells[1:1] = bad
    found = dict(together.run_all(cells, most=4, threads=torch.get_num_threads()))
    assert list(found) != cells  # the one of more steps ends after those that came later
    assert {c.folder.name for c in cells if found[c]} == {"refused", "diverged"}
    assert "OPTIM.LR" in found[bad[0]]
    assert "Loss is infinite or NaN" in found[bad[1]]
    assert max(sizes) > 1
    for name, (seed, shots, n_ctx) in RUNS.items():
        alone = run(*options(shots, n_ctx), seed=seed, out=f"alone/{name}")
        assert_same_tensors(tmp_path / name / CHECKPOINT, alone.checkpoint(3))
        own, expected = (
            load_checkpoint(path)["random"] for path in (tmp_path / name / CHECKPOINT, alone.checkpoint(3))
        )
        assert own["python"] == expected["python"]
        assert own["numpy"] == expected["numpy"]
        assert torch.equal(own["torch"], expected["torch"])
        assert transcript(tmp_path / name) == transcript(alone.folder)
        assert json.loads((tmp_path / name / "result.json").read_text())["accuracy"] == alone.record["accuracy"]


def test_in_one_batch_each_step_is_the_same_to_rounding(cell, run, tmp_path, sizes, monkeypatch):
    """As on a GPU."""
    monkeypatch.setattr("trainers.together.BATCHED", ("cpu",))
    cells = [cell(name, seed, *options(1, 4)) for name, seed in (("a", 1), ("b", 2))]
    assert dict(together.run_all(cells, most=2, threads=torch.get_num_threads())) == dict.fromkeys(cells)
    assert set(sizes) == {2}
    for seed, c in enumerate(cells, start=1):
        alone = run(*options(1, 4), seed=seed, out=f"alone/{c.folder.name}")
        own, expected = tensors(c.folder / CHECKPOINT)["ctx"], tensors(alone.checkpoint(3))["ctx"]
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)


def test_a_ctrl_c_stops_all_and_they_go_on(cell, run, tmp_path, monkeypatch):
    """In one run, at its third epoch; the other has been further or not as far. Both resume from what they kept."""
    from trainers.coop import CoOp

    cells = [cell(name, seed, *options(1, 4, "TRAIN.CHECKPOINT_FREQ", 1)) for name, seed in (("a", 1), ("b", 2))]
    forward_backward = CoOp.forward_backward

    def stop(self, batch):
        if self.epoch == 2 and self.cfg.SEED == 1:
            raise KeyboardInterrupt
        return forward_backward(self, batch)

    monkeypatch.setattr(CoOp, "forward_backward", stop)
    stdout = sys.stdout
    with pytest.raises(KeyboardInterrupt):
        list(together.run_all(cells, most=2, threads=torch.get_num_threads()))
    assert sys.stdout is stdout
    for c in cells:
        assert "stopped in epoch 3 of 3; this goes on after epoch 2" in (c.folder / "log.txt").read_text()
        assert not (c.folder / "result.json").exists()
    monkeypatch.setattr(CoOp, "forward_backward", forward_backward)
    assert dict(together.run_all(cells, most=2, threads=torch.get_num_threads())) == dict.fromkeys(cells)
    for seed, c in enumerate(cells, start=1):
        assert "Found checkpoint" in (c.folder / "log.txt").read_text()
        alone = run(*options(1, 4), seed=seed, out=f"alone/{c.folder.name}")
        assert_same_tensors(c.folder / CHECKPOINT, alone.checkpoint(3))


def test_what_a_work_raises_stops_those_that_have_not_begun():
    begun = []

    def work(number):
        begun.append(number)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(run_together([lambda: work(1), lambda: work(2), lambda: work(3)], most=2))
    assert begun == [1, 2]  # the third one never had its turn


def test_a_ctrl_c_reaches_the_run_that_works():
    """Which is on another thread than the one that Python interrupts."""
    said = []

    def work():
        threading.Timer(0.3, _thread.interrupt_main).start()
        try:
            for _ in range(1000):
                time.sleep(0.01)
        except KeyboardInterrupt:
            said.append("stopped")
            raise

    start = time.time()
    with pytest.raises(KeyboardInterrupt):
        list(run_together([work], most=2))
    assert said == ["stopped"]
    assert time.time() - start < 9


def test_the_option_of_the_sweep(tmp_path, monkeypatch, capsys):
    asked = []

    def run_all(cells, most, threads):
        asked.append((len(cells), most, threads))
        return ((cell, "not done") for cell in cells)

    monkeypatch.setattr(together, "run_all", run_all)
    path = tmp_path / "sweep.yaml"
    path.write_text(f"output: {tmp_path}/out\nthreads: 3\nruns: [{{folder: 'a{{n}}', grid: {{n: [1, 2, 3]}}}}]")
    assert main([str(path), "--together"]) == 1
    assert "3 runs, 0 finished already, 3 together" in capsys.readouterr().out
    main([str(path), "--together", "--jobs", "2"])
    assert asked == [(3, 8, 3), (3, 2, 3)]
    assert main([str(path), "--together", "--ray"]) == 2
