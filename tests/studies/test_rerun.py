"""tools/rerun.py: a run is repeated from its record alone, and changes since the run are reported."""

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
    """A function that calls tools/rerun.py and returns its exit code, output and errors."""

    def run_main(*arguments: object):
        code = main([str(argument) for argument in arguments])
        output, error = capsys.readouterr()
        return code, output, error

    return run_main


def read_comparison(output: str) -> dict[str, str]:
    """Return ``same`` or ``DIFFERS`` by the name of each compared value in the output."""
    same = re.search(r"^The same: (.*)$", output, re.MULTILINE)[1].split(", ")
    rows = re.findall(r"^(\S+)  +.*$", output.partition("\n---")[2].partition("\nThe same: ")[0], re.MULTILINE)
    return {**dict.fromkeys(same, "same"), **dict.fromkeys(rows, "DIFFERS")}


def edit_record(folder: Path, change) -> None:
    """Call ``change`` with the record in ``folder``, a dict, and write the dict back."""
    path = folder / "result.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    change(record)
    path.write_text(json.dumps(record), encoding="utf-8")


@pytest.mark.parametrize(
    ("trainer", "model", "epoch"),
    [("CoOp", "prompt_learner", 3), ("CLIPFineTune", "clip", 3), ("LinearProbe", "linear_probe", 1)],
)
def test_a_rerun_from_the_record_alone_gives_the_same_bits(run, call, tmp_path, trainer, model, epoch):
    """The YAML file is not needed; the record has the drawn seed and a text as written, with quotation marks."""
    config = tmp_path / "deleted.yaml"
    shutil.copy(REPOSITORY / "configs/trainers/CoOp/tiny.yaml", config)
    quoted = ("DATASET.TEMPLATE", "'{}'") if trainer == "CLIPFineTune" else ()
    batches = ("DATALOADER.TRAIN_X.BATCH_SIZE", 8)
    original = run("--config-file", config, *SHORT, *batches, *quoted, trainer=trainer, seed=-1)
    assert original.code == 0, original.error
    config.unlink()
    code, output, error = call(original.folder / "result.json")
    assert (code, error) == (0, "")
    assert output.endswith("The same results, and the same tensors\n")
    assert "DIFFERS" not in read_comparison(output).values()
    again = original.folder / "rerun"
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
    assert all(read_comparison(output)[name] == "same" for name in same)
    for folder in (original.folder, again):
        assert (folder / model / "checkpoint").read_text(encoding="utf-8") == f"model.pth.tar-{epoch}\n"
    name = f"{model}/model.pth.tar-{epoch}"
    assert read_comparison(output)[name] == "same"
    assert_same_tensors(original.folder / name, again / name)
    assert json.loads((again / "result.json").read_text(encoding="utf-8"))["seed"] == original.record["seed"]


def test_an_evaluation_is_repeated_with_the_model_of_its_run(run, call):
    base = run(*SHORT, "TRAIN.CHECKPOINT_FREQ", 1, "DATASET.SUBSAMPLE_CLASSES", "base", out="base")
    evaluate = ("--eval-only", "--model-dir", base.folder, "--load-epoch", 2, *SHORT)
    new = run(*evaluate, "DATASET.SUBSAMPLE_CLASSES", "new", out="new")
    code, output, _ = call(new.folder)
    assert code == 0
    assert read_comparison(output)["started_from"] == "same"
    assert output.endswith("The same results; there are no checkpoints to compare\n")
    assert not list(Path(new.folder, "rerun").glob("*/checkpoint"))

    renamed = base.folder.rename(base.folder.with_name("renamed"))
    code, _, error = call(new.folder, "--output-dir", new.folder / "again")
    assert code == 2
    assert "give --root, --model-dir or KEY VALUE" in error
    code, output, _ = call(new.folder, "--model-dir", renamed, "--output-dir", new.folder / "moved")
    assert (code, read_comparison(output)["accuracy"]) == (0, "same")
    renamed.rename(base.folder)

    save_checkpoint({"state_dict": {}, "epoch": 2}, base.checkpoint(2).parent)
    code, _, error = call(new.folder, "--output-dir", new.folder / "again")
    assert code == 2
    assert "the run would have other inputs: started_from.0.sha256" in error
    assert not (new.folder / "again").exists()
    shutil.rmtree(base.folder)
    assert (
        f"paths that do not exist, seen from {Path.cwd()}: --model-dir {base.folder}."
        in call(new.folder, "--anyway", "--output-dir", new.folder / "again")[2]
    )


def test_a_run_of_a_sweep_is_repeated(tmp_path, digits_root, call):
    settings = f"--dataset-config-file {REPOSITORY}/configs/datasets/digits.yaml --trainer CoOp"
    settings += f" --config-file {REPOSITORY}/configs/trainers/CoOp/tiny.yaml"
    runs = [{"folder": "lr{OPTIM.LR}", "arguments": settings, "grid": {"OPTIM.LR": [0.02], "OPTIM.MAX_EPOCH": [2]}}]
    grid = {"output": str(tmp_path / "out"), "threads": 1, "runs": runs}
    (tmp_path / "sweep.yaml").write_text(json.dumps(grid), encoding="utf-8")
    assert sweep([str(tmp_path / "sweep.yaml"), "--root", str(digits_root), "DATASET.NUM_SHOTS", "1"]) == 0
    code, output, _ = call(tmp_path / "out/lr0.02/result.json")
    assert code == 0
    assert read_comparison(output)["prompt_learner/model.pth.tar-2"] == "same"


def test_the_record_of_a_training_run_is_repeated_though_an_evaluation_took_its_place(run, call):
    """As versions before this one let an evaluation do."""
    original = run(*SHORT)
    evaluated = run("--eval-only", "--model-dir", original.folder, *SHORT, out="evaluated")
    record = original.folder / "result.json"
    renamed = record.rename(f"{record}-2026-01-01-00-00-00")
    shutil.copy(evaluated.folder / "result.json", record)
    code, output, _ = call(original.folder)
    assert (code, read_comparison(output)["prompt_learner/model.pth.tar-3"]) == (0, "same")
    renamed.unlink()
    code, _, error = call(original.folder, "--output-dir", original.folder / "again")
    assert (code, f"{record} is not that of the training run in this folder" in error) == (2, True)


def test_resumed_runs_are_repeated(run, call):
    first = run(*SHORT, out="first")
    longer = (*SHORT, "OPTIM.MAX_EPOCH", 4)
    second = run("--force-resume", "--resume", first.folder, *longer, out="second")
    code, output, _ = call(second.folder)
    assert (code, read_comparison(output)["prompt_learner/model.pth.tar-4"]) == (0, "same")
    assert "epoch [4/4]" in (second.folder / "rerun/log.txt").read_text(encoding="utf-8")

    stopped = run("--resume", first.folder, *SHORT, out="first")
    assert stopped.code == 0
    assert call(stopped.folder)[0] == 0
    assert "epoch [1/3]" in (stopped.folder / "rerun/log.txt").read_text(encoding="utf-8")


def test_a_changed_image_is_reported_as_a_possible_cause(run, call, digits_copy):
    original = run("--root", digits_copy, *SHORT)
    for image in (digits_copy / "digits/images/val/3").iterdir():
        shutil.copy(next((digits_copy / "digits/images/val/5").iterdir()), image)
    code, _, error = call(original.folder)
    assert (code, "splits.test.sizes" in error) == (2, True)
    code, output, _ = call(original.folder, "--anyway")
    assert code == 1
    assert read_comparison(output)["splits.test.content"] == "DIFFERS"
    assert not any(name.startswith("splits.train_x") for name in read_comparison(output))
    assert read_comparison(output)["prompt_learner/model.pth.tar-3"] == "same"
    assert re.search(
        r"^Not the same: .*accuracy.* Possible causes: splits.test.sizes, splits.test.content$", output, re.MULTILINE
    )


def test_changed_data_is_refused_before_training(run, call, digits_copy):
    original = run("--root", digits_copy, *SHORT)
    again = original.folder / "rerun"
    names = digits_copy / "digits/classnames.txt"
    saved = names.read_text(encoding="utf-8")
    names.write_text(saved.replace("3 three", "3 drei"), encoding="utf-8")
    code, _, error = call(original.folder)
    assert code == 2
    assert "classnames.3 three -> drei" in error
    assert "splits.train_x.sha256" in error
    names.write_text(saved, encoding="utf-8")
    next((digits_copy / "digits/images/val/3").iterdir()).unlink()
    code, _, error = call(original.folder)
    assert code == 2
    assert "splits.test.images 896 -> 895; splits.test.sha256" in error
    assert "train_x" not in error
    assert not again.exists()
    assert call(original.folder, "--anyway")[0] == 1
    assert (again / "prompt_learner/model.pth.tar-3").is_file()


def test_moved_data_requires_the_flag_root(run, call, digits_copy):
    original = run("--root", digits_copy, *SHORT)
    renamed = digits_copy.rename(digits_copy.with_name("renamed"))
    code, _, error = call(original.folder)
    assert code == 2
    assert f"DATASET.ROOT {digits_copy}" in error
    code, output, _ = call(original.folder, "--root", renamed)
    assert code == 0
    assert (read_comparison(output)["config.DATASET.ROOT"], read_comparison(output)["splits"]) == ("DIFFERS", "same")


def test_changed_weights_are_refused_and_renamed_weights_are_not(run, call):
    original = run(*SHORT)
    edit_record(original.folder, lambda record: record["weights"].update(file="old.pt"))
    code, output, _ = call(original.folder)
    assert (code, read_comparison(output)["weights"]) == (0, "same")
    edit_record(original.folder, lambda record: record["weights"].update(sha256="0" * 64))
    code, _, error = call(original.folder, "--output-dir", original.folder / "again")
    assert code == 2
    assert "weights.sha256 000000000000 -> " in error


def test_changed_settings_and_tensors_are_reported_with_causes_first(run, call):
    original = run(*SHORT)
    code, output, _ = call(original.folder, "OPTIM.LR", 0.1, "TEST.NO_TEST", True)
    assert code == 1
    rows = read_comparison(output)
    assert rows["config.OPTIM.LR"] == rows["prompt_learner/model.pth.tar-3"] == rows["accuracy"] == "DIFFERS"
    assert re.search(r"config.OPTIM.LR +0.002 +0.1$", output, re.MULTILINE)
    assert re.search(r"largest difference \d", output)
    assert output.index("config.OPTIM.LR") < output.index("\naccuracy ")  # causes come first


def test_the_newest_checkpoint_and_the_best_are_compared(tmp_path):
    for run, best in (("original", 1.0), ("repeated", 2.0)):
        for epoch, value, name in ((1, best, "model-best.pth.tar"), (2, 0.0, "")):
            state = {"state_dict": {"ctx": torch.tensor([value])}, "epoch": epoch}
            save_checkpoint(state, tmp_path / run / "prompt_learner", model_name=name)
    differences = dict(compare_tensors(tmp_path / "original", tmp_path / "repeated"))
    assert differences["prompt_learner/model.pth.tar-2"] == ""
    assert differences["prompt_learner/model-best.pth.tar"] == "largest difference 1"


def test_a_rerun_uses_the_number_of_threads_in_the_record(run, call):
    original = run(*SHORT)
    default = torch.get_num_threads()
    edit_record(original.folder, lambda record: record["machine"].update(threads=default + 1))
    code, output, _ = call(original.folder)
    assert f"Threads: {default + 1}, as in the record" in output
    assert (
        json.loads((original.folder / "rerun/result.json").read_text(encoding="utf-8"))["machine"]["threads"]
        == default + 1
    )
    assert code in (0, 1)


def test_a_record_of_an_earlier_version_is_enough(run, call):
    original = run(*SHORT)

    def remove_new_entries(record):
        """Remove the entries that earlier versions did not write."""
        for key in ("code", "machine", "splits", "started_from", "correct", "total"):
            del record[key]
        del record["config"]["FORCE_RESUME"], record["config"]["DATASET"]["TEST_PERCENT"], record["versions"]["scipy"]

    edit_record(original.folder, remove_new_entries)
    code, output, _ = call(original.folder)
    assert code == 0
    rows = read_comparison(output)
    assert not {"code", "splits", "correct"} & {*rows}
    assert rows["versions"] == rows["config"] == rows["accuracy"] == "same"


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        (None, ["cannot read", "result.json"]),
        ("{", ["result.json is not valid JSON"]),
        ("[]", ["result.json is damaged"]),
        ('{"accuracy": 50.0}', ["result.json has no command, config, so the run cannot be repeated"]),
        ('{"command": ["--seed", "1"], "config": {"NOTHING": 1}}', ['unknown config key "NOTHING"']),
    ],
)
def test_a_damaged_or_incomplete_record_is_refused(call, tmp_path, text, messages):
    path = tmp_path / "run/result.json"
    path.parent.mkdir()
    if text is not None:
        path.write_text(text, encoding="utf-8")
    code, _, error = call(path)
    assert code == 2
    assert all(message in error for message in messages), error
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_an_output_folder_that_is_not_empty_is_refused(run, call, tmp_path):
    original = run(*SHORT)
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "notes.txt").write_text("", encoding="utf-8")
    for folder in (occupied, occupied / "notes.txt", original.folder):
        code, _, error = call(original.folder, "--output-dir", folder)
        assert code == 2
        assert f"{folder} is there already" in error
    assert [path.name for path in occupied.iterdir()] == ["notes.txt"]
