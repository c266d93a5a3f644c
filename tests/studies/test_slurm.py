"""Sweeps as array jobs of Slurm: trial numbers, the scripts, and a real Slurm with one node."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from studies.grid import Trial
from studies.schedule import find_unfinished
from studies.slurm import format_arrays
from tests.common import REPOSITORY, needs_bash
from tools.sweep import main

pytestmark = needs_bash
DAEMONS = ("munged", "slurmctld", "slurmd")
SETTINGS = (
    f"--dataset-config-file {REPOSITORY}/configs/datasets/digits.yaml "
    f"--config-file {REPOSITORY}/configs/trainers/CoOp/tiny.yaml"
)
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
PlugStackConfig=/dev/null
MaxArraySize=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=1 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def build_stage(*names: str, model_dir: str = "") -> list[Trial]:
    """Return trials with these folders, which evaluate the model in ``model_dir``, if any."""
    return [Trial(Path(name), ("--model-dir", model_dir) if model_dir else ()) for name in names]


def test_arrays_hold_the_unfinished_trials_of_each_stage(monkeypatch):
    stages = [build_stage(*"abcde"), build_stage("f", model_dir="a"), build_stage("g", model_dir="f")]
    finished = ""  # the folders of finished trials
    monkeypatch.setattr(Trial, "find_rerun_reason", lambda trial, _: "" if trial.folder.name in finished else "new")

    def arrays(size: int) -> list[str]:
        return format_arrays(stages, find_unfinished(stages, None), size)

    assert arrays(100) == ["0 0 0-4", "1 0 5", "2 0 6"]
    assert arrays(2) == ["0 0 0-1", "0 2 0-1", "0 4 0", "1 4 1", "2 6 0"]
    finished = "abdfg"
    assert arrays(100) == ["0 0 2,4"]
    finished = "bcdefg"
    assert arrays(100) == ["0 0 0", "1 0 5", "2 0 6"]  # f and g evaluate models that are trained again
    finished = "abcdefg"
    assert arrays(100) == []


@pytest.fixture
def sweep(tmp_path):
    """The path of a sweep file with an evaluation (in the last stage), its training run, and a run that fails."""
    test = {"folder": "test{n}", "arguments": f"--trainer CoOp {SETTINGS} --eval-only --model-dir {{output}}/made"}
    made = {"folder": "made", "arguments": f"--trainer CoOp --seed 1 {SETTINGS} DATASET.NUM_SHOTS 1 OPTIM.MAX_EPOCH 1"}
    bad = {"folder": "bad", "arguments": f"--trainer CoOp {SETTINGS} DATASET.NUM_SHOTS 1 OPTIM.LR 1e30"}
    path = tmp_path / "sweep.yaml"
    content = {"output": str(tmp_path / "out"), "threads": 1, "runs": [{**test, "grid": {"n": [1]}}, bad, made]}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return str(path)


def test_a_trial_runs_by_its_number(sweep, digits_root, tmp_path, capsys):
    command = [sweep, "--root", str(digits_root)]
    assert main([*command, "--list"]) == 0
    out = tmp_path / "out"
    assert capsys.readouterr().out == f"0\t0\t{out}/bad\n1\t0\t{out}/made\n2\t1\t{out}/test1\n"
    assert main([*command, "--cell", "2"]) == 2
    assert f"run 2 evaluates the model of run 1, {out}/made, which is not finished" in capsys.readouterr().err
    assert main([*command, "--cell", "0"]) == 2
    assert "infinite or NaN" in capsys.readouterr().err
    for number, name in ((1, "made"), (2, "test1")):
        assert main([*command, "--cell", str(number)]) == 0
        assert (out / name / "result.json").is_file()
        assert "=> result" in capsys.readouterr().out
        assert main([*command, "--cell", str(number)]) == 0
        assert capsys.readouterr().out == f"finished already: {out}/{name}\n"
    accuracies = {
        json.loads((out / name / "result.json").read_text(encoding="utf-8"))["accuracy"] for name in ("made", "test1")
    }
    assert len(accuracies) == 1
    for number in ("-1", "3"):
        assert main([*command, f"--cell={number}"]) == 2
        assert f"no run has the number {number}; the numbers are 0 to 2 (see --list)" in capsys.readouterr().err
    capsys.readouterr()
    assert main([*command, "--arrays", "1000"]) == 0
    assert capsys.readouterr().out == "0 0 0\n"


def environment(**variables: str) -> dict[str, str]:
    """Return the environment of this process and its virtual environment, with further variables."""
    path = f"{sys.prefix}/bin{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "VIRTUAL_ENV": sys.prefix, "PATH": path, "OMP_NUM_THREADS": "1", **variables}


def bash(script: str, *arguments: str, folder: Path = REPOSITORY, **variables: str) -> subprocess.CompletedProcess:
    """Run a script of scripts/slurm in ``folder`` with environment variables."""
    command = ["bash", str(REPOSITORY / "scripts/slurm" / script), *arguments]
    return subprocess.run(command, cwd=folder, env=environment(**variables), capture_output=True, text=True)


@pytest.mark.parametrize("script", ["submit.sh", "sweep.sbatch"])
def test_a_script_without_arguments_prints_its_usage(script, tmp_path):
    """This works from any folder."""
    result = bash(script, folder=tmp_path)
    assert (result.returncode, result.stderr) == (2, "")
    assert f"scripts/slurm/{script}" in result.stdout
    assert all(line.startswith("# ") for line in result.stdout.splitlines()), result.stdout


def test_an_array_task_runs_the_trial_of_its_number(sweep, digits_root, tmp_path):
    task = {"FIRST": "1", "SLURM_ARRAY_TASK_ID": "0", "SLURM_SUBMIT_DIR": str(REPOSITORY), "SLURM_CPUS_PER_TASK": "1"}
    result = bash("sweep.sbatch", sweep, "--root", str(digits_root), "OPTIM.LR", "0.01", folder=tmp_path, **task)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "out/made/result.json").read_text(encoding="utf-8"))["config"]["OPTIM"]["LR"] == 0.01
    assert not (tmp_path / "out/bad").exists()


def test_the_array_of_a_later_stage_waits_for_the_earlier_one(sweep, digits_root, tmp_path):
    """Mocks of Slurm's commands log their arguments."""
    mocks = tmp_path / "bin"
    mocks.mkdir()
    log = tmp_path / "log"
    commands = {"scontrol": "echo 'MaxArraySize            = 1001'", "sbatch": f'echo "$@" >> "{log}"; wc -l < "{log}"'}
    for name, body in commands.items():
        (mocks / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        (mocks / name).chmod(0o755)
    path = f"{mocks}{os.pathsep}{environment()['PATH']}"
    arguments = (sweep, "--root", str(digits_root), "OPTIM.LR", "1")
    result = bash("submit.sh", *arguments, folder=tmp_path, PATH=path, SBATCH="-p gpu --mem=1G", AT_ONCE="5")
    assert result.returncode == 0, result.stderr
    first, second = log.read_text(encoding="utf-8").splitlines()
    script = f"--export=ALL,FIRST=0 scripts/slurm/sweep.sbatch {' '.join(arguments)}"
    assert first == f"--parsable -p gpu --mem=1G --array=0-1%5 {script}"
    assert second == f"--parsable -p gpu --mem=1G --dependency=afterany:1 --array=2%5 {script}"
    result = bash("submit.sh", str(tmp_path / "absent.yaml"), PATH=path)
    assert result.returncode == 2
    assert "cannot read" in result.stderr


def free_ports(count: int) -> list[int]:
    """Return ports of this machine that no program listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


@pytest.fixture
def slurm(tmp_path):
    """The path of slurm.conf of a running Slurm whose only node is this machine."""
    folder = tmp_path / "slurm"
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    conf, key = folder / "slurm.conf", folder / "munge.key"
    conf.write_text(CONF.format(host=socket.gethostname(), folder=folder, ports=free_ports(2)), encoding="utf-8")
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    munge = {"key-file": key, "socket": folder / "munge.socket", "pid-file": folder / "munged.pid"}
    munge |= {"log-file": folder / "munged.log", "seed-file": folder / "munge.seed"}
    commands = [
        ["munged", "--foreground", "--force", *(f"--{name}={value}" for name, value in munge.items())],
        ["slurmctld", "-D", "-f", str(conf)],
        ["slurmd", "-D", "-f", str(conf), "-N", socket.gethostname()],
    ]
    daemons = []
    try:
        for command in commands:
            silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            daemons.append(subprocess.Popen(command, env=environment(SLURM_CONF=str(conf)), **silent))
            time.sleep(1)
        yield conf
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in reversed(daemons):
            daemon.wait(timeout=20)


@pytest.mark.skipif(not all(map(shutil.which, DAEMONS)), reason="needs Slurm: apt-get install slurm-wlm")
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="starts Slurm's daemons as root")
def test_slurm_runs_a_sweep_although_one_run_fails(slurm, sweep, digits_root, tmp_path):
    """The evaluation waits for its training run; the failed run does not stop the others."""
    variables = {"SLURM_CONF": str(slurm), "SBATCH": f"--cpus-per-task=1 --mem=0 --output={tmp_path}/%A_%a.txt"}
    for _ in range(20):
        if "idle" in subprocess.run(["sinfo"], env=environment(**variables), capture_output=True, text=True).stdout:
            break
        time.sleep(1)
    result = bash("submit.sh", sweep, "--root", str(digits_root), **variables)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "job 1: runs 0 + 0-1\njob 2: runs 2 + 0, after 1\n"
    record, deadline = tmp_path / "out/test1/result.json", time.monotonic() + 120
    while not record.is_file() and time.monotonic() < deadline:
        time.sleep(0.5)
    outputs = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("*_*.txt")}
    assert record.is_file(), outputs
    assert "infinite or NaN" in outputs["1_0.txt"]
    made = json.loads((tmp_path / "out/made/result.json").read_text(encoding="utf-8"))
    assert made["accuracy"] == json.loads(record.read_text(encoding="utf-8"))["accuracy"]
