"""tools/rerun.py: a record is enough to do its run again, and what has changed since is named."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from dassl.utils import save_checkpoint
from studies.rerun import compare_tensors
from tests.common import REPOSITORY, assert_same_tensors
from tools.rerun import main
from tools.sweep import main as sweep

SHORT = ("DATASET.NUM_SHOTS", 2, "OPTIM.MAX_EPOCH", 3)


@pytest.fixture
def call(capsys):
    def run_it(*arguments: object):
        code = main([str(argument) for argument in arguments])
        output, error = capsys.readouterr()
        return code, output, error

    return run_it


def verdicts(output: str) -> dict[str, str]:
    """What differs, and what is the same, by name."""
    same = re.search(r"^The same: (.*)$", output, re.MULTILINE)[1].split(", ")
    rows = re.findall(r"^(\S+)  +.*$", output.partition("\n---")[2].partition("\nThe same: ")[0], re.MULTILINE)
    return {**dict.fromkeys(same, "same"), **dict.fromkeys(rows, "DIFFERS")}


def edit(folder: Path, change) -> None:
    path = folder / "result.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


@pytest.fixture
def moved(digits_root, tmp_path) -> Path:
    """A copy of the digits, of this test alone."""
    shutil.copytree(digits_root / "digits", tmp_path / "own/digits")
    return tmp_path / "own"


@pytest.mark.parametrize(
    ("trainer", "model", "epoch"),
    [("CoOp", "prompt_learner", 3), ("CLIPFineTune", "clip", 3), ("LinearProbe", "linear_probe", 1)],
)
def test_the_same_run_from_the_record_alone(run, call, tmp_path, trainer, model, epoch):
    """The YAML files are not read again, and neither the drawn seed nor a text that looks like a number is lost."""
    config = tmp_path / "gone.yaml"
    shutil.copy(REPOSITORY / "configs/trainers/CoOp/tiny.yaml", config)
    quoted = ("DATASET.TEMPLATE", "'{}'") if trainer == "CLIPFineTune" else ()
    batches = ("DATALOADER.TRAIN_X.BATCH_SIZE", 8)
    done = run("--config-file", config, *SHORT, *batches, *quoted, trainer=trainer, seed=-1)
    assert done.code == 0, done.error
    config.unlink()
    code, output, error = call(done.folder / "result.json")
    assert (code, error) == (0, "")
    assert output.endswith("The same results, and the same tensors\n")
    assert "DIFFERS" not in verdicts(output).values()
    again = tmp_path / "run-rerun"
    same = [
        "code",
        "versions",
        "machine",
        "config",
        "weights",
        "splits",
        "classnames",
        "accuracy",
        "correct",
        "total",
        "macro_f1",
    ]
    assert all(verdicts(output)[name] == "same" for name in same)
    for folder in (done.folder, again):
        assert (folder / model / "checkpoint").read_text() == f"model.pth.tar-{epoch}\n"
    name = f"{model}/model.pth.tar-{epoch}"
    assert verdicts(output)[name] == "same"
    assert_same_tensors(done.folder / name, again / name)
    assert json.loads((again / "result.json").read_text())["seed"] == done.record["seed"]


def test_an_evaluation_of_another_run(run, call):
    base = run(*SHORT, "TRAIN.CHECKPOINT_FREQ", 1, "DATASET.SUBSAMPLE_CLASSES", "base", out="base")
    evaluate = ("--eval-only", "--model-dir", base.folder, "--load-epoch", 2, *SHORT)
    new = run(*evaluate, "DATASET.SUBSAMPLE_CLASSES", "new", out="new")
    code, output, _ = call(new.folder)
    assert code == 0
    assert verdicts(output)["started_from"] == "same"
    assert output.endswith("The same results; there are no checkpoints to compare\n")
    assert not list(Path(f"{new.folder}-rerun").glob("*/checkpoint"))

    there = base.folder.rename(base.folder.with_name("there"))
    code, _, error = call(new.folder, "--output-dir", new.folder / "again")
    assert code == 2
    assert "give --root, --model-dir or KEY VALUE" in error
    code, output, _ = call(new.folder, "--model-dir", there, "--output-dir", new.folder / "moved")
    assert (code, verdicts(output)["accuracy"]) == (0, "same")
    there.rename(base.folder)

    save_checkpoint({"state_dict": {}, "epoch": 2}, base.checkpoint(2).parent)
    code, _, error = call(new.folder, "--output-dir", new.folder / "again")
    assert code == 2
    assert "the run would be another one: started_from.0.sha256" in error
    assert not (new.folder / "again").exists()
    shutil.rmtree(base.folder)
    assert (
        f"not there, seen from {Path.cwd()}: --model-dir {base.folder}."
        in call(new.folder, "--anyway", "--output-dir", new.folder / "again")[2]
    )


def test_a_run_of_a_sweep(tmp_path, digits_root, call):
    settings = f"--dataset-config-file {REPOSITORY}/configs/datasets/digits.yaml --trainer CoOp"
    settings += f" --config-file {REPOSITORY}/configs/trainers/CoOp/tiny.yaml"
    runs = [{"folder": "lr{OPTIM.LR}", "arguments": settings, "grid": {"OPTIM.LR": [0.02], "OPTIM.MAX_EPOCH": [2]}}]
    grid = {"output": str(tmp_path / "out"), "threads": 1, "runs": runs}
    (tmp_path / "sweep.yaml").write_text(json.dumps(grid))
    assert sweep([str(tmp_path / "sweep.yaml"), "--root", str(digits_root), "DATASET.NUM_SHOTS", "1"]) == 0
    code, output, _ = call(tmp_path / "out/lr0.02/result.json")
    assert code == 0
    assert verdicts(output)["prompt_learner/model.pth.tar-2"] == "same"


def test_a_run_that_went_on_from_another_and_one_that_was_stopped(run, call):
    first = run(*SHORT, out="first")
    longer = (*SHORT, "OPTIM.MAX_EPOCH", 4)
    second = run("--force-resume", "--resume", first.folder, *longer, out="second")
    code, output, _ = call(second.folder)
    assert (code, verdicts(output)["prompt_learner/model.pth.tar-4"]) == (0, "same")
    assert "epoch [4/4]" in (Path(f"{second.folder}-rerun") / "log.txt").read_text()

    own = run("--resume", first.folder, *SHORT, out="first")
    assert own.code == 0
    assert call(own.folder)[0] == 0
    assert "epoch [1/3]" in (Path(f"{own.folder}-rerun") / "log.txt").read_text()


def test_a_changed_image_is_named_once_results_differ(run, call, moved):
    done = run("--root", moved, *SHORT)
    for image in (moved / "digits/images/val/3").iterdir():
        shutil.copy(next((moved / "digits/images/val/5").iterdir()), image)
    code, output, _ = call(done.folder)
    assert code == 1
    assert verdicts(output)["splits.test.content"] == "DIFFERS"
    assert not any(name.startswith("splits.train_x") for name in verdicts(output))
    assert verdicts(output)["prompt_learner/model.pth.tar-3"] == "same"
    assert re.search(r"^Not the same: .*accuracy.* What may explain it: splits.test.content$", output, re.MULTILINE)


def test_other_data_are_refused_before_training(run, call, moved):
    done = run("--root", moved, *SHORT)
    again = Path(f"{done.folder}-rerun")
    names = moved / "digits/classnames.txt"
    before = names.read_text()
    names.write_text(before.replace("3 three", "3 drei"))
    code, _, error = call(done.folder)
    assert code == 2
    assert "classnames.3 three -> drei" in error
    assert "splits.train_x.sha256" in error
    names.write_text(before)
    next((moved / "digits/images/val/3").iterdir()).unlink()
    code, _, error = call(done.folder)
    assert code == 2
    assert "splits.test.images 896 -> 895; splits.test.sha256" in error
    assert "train_x" not in error
    assert not again.exists()
    assert call(done.folder, "--anyway")[0] == 1
    assert (again / "prompt_learner/model.pth.tar-3").is_file()


def test_moved_data(run, call, moved):
    done = run("--root", moved, *SHORT)
    there = moved.rename(moved.with_name("there"))
    code, _, error = call(done.folder)
    assert code == 2
    assert f"DATASET.ROOT {moved}" in error
    code, output, _ = call(done.folder, "--root", there)
    assert code == 0
    assert (verdicts(output)["config.DATASET.ROOT"], verdicts(output)["splits"]) == ("DIFFERS", "same")


def test_other_weights_are_refused_and_another_name_of_theirs_is_not(run, call):
    done = run(*SHORT)
    edit(done.folder, lambda record: record["weights"].update(file="old.pt"))
    code, output, _ = call(done.folder)
    assert (code, verdicts(output)["weights"]) == (0, "same")
    edit(done.folder, lambda record: record["weights"].update(sha256="0" * 64))
    code, _, error = call(done.folder, "--output-dir", done.folder / "again")
    assert code == 2
    assert "weights.sha256 000000000000 -> " in error


def test_other_tensors_and_settings_are_told(run, call):
    done = run(*SHORT)
    code, output, _ = call(done.folder, "OPTIM.LR", 0.1, "TEST.NO_TEST", True)
    assert code == 1
    rows = verdicts(output)
    assert rows["config.OPTIM.LR"] == rows["prompt_learner/model.pth.tar-3"] == rows["accuracy"] == "DIFFERS"
    assert re.search(r"config.OPTIM.LR +0.002 +0.1$", output, re.MULTILINE)
    assert re.search(r"largest difference \d", output)
    assert output.index("config.OPTIM.LR") < output.index("\naccuracy ")  # causes come first


def test_the_newest_checkpoint_and_the_best_are_compared(tmp_path):
    for run, best in (("then", 1.0), ("now", 2.0)):
        for epoch, value, name in ((1, best, "model-best.pth.tar"), (2, 0.0, "")):
            state = {"state_dict": {"ctx": torch.tensor([value])}, "epoch": epoch}
            save_checkpoint(state, tmp_path / run / "prompt_learner", model_name=name)
    found = dict(compare_tensors(tmp_path / "then", tmp_path / "now"))
    assert found["prompt_learner/model.pth.tar-2"] == ""
    assert found["prompt_learner/model-best.pth.tar"] == "largest difference 1"


def test_on_as_many_threads_as_then(run, call):
    done = run(*SHORT)
    before = torch.get_num_threads()
    edit(done.folder, lambda record: record["machine"].update(threads=before + 1))
    code, output, _ = call(done.folder)
    assert f"Threads: {before + 1}, as then" in output
    assert json.loads((Path(f"{done.folder}-rerun") / "result.json").read_text())["machine"]["threads"] == before + 1
    assert code in (0, 1)


def test_a_record_of_an_earlier_version(run, call):
    done = run(*SHORT)

    def age(record):
        for key in ("code", "machine", "splits", "started_from", "correct", "total"):
            del record[key]
        del record["config"]["FORCE_RESUME"], record["config"]["DATASET"]["TEST_PERCENT"], record["versions"]["scipy"]

    edit(done.folder, age)
    code, output, _ = call(done.folder)
    assert code == 0
    rows = verdicts(output)
    assert not {"code", "splits", "correct"} & {*rows}
    assert rows["versions"] == rows["config"] == rows["accuracy"] == "same"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (None, ["cannot read", "result.json"]),
        ("{", ["result.json is not valid JSON"]),
        ("[]", ["result.json is damaged"]),
        ('{"accuracy": 50.0}', ["result.json lacks command, config, so the run cannot be done again"]),
        ('{"command": ["--seed", "1"], "config": {"NOTHING": 1}}', ['unknown config key "NOTHING"']),
    ],
)
def test_a_record_that_is_no_record(call, tmp_path, text, parts):
    path = tmp_path / "run/result.json"
    path.parent.mkdir()
    if text is not None:
        path.write_text(text)
    code, _, error = call(path)
    assert code == 2
    assert all(part in error for part in parts), error
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_folder_that_holds_something_is_not_written_to(run, call, tmp_path):
    done = run(*SHORT)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "notes.txt").write_text("")
    for folder in (taken, taken / "notes.txt", done.folder):
        code, _, error = call(done.folder, "--output-dir", folder)
        assert code == 2
        assert f"{folder} is there already" in error
    assert [path.name for path in taken.iterdir()] == ["notes.txt"]
