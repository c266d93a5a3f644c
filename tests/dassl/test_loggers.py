"""TRAIN.LOGGERS: where a run's metrics go, through the real ``train.main``."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import yaml

from dassl.engine import LOGGERS, MetricsLogger, TrainerBase, build_loggers
from dassl.engine.loggers import name_run
from studies.tables.runs import find_differences, read_run
from tests.common import REPOSITORY, assert_same_tensors
from trainers.coop import CoOp

# Two batches an epoch.
SHORT = ("DATASET.NUM_SHOTS", 2, "DATALOADER.TRAIN_X.BATCH_SIZE", 10, "OPTIM.MAX_EPOCH", 3, "TRAIN.CHECKPOINT_FREQ", 1)
VALIDATED = (*SHORT, "TEST.FINAL_MODEL", "best_val")
# A logger of one's own, as the documentation shows it.
SNIPPET = """
import json

from dassl.engine import LOGGERS, MetricsLogger


class JSONLogger(MetricsLogger):
    def open(self, trainer, log_dir):
        self.file = open(f"{trainer.output_dir}/metrics.jsonl", "a", encoding="utf-8")

    def write_scalar(self, trainer, tag, value, step):
        print(json.dumps({"step": step, tag: value}), file=self.file)

    def close(self, trainer):
        self.file.close()


LOGGERS["json"] = JSONLogger
"""


def read_rows(folder: Path) -> list[dict[str, str]]:
    """Return the rows of a run's metrics.csv."""
    with open(folder / "metrics.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_events(folder: Path) -> list[tuple[str, int, float]]:
    """Return tag, step and value of each number in a run's TensorBoard folder, as float32."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(tag, event.step, event.value) for tag in events.Tags()["scalars"] for event in events.Scalars(tag)]


def stop_in_epoch(monkeypatch, number: int) -> None:
    """Let CoOp's ``number``-th epoch (from 1) end in an exception after its first batch; call once."""
    forward_backward = CoOp.forward_backward

    def stop(self, batch):
        if (self.epoch + 1, self.batch_idx) == (number, 1):
            monkeypatch.setattr(CoOp, "forward_backward", forward_backward)
            raise RuntimeError("stopped")
        return forward_backward(self, batch)

    monkeypatch.setattr(CoOp, "forward_backward", stop)


@pytest.fixture
def fake_wandb(monkeypatch) -> list[SimpleNamespace]:
    """A stand-in for the package wandb; the list of its runs, with what they were given."""
    runs = []

    def init(**arguments):
        run = SimpleNamespace(arguments=arguments, numbers=[], exit_codes=[], metrics=[])
        run.log, run.define_metric = run.numbers.append, lambda *args, **kwargs: run.metrics.append((args, kwargs))
        run.finish = lambda exit_code: run.exit_codes.append(exit_code)
        runs.append(run)
        return run

    wandb = ModuleType("wandb")
    wandb.init, wandb.Settings, wandb.errors = init, dict, SimpleNamespace(Error=ConnectionError)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return runs


def test_csv_has_what_tensorboard_has_and_loggers_change_no_bit(run):
    logged = run(*VALIDATED, "TRAIN.LOGGERS", "['csv','tensorboard','csv']", out="logged")
    silent = run(*VALIDATED, "TRAIN.LOGGERS", "()", out="silent")
    assert (logged.code, silent.code) == (0, 0), logged.error + silent.error
    assert_same_tensors(logged.checkpoint(3), silent.checkpoint(3))
    assert logged.record["accuracy"] == silent.record["accuracy"]
    assert not {"tensorboard", "metrics.csv"} & {path.name for path in silent.folder.iterdir()}

    rows = read_rows(logged.folder)
    single = [(row["tag"], int(row["step"]), torch.tensor(float(row["value"])).item()) for row in rows]
    assert sorted(single) == sorted(read_events(logged.folder))
    assert [(int(row["step"]), int(row["epoch"])) for row in rows if row["tag"] == "train/loss"] == [
        *((0, 1), (1, 1), (2, 2), (3, 2), (4, 3), (5, 3))
    ]
    assert [(row["step"], row["epoch"]) for row in rows if row["tag"] == "val/accuracy"] == [
        *(("0", "1"), ("1", "2"), ("2", "3"))
    ]
    results = {row["tag"]: float(row["value"]) for row in rows if row["tag"].startswith("test/")}
    assert results["test/accuracy"] == logged.record["accuracy"]
    assert results["test/macro_f1"] == logged.record["macro_f1"]
    first = next(row for row in rows if row["tag"] == "train/lr")
    assert float(first["value"]) == 1e-5  # the warm-up's


def test_a_resume_writes_no_row_twice_and_may_have_other_loggers(run, monkeypatch):
    unbroken = run(*VALIDATED, "TRAIN.LOGGERS", "['csv']", out="unbroken")
    stop_in_epoch(monkeypatch, 3)
    with pytest.raises(RuntimeError, match="stopped"):
        run(*VALIDATED, "TRAIN.LOGGERS", "['csv']")
    stopped = read_rows(unbroken.folder.with_name("run"))
    assert [row["step"] for row in stopped if row["tag"] == "train/loss"][-1] == "4"  # to be repeated
    with open(unbroken.folder.with_name("run") / "metrics.csv", "ab") as file:
        file.write(b"5,3,tra\0\0\xff")  # as a full disk or a crash may leave it
    resumed = run(*VALIDATED, "TRAIN.LOGGERS", "['tensorboard', 'csv']")
    assert resumed.code == 0, resumed.error
    assert resumed.log.count("epoch [3/3]") == 2
    assert "epoch [2/3]" not in resumed.log
    assert read_rows(resumed.folder) == read_rows(unbroken.folder)
    again = run(*VALIDATED, "TRAIN.LOGGERS", "['csv']")  # trains no epoch, tests again
    assert "epoch [" not in again.log
    assert read_rows(again.folder) == read_rows(unbroken.folder)


def test_loggers_decide_no_result_and_old_runs_have_none(run):
    """A run that is older than the key goes on, is evaluated, and is averaged with newer ones."""
    old = run(*SHORT, out="old")
    record = old.record
    del record["config"]["TRAIN"]["LOGGERS"]
    (old.folder / "result.json").write_text(json.dumps(record), encoding="utf-8")

    def strip(text: str) -> str:
        config = yaml.safe_load(text)
        del config["TRAIN"]["LOGGERS"]
        return yaml.safe_dump(config)

    config_file = old.folder / "config.yaml"
    config_file.write_text(strip(config_file.read_text(encoding="utf-8")), encoding="utf-8")
    for path in old.folder.glob("*/model*.pth.tar*"):
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["origin"]["settings"] = strip(checkpoint["origin"]["settings"])
        torch.save(checkpoint, path)

    new = run(*SHORT, "TRAIN.LOGGERS", "['csv']", out="new")
    assert find_differences([read_run(old.folder), read_run(new.folder)]) == {}
    evaluated = run("--eval-only", "--model-dir", old.folder, out="evaluated")
    assert evaluated.code == 0, evaluated.error
    assert evaluated.record["accuracy"] == record["accuracy"]
    resumed = run(*SHORT, "TRAIN.LOGGERS", "['csv']", out="old")
    assert resumed.code == 0, resumed.error
    assert [row["tag"] for row in read_rows(old.folder)][:1] == ["test/accuracy"]


def test_a_method_that_trains_nothing_logs_its_results(run):
    result = run("DATASET.NUM_SHOTS", 2, "TRAIN.LOGGERS", "['csv']", trainer="TipAdapter")
    assert result.code == 0, result.error
    values = {row["tag"]: float(row["value"]) for row in read_rows(result.folder)}
    assert values["test/accuracy"] == result.record["accuracy"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("['csv','wandbb']", 'unknown TRAIN.LOGGERS "wandbb"; did you mean "wandb"? Known: csv, tensorboard, wandb'),
        ("csv", "TRAIN.LOGGERS in the command line takes a list, like ('tensorboard',); got 'csv'"),
        ("['wandb']", "TRAIN.LOGGERS wandb needs the package wandb: pip install wandb"),
    ],
)
def test_unknown_and_missing_loggers_are_refused_before_anything_is_written(run, monkeypatch, value, message):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it was not installed
    result = run(*SHORT, "TRAIN.LOGGERS", value)
    assert result.code == 2
    assert message in result.error
    assert not result.folder.exists()


def test_loggers_in_a_yaml_file(run, tmp_path):
    config = yaml.safe_load((REPOSITORY / "configs/trainers/CoOp/tiny.yaml").read_text(encoding="utf-8"))
    config.setdefault("TRAIN", {})["LOGGERS"] = ["csv"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    result = run("--config-file", tmp_path / "mine.yaml", "DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 2)
    assert result.record["config"]["TRAIN"]["LOGGERS"] == ["csv"]
    assert read_rows(result.folder)
    assert not (result.folder / "tensorboard").exists()


def test_wandb_gets_the_config_the_numbers_and_the_end(run, fake_wandb, monkeypatch):
    result = run(*SHORT, "TRAIN.LOGGERS", "['wandb']", out="study/CoOp/seed1")
    assert result.code == 0, result.error
    (logged,) = fake_wandb
    assert logged.exit_codes == [0]
    assert logged.arguments["name"].endswith("study-CoOp-seed1".replace("-", "/"))
    assert logged.arguments["dir"] == str(result.folder)
    assert logged.arguments["config"]["DATASET"]["NUM_SHOTS"] == 2
    assert [numbers["train/step"] for numbers in logged.numbers if "train/loss" in numbers] == [0, 1, 2, 3, 4, 5]
    assert {"test/accuracy": result.record["accuracy"], "test/step": 2} in logged.numbers
    assert (("test/*",), {"step_metric": "test/step"}) in logged.metrics

    stop_in_epoch(monkeypatch, 2)
    with pytest.raises(RuntimeError, match="stopped"):
        run(*SHORT, "TRAIN.LOGGERS", "['wandb']", out="failed")
    assert fake_wandb[1].exit_codes == [1]


def test_wandb_without_an_account_is_one_message(run, fake_wandb, monkeypatch):
    def refuse(**arguments):
        raise ConnectionError("No API key configured. Use `wandb login` to log in.")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    result = run(*SHORT, "TRAIN.LOGGERS", "['csv','wandb']")
    assert result.code == 2
    assert "No API key configured. Use `wandb login` to log in. Without" in result.error
    assert "WANDB_MODE=offline" in result.error


def test_names_on_wandb(monkeypatch):
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    assert name_run("output/digits/CoOp/tiny_16shots/seed1") == ("digits", "CoOp/tiny_16shots/seed1")
    assert name_run(str(Path("output/a b?/CoOp").absolute())) == ("a-b-", "CoOp")
    assert name_run("./output/try") == ("coop-dassl", "try")
    monkeypatch.setenv("WANDB_PROJECT", "thesis")
    assert name_run("output/digits/CoOp") == ("thesis", "CoOp")


@pytest.mark.skipif(find_spec("wandb") is None, reason="needs wandb")
def test_wandb_offline_leaves_a_run_to_upload_and_no_process(digits_root, tmp_path, monkeypatch):
    """In a process of its own, as users run it: W&B's service ends with the program."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb"))
    command = [sys.executable, str(REPOSITORY / "train.py"), "--root", str(digits_root), "--trainer", "CoOp"]
    command += ["--dataset-config-file", str(REPOSITORY / "configs/datasets/digits.yaml"), "--seed", "1"]
    command += ["--config-file", str(REPOSITORY / "configs/trainers/CoOp/tiny.yaml"), "--output-dir", "output/x/run"]
    command += [*map(str, SHORT), "TRAIN.LOGGERS", "['wandb','csv']"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    _, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    (log,) = (tmp_path / "output/x/run/wandb").glob("offline-run-*/run-*.wandb")
    content = log.read_bytes()
    assert all(word in content for word in (b"train/loss", b"test/accuracy", b"NUM_SHOTS"))
    assert "wandb sync output/x/run/wandb/offline-run-" in error
    if Path("/proc/self/cmdline").exists():
        commands = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                commands.append(path.read_bytes().split(b"\0"))
            except OSError:  # it has ended
                continue
        assert not [each for each in commands if str(process.pid).encode() in each and b"wandb" in b"".join(each)]


def test_a_logger_of_ones_own(run, monkeypatch):
    monkeypatch.setitem(LOGGERS, "json", None)  # so that the test's end removes what the snippet adds
    exec(SNIPPET, {})
    result = run(*SHORT, "TRAIN.LOGGERS", "['json']")
    assert result.code == 0, result.error
    lines = (result.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    numbers = [json.loads(line) for line in lines]
    assert [entry["step"] for entry in numbers if "train/loss" in entry] == [0, 1, 2, 3, 4, 5]
    assert {"step": 2, "test/accuracy": result.record["accuracy"]} in numbers


def test_a_logger_that_fails_to_close_leaves_no_other_open(monkeypatch):
    trainer, closed = TrainerBase(), []
    first, second = MetricsLogger(), MetricsLogger()
    monkeypatch.setattr(first, "close", closed.append)
    monkeypatch.setattr(second, "close", lambda trainer: 1 / 0)
    trainer._loggers = [first, second]
    with pytest.raises(ZeroDivisionError):
        trainer.close_writer()
    assert closed == [trainer]


def test_only_the_main_process_opens_loggers(make_config, monkeypatch, tmp_path):
    trainer = TrainerBase()
    trainer._hooks = build_loggers(make_config("CoOp", TRAIN__LOGGERS=("csv", "tensorboard")))
    trainer.output_dir, trainer.cfg = str(tmp_path / "run"), make_config("CoOp")
    monkeypatch.setattr("dassl.distributed.get_rank", lambda: 1)
    trainer.init_writer(str(tmp_path / "run/tensorboard"))
    trainer.write_scalar("train/loss", 1.0)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr("dassl.distributed.get_rank", lambda: 0)
    trainer.init_writer(str(tmp_path / "run/tensorboard"))
    trainer.close_writer()
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"metrics.csv", "tensorboard"}
