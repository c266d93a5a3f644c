"""The record of a run: code, machine, data, checkpoints, whether the run is finished; and fingerprints of splits."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import train
from dassl.data.datasets import DatasetBase, Datum
from dassl.data.datasets.fingerprint import split_fingerprint, split_fingerprints
from dassl.engine.record import code_version, find_staleness
from dassl.evaluation import Classification
from dassl.utils.cost import peak_memory
from tests.common import REPOSITORY

SHORT = ("DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 2)


def make_items(root="/data", names=("cat", "dog"), domain=0, order=1):
    """Return an image of each class."""
    return [Datum(f"{root}/pets/{name}/{name}.jpg", label, domain, name) for label, name in enumerate(names)][::order]


def test_moved_data_keep_their_fingerprint_and_changed_data_get_another(tmp_path, monkeypatch):
    original = split_fingerprint(make_items(), "/data")
    assert (
        original
        == split_fingerprint(make_items("/mnt/other"), "/mnt/other")
        == split_fingerprint(make_items(), "/data/../data")
    )
    monkeypatch.chdir(tmp_path)
    assert original == split_fingerprint(make_items("data"), "./data")
    relabelled = [Datum(item.impath, 1 - item.label, 0, item.classname) for item in make_items()]
    renamed = [Datum(item.impath, item.label, 0, f"{item.classname}s") for item in make_items()]
    changed = [
        make_items()[:1],
        make_items(order=-1),
        make_items(domain=1),
        make_items(names=("cat", "cow")),
        relabelled,
        renamed,
    ]
    assert len({original, *(split_fingerprint(split, "/data") for split in changed)}) == len(changed) + 1


def test_captions_are_part_of_the_fingerprint():
    item = SimpleNamespace(impath="/data/a.jpg", label=0, domain=0, classname="", captions=("a cat", "a pet"))
    before = split_fingerprint([item], "/data")
    item.captions = ("a cat", "a dog")
    assert split_fingerprint([item], "/data") != before


def test_only_splits_that_a_data_set_has_get_a_fingerprint():
    fingerprints = split_fingerprints(DatasetBase(train_x=make_items(), test=make_items()[:1]), "/data")
    assert {name: entry["images"] for name, entry in fingerprints.items()} == {"train_x": 2, "test": 1}


@pytest.fixture
def code(tmp_path):
    """A folder with the Python files of a program."""
    for name in ("part/a.py", "part/deep/b.py", "other/c.py", "main.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\ny = 2\n", encoding="utf-8")
    return tmp_path


def test_the_code_version_depends_on_the_python_files_but_not_on_their_line_ends(code):
    def version():
        return code_version(code, ("part", "main.py"))

    before = version()
    assert set(before) == {"sha256"}  # no git checkout
    (code / "other/c.py").write_text("", encoding="utf-8")
    (code / "part/notes.txt").write_text("", encoding="utf-8")
    (code / "main.py").write_bytes(b"x = 1\r\ny = 2\r\n")
    assert version() == before
    (code / "part/deep/b.py").rename(code / "part/deep/d.py")
    assert version() != before
    (code / "part/deep/d.py").rename(code / "part/deep/b.py")
    assert version() == before
    (code / "main.py").write_text("x = 2\ny = 2\n", encoding="utf-8")
    assert version() != before


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_in_a_checkout_the_code_version_names_the_commit_and_whether_the_code_is_modified(code, monkeypatch):
    def git(*arguments):
        settings = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        command = ["git", *settings, *arguments]
        return subprocess.run(command, cwd=code, check=True, capture_output=True, text=True).stdout.strip()

    for arguments in (("init", "-q"), ("add", "."), ("commit", "-qm", "first")):
        git(*arguments)
    clean = code_version(code, ("part", "main.py"))
    assert (clean["commit"], clean["modified"]) == (git("rev-parse", "HEAD"), False)
    (code / "other/c.py").write_text("", encoding="utf-8")
    assert code_version(code, ("part", "main.py")) == clean
    (code / "part/new.py").write_text("", encoding="utf-8")
    assert code_version(code, ("part", "main.py"))["modified"]
    monkeypatch.setenv("PATH", "")
    assert set(code_version(code, ("part", "main.py"))) == {"sha256"}


def test_the_record_describes_the_run_and_the_code_that_began_it(run, monkeypatch):
    """A file that is edited while the run goes on does not change the record."""
    code = {"sha256": "before"}
    monkeypatch.setattr("dassl.engine.run_dir.code_version", lambda *_: dict(code))
    monkeypatch.setattr("trainers.coop.CoOp.before_epoch", lambda _: code.update(sha256="after"))
    record = run(*SHORT).record
    assert record["splits"]["train_x"]["images"] == 20
    assert record["splits"]["test"]["images"] == record["total"] == 896
    assert record["correct"] == round(record["total"] * record["accuracy"] / 100)
    assert record["machine"]["threads"] == torch.get_num_threads()
    assert record["machine"]["device"] in ("cpu", "cuda")
    assert record["started_from"] == []
    assert {"torch", "scipy", "openvino", "transformers"} <= set(record["versions"])
    assert (record["code"], code) == ({"sha256": "before"}, {"sha256": "after"})
    assert all((REPOSITORY / path).exists() for path in train.CODE_PATHS)


def test_the_record_has_the_cost_of_the_run(run):
    first, second = run(*SHORT, out="first").record, run(*SHORT, out="second").record
    for record in (first, second):
        assert 0 < record["cpu_seconds"] < 2 * (os.cpu_count() or 1) * record["seconds"] + 1
        assert 50 * 2**20 < record["peak_memory"] < 2**40  # bytes: PyTorch alone takes more than the first
        assert "resumed_epoch" not in record
    assert second["earlier_runs"] == first.get("earlier_runs", 0) + 1  # in this process
    resumed = run("DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 2, out="second").record
    assert resumed["resumed_epoch"] == 2


def test_peak_memory_grows_with_what_the_process_takes():
    before = peak_memory()
    block = torch.ones(before // 4 + 2**26)  # float32: as many bytes as the peak, and more
    assert peak_memory() > before
    del block


def read_predictions(folder) -> list[dict]:
    """Return the rows of a run's predictions.csv."""
    return list(csv.DictReader((folder / "predictions.csv").open(encoding="utf-8")))


def test_the_record_names_the_trained_models_and_the_training_images_of_a_class(run):
    trained, zero_shot = run(*SHORT).record, run(trainer="ZeroshotCLIP", out="zero-shot").record
    assert (trained["models"], zero_shot["models"]) == (["prompt_learner"], [])
    assert trained["train_images_per_class"] == [2, 2]


def test_the_predictions_of_an_evaluation_are_those_of_its_record(run):
    trained = run(*SHORT, "TEST.FINAL_MODEL", "best_val")  # it validates before and after it tests
    tested = run("--eval-only", "--model-dir", trained.folder, *SHORT, out="tested")
    for result in (trained, tested):
        rows = read_predictions(result.folder)
        assert len(rows) == result.record["total"] == 896
        assert sum(row["label"] == row["top1"] for row in rows) == result.record["correct"]
    first = rows[0]
    assert first["path"] == "digits/images/val/0/0010.png"
    assert (first["label"], first["class"]) == ("0", "zero")
    assert {row["top1_class"] for row in rows if row["top1"] == "7"} == {"seven"}
    assert all(
        float(r["top1_probability"]) >= float(r["top2_probability"]) >= float(r["top3_probability"]) for r in rows
    )
    assert all(row["probability"] == row["top1_probability"] for row in rows if row["label"] == row["top1"])


def test_an_earlier_runs_predictions_are_renamed_with_its_record(run):
    before = (run(*SHORT).folder / "predictions.csv").read_text(encoding="utf-8")
    again = run("--no-train", *SHORT)
    assert (again.folder / "predictions.csv").read_text(encoding="utf-8") == before
    again = run(*SHORT, "TEST.NO_TEST", True)
    assert again.record["accuracy"] is None
    assert not (again.folder / "predictions.csv").exists()
    (renamed,) = again.folder.glob("predictions.csv-*")
    assert renamed.read_text(encoding="utf-8") == before


def test_without_a_certain_order_of_images_there_are_no_predictions(run, monkeypatch):
    shuffled = run("DATALOADER.TEST.SAMPLER", "RandomSampler", trainer="ZeroshotCLIP")
    assert shuffled.record["total"] == 896
    assert not (shuffled.folder / "predictions.csv").exists()
    original = Classification.process
    monkeypatch.setattr(Classification, "process", lambda self, mo, gt: original(self, mo[1:], gt[1:]))
    partial = run(trainer="ZeroshotCLIP", out="partial")
    assert partial.record["total"] < 896
    assert not (partial.folder / "predictions.csv").exists()


def test_the_record_has_a_checksum_over_the_image_files_of_each_split(run, digits_root, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(digits_root / "digits", root / "digits")
    first = run("--root", root, *SHORT).record["splits"]
    shots = json.loads((root / "digits/split_fewshot/shot_2-seed_1.json").read_text(encoding="utf-8"))["train"]
    files = [(root / "digits" / path).read_bytes() for path, *_ in shots]
    contents = "".join(hashlib.blake2b(content).hexdigest() for content in files)
    assert first["train_x"]["content"] == hashlib.sha256(contents.encode()).hexdigest()
    five = next((root / "digits/images/val/5").iterdir())
    shutil.copy(five, root / "digits/images/val/3/0013.png")
    changed = run("--root", root, *SHORT, out="changed").record["splits"]
    assert changed["train_x"] == first["train_x"]
    assert changed["test"]["sha256"] == first["test"]["sha256"]
    assert changed["test"]["content"] != first["test"]["content"]


def test_the_record_names_the_checkpoints_it_started_from(run):
    one = run(*SHORT, "TRAIN.CHECKPOINT_FREQ", 1)

    def sha256(epoch):
        return hashlib.sha256(one.checkpoint(epoch).read_bytes()).hexdigest()

    def started_from(*arguments, out):
        return [(entry["file"], entry["sha256"]) for entry in run(*arguments, out=out).record["started_from"]]

    first, last = ((str(one.checkpoint(epoch)), sha256(epoch)) for epoch in (1, 2))
    model = ("--eval-only", "--model-dir", one.folder)
    assert started_from(*model, *SHORT, out="newest") == [last]
    assert started_from(*model, "--load-epoch", 1, *SHORT, out="first") == [first]
    assert started_from(*SHORT, "MODEL.INIT_WEIGHTS", one.checkpoint(1), out="init") == [first]
    shutil.copy(one.checkpoint(1), one.folder / "prompt_learner/model-best.pth.tar")  # no run resumes from it
    longer = ("--resume", one.folder, *SHORT, "OPTIM.MAX_EPOCH", 3)
    assert started_from("--force-resume", *longer, out="longer") == [last]
    assert run(*SHORT, "TRAIN.CHECKPOINT_FREQ", 1).record["started_from"] == []  # it resumed from its own checkpoint


# ---- finished runs, which --skip-finished skips ----


@pytest.fixture
def evaluation(tmp_path):
    """The folder of an evaluation that ended at time 100, its command, and the older files that it depends on."""
    files = [tmp_path / "data.yaml", tmp_path / "method.yaml"]
    model = tmp_path / "model/prompt_learner"
    model.mkdir(parents=True)
    files += [model / f"model{name}" for name in ("-best.pth.tar", ".pth.tar-3", "-latest.pth.tar-4")]
    (tmp_path / "root/data").mkdir(parents=True)
    files += [tmp_path / "clip.pt", tmp_path / "root/data/names.txt", tmp_path / "shot_1-seed_1.json"]
    for file in files:
        file.write_text("", encoding="utf-8")
        os.utime(file, (50, 50))
    command = ["--config-file", str(files[1]), "--dataset-config-file", str(files[0])]
    command += ["--model-dir", str(tmp_path / "model"), "--eval-only"]
    dataset = {"ROOT": str(tmp_path / "root"), "FOLDER": "data", "CLASSNAMES": "names.txt"}
    config = {"DATASET": dataset, "MODEL": {"BACKBONE": {"WEIGHTS": str(files[5])}}}
    record = {"command": command, "config": config, "few_shot_split": {"file": str(files[7]), "fingerprint": ""}}
    (tmp_path / "result.json").write_text(json.dumps(record), encoding="utf-8")
    os.utime(tmp_path / "result.json", (100, 100))
    return tmp_path, command, files


def test_a_run_is_finished_if_its_record_has_the_same_command(evaluation):
    folder, command, _ = evaluation
    assert not find_staleness(folder, command)
    assert find_staleness(folder, [*command, "OPTIM.LR", "1"])
    assert find_staleness(folder / "elsewhere", command)


@pytest.mark.parametrize("number", range(8))
def test_a_run_is_not_finished_if_a_file_of_its_command_has_changed_since(evaluation, number):
    folder, command, files = evaluation
    os.utime(files[number], (150, 150))
    assert find_staleness(folder, command)
    assert find_staleness(folder, command) == f"{files[number]} is newer than its record"


def test_a_run_is_not_finished_if_a_config_file_of_its_command_is_missing(evaluation):
    folder, command, files = evaluation
    files[0].unlink()
    assert find_staleness(folder, command)


def test_replaced_images_of_a_split_change_the_digest_of_its_sizes(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / f"pets/{name}").mkdir(parents=True)
        (tmp_path / f"pets/{name}/{name}.jpg").write_bytes(b"12")
    dataset = DatasetBase(train_x=make_items(str(tmp_path)), test=make_items(str(tmp_path)))
    before = split_fingerprints(dataset, tmp_path)["test"]
    (tmp_path / "pets/dog/dog.jpg").write_bytes(b"123")
    after = split_fingerprints(dataset, tmp_path)["test"]
    assert (before["sha256"], before["sizes"] != after["sizes"]) == (after["sha256"], True)
    (tmp_path / "pets/dog/dog.jpg").unlink()
    assert "sizes" not in split_fingerprints(dataset, tmp_path)["test"]


def test_a_run_is_not_finished_if_one_of_its_shots_has_changed_since(run, digits_copy):
    trained = run("--root", digits_copy, *SHORT)
    assert not find_staleness(trained.folder, trained.record["command"])
    split = trained.record["few_shot_split"]["file"]
    name = json.loads(Path(split).read_text(encoding="utf-8"))["train"][0][0]
    later = (trained.folder / "result.json").stat().st_mtime + 1
    os.utime(digits_copy / "digits" / name, (later, later))
    assert f"{name} is newer than its record" in find_staleness(trained.folder, trained.record["command"])


def test_a_class_without_shots_has_none_in_the_record(run, digits_root, tmp_path):
    images = sorted((digits_root / "digits/images/train/3").iterdir())[:2]
    shots = [[f"images/train/3/{path.name}", 3, "three"] for path in images]
    (tmp_path / "shots.json").write_text(json.dumps({"train": shots, "val": []}), encoding="utf-8")
    trained = run("DATASET.FEWSHOT_FILE", tmp_path / "shots.json", "OPTIM.MAX_EPOCH", 1)
    assert trained.record["train_images_per_class"] == [0, 2]
