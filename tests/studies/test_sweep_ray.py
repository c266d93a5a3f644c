"""Sweeps on Ray: the runs give the bits of one machine even if a node is lost; addresses and the table."""

import json
import os
import re
import signal
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from dassl.utils import UserError
from studies.grid import Trial
from studies.progress import ProgressPrinter
from studies.ray import join_ray_address
from tests.common import IS_WINDOWS, REPOSITORY, assert_same_tensors
from tests.studies.records import write_run
from tools.sweep import main

needs_ray = pytest.mark.skipif(IS_WINDOWS or find_spec("ray") is None, reason="needs Ray: pip install ray; no Windows")
SETTINGS = (
    f"--dataset-config-file {REPOSITORY}/configs/datasets/digits.yaml "
    f"--config-file {REPOSITORY}/configs/trainers/CoOp/tiny.yaml"
)
ZERO_SHOT = {"folder": "zs", "arguments": f"--trainer ZeroshotCLIP --eval-only --seed 1 {SETTINGS}"}
SCRIPT = os.path.relpath(REPOSITORY / "tools/sweep.py")
TRAIN = f"--trainer CoOp --seed {{seed}} {SETTINGS} DATASET.NUM_SHOTS 1"


@pytest.mark.parametrize(
    ("words", "joined"),
    [
        ("c.yaml --ray", "c.yaml --ray="),
        ("--ray c.yaml", "--ray= c.yaml"),
        ("c.yaml --ray OPTIM.LR 1", "c.yaml --ray= OPTIM.LR 1"),
        ("c.yaml --ray --jobs 2", "c.yaml --ray= --jobs 2"),
        ("c.yaml A 1 --ray auto B 2", "c.yaml A 1 --ray=auto B 2"),
        ("c.yaml --ray 10.0.0.1:6379", "c.yaml --ray=10.0.0.1:6379"),
        ("c.yaml --ray=ray://head:10001", "c.yaml --ray=ray://head:10001"),
        ("c.yaml A 1", "c.yaml A 1"),
    ],
)
def test_the_word_after_ray_is_joined_if_it_is_an_address(words, joined):
    assert join_ray_address(words.split()) == joined.split()


@pytest.mark.parametrize("wrong", ["--ray head", "--ray=head", "--ray 10.0.0.1", "--ray http://head:1"])
def test_a_word_that_is_no_address_is_refused(wrong):
    with pytest.raises(UserError, match="--ray takes nothing or the address"):
        join_ray_address(["c.yaml", *wrong.split()])


def test_the_table_is_printed_every_few_seconds_and_at_the_end(tmp_path, capsys, monkeypatch):
    write_run(tmp_path / "zs", 70, trainer="ZeroshotCLIP", shots=0)
    # The folders' names do not decide what is averaged: the two runs of 1 shot, but not that of another rate.
    runs = {"a": (80, 1, 1, 0.002), "b": (82, 2, 1, 0.002), "seed3": (60, 3, 1, 0.1), "seed4": (90, 1, 4, 0.002)}
    for name, (accuracy, seed, shots, rate) in runs.items():
        write_run(tmp_path / name, accuracy, seed=seed, shots=shots, config={"OPTIM.LR": rate})
    progress = ProgressPrinter(tmp_path, [Trial(tmp_path / folder) for folder in ("zs", *runs, "absent")])
    progress.print_result(Trial(tmp_path / "zs"), "a line")
    assert capsys.readouterr().out == "a line\n"
    progress.print_table()
    rows = [re.split(r" *\| *", line.strip("| \n")) for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["accuracy (%)", "0 shots", "1 shot", "4 shots", "parameters"]
    assert [row[:4] for row in rows[2:]] == [
        ["Zero-shot CLIP", "70.00", "-", "-"],
        ["CoOp (Standard), OPTIM.LR 0.002", "-", "81.00 ± 12.71", "90.00"],
        ["CoOp (Standard), OPTIM.LR 0.1", "-", "60.00", "-"],
    ]
    monkeypatch.setattr(progress, "last_table_time", -100.0)
    progress.print_result(Trial(tmp_path / "zs"), "another")
    assert capsys.readouterr().out == f"another\n{progress.format_table()}\n"
    ProgressPrinter(tmp_path, ()).print_table()
    assert capsys.readouterr().out == ""


@pytest.fixture
def write_sweep(tmp_path):
    """A function that writes a sweep file with these runs and returns its path."""

    def write(*runs):
        path = tmp_path / "sweep.yaml"
        path.write_text(
            yaml.safe_dump({"output": str(tmp_path / "out"), "threads": 1, "runs": list(runs)}), encoding="utf-8"
        )
        return str(path)

    return write


def test_a_missing_ray_names_the_package_to_install(write_sweep, digits_root, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    assert main([write_sweep(ZERO_SHOT), "--root", str(digits_root), "--ray"]) == 2
    assert 'pip install "coop-dassl[ray]"' in capsys.readouterr().err


@needs_ray
def test_an_address_without_a_cluster_is_refused(write_sweep, digits_root, capsys):
    for address in ("localhost:1", "ray://localhost:1"):
        assert main([write_sweep(ZERO_SHOT), "--root", str(digits_root), "--ray", address]) == 2
        assert f"no Ray answers at {address}" in capsys.readouterr().err


@pytest.fixture
def cluster(monkeypatch):
    """A cluster of two nodes with one CPU each; its attribute ``second`` is the node that a test may remove."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 200_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        cluster.second = cluster.add_node(**node)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


class NodeKiller(threading.Thread):
    """Removes the second node once a run has ended and the node is in the middle of another.

    Attributes:
        finished: modification time of each record at that moment, by path.
        lost: folder of the run that the node was running.
    """

    def __init__(self, cluster, out: Path):
        super().__init__(daemon=True)
        self.cluster, self.out = cluster, out
        self.finished: dict[Path, int] = {}
        self.lost: Path | None = None

    def run(self) -> None:
        raylet = self.cluster.second.all_processes["raylet"][0].process.pid
        while not self.lost:
            time.sleep(0.05)
            records = {path: path.stat().st_mtime_ns for path in self.out.rglob("result.json")}
            folders = [path.parent for path in self.out.rglob(".running.json") if get_parent_pid(path) == raylet]
            if records and folders and any(folders[0].glob("*/model*")):
                self.cluster.remove_node(self.cluster.second, allow_graceful=False)
                self.finished, self.lost = records, folders[0]


def get_parent_pid(owner: Path) -> int | None:
    """Return the parent of the process that holds the lock of a run's folder; None if the process has ended."""
    try:
        status = Path("/proc", str(json.loads(owner.read_text(encoding="utf-8"))["pid"]), "stat").read_text(
            encoding="utf-8"
        )
        return int(status.rpartition(")")[2].split()[1])
    except (OSError, ValueError):
        return None


class Interrupter(threading.Thread):
    """Sends SIGINT to this process once a run has a checkpoint; ``processes`` are those that ran trials then."""

    def __init__(self, out: Path):
        super().__init__(daemon=True)
        self.out, self.processes = out, []

    def run(self) -> None:
        while not any(self.out.rglob("model.pth.tar-5")):
            time.sleep(0.05)
        self.processes = [
            json.loads(path.read_text(encoding="utf-8"))["pid"] for path in self.out.rglob(".running.json")
        ]
        signal.raise_signal(signal.SIGINT)


@needs_ray
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
def test_a_stopped_sweep_resumes_although_a_node_is_killed(cluster, write_sweep, digits_root, tmp_path, capsys):
    """Finished runs are not repeated, and all runs equal those of a sweep on this machine bit for bit."""
    seeds = {"seed": [1, 2, 3, 4]}
    runs = [
        {"folder": "test", "arguments": f"--trainer CoOp {SETTINGS} --eval-only --model-dir {{output}}/s1"},
        {"folder": "s{seed}", "arguments": f"{TRAIN} OPTIM.MAX_EPOCH 40 TRAIN.CHECKPOINT_FREQ 5", "grid": seeds},
    ]
    command = [write_sweep(*runs), "--root", str(digits_root)]
    assert main([*command, "--ray", cluster.address, "--memory", "4000"]) == 2
    assert (
        "a task needs 1 CPUs, 4000 GB, which no node of the cluster has. The nodes have: 1 CPUs, "
        in capsys.readouterr().err
    )

    interrupter = Interrupter(tmp_path / "out")
    interrupter.start()
    assert main([*command, "--ray", cluster.address]) == 130
    assert f"this command resumes with the remaining runs:\n  python {SCRIPT}" in capsys.readouterr().err
    assert interrupter.processes
    assert not any(Path("/proc", str(process)).exists() for process in interrupter.processes)

    killer = NodeKiller(cluster, tmp_path / "out")
    killer.start()
    code = main([*command, "--ray", cluster.address])
    output = capsys.readouterr().out
    assert code == 0, output
    assert re.match(r"5 runs, \d finished already, as many as the nodes hold at a time", output)
    assert killer.lost
    assert killer.lost / "result.json" not in killer.finished
    assert killer.finished
    for path, time_ns in killer.finished.items():
        assert path.stat().st_mtime_ns == time_ns
    assert main([*command, "--output-dir", str(tmp_path / "local"), "--jobs", "1"]) == 0
    for name in ("s1", "s2", "s3", "s4", "test"):
        ray, local = (
            json.loads((tmp_path / out / name / "result.json").read_text(encoding="utf-8")) for out in ("out", "local")
        )
        assert ray["accuracy"] == local["accuracy"]
        if name != "test":
            checkpoint = f"{name}/prompt_learner/model.pth.tar-40"
            assert_same_tensors(tmp_path / "out" / checkpoint, tmp_path / "local" / checkpoint)
    assert "5 finished already" in run_sweep(capsys, [*command, "--ray", cluster.address])


def run_sweep(capsys, command: list[str]) -> str:
    """Run a sweep that must succeed, and return its output."""
    capsys.readouterr()
    assert main(command) == 0
    return capsys.readouterr().out
