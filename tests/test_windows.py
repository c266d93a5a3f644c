"""What Windows refuses: the functions of tests.windows.simulation in this process, and programs under all of it."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import predict
from dassl.config import get_cfg_default
from dassl.data.data_manager import DatasetWrapper
from dassl.data.datasets import Datum
from dassl.engine.record import code_version
from dassl.utils import UserError, atomic_write, fonts, relpath
from dassl.utils.errors import interrupted_error
from tests.common import IS_WINDOWS, REPOSITORY
from tests.windows import simulation
from tests.windows.__main__ import simulated_environment
from tools.export_classifier import main as export_classifier
from tools.results_table import main as results_table

ZERO_SHOT = {"trainer": "ZeroshotCLIP", "out": "study/ZeroshotCLIP"}


def read_folder(folder: Path) -> dict[str, bytes]:
    """Return the content of each file below ``folder`` by its path; locks are left out."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def write_digit(path: Path) -> Path:
    """Write an image of noise, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("name", ["result.json", "predictions.csv", "log.txt"])
def test_a_run_sets_nothing_aside_while_another_program_has_a_file_open(name, run, windows):
    first = run("DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 1)
    before = read_folder(first.folder)
    with open(first.folder / name, encoding="utf-8"):
        second = run("DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 1)
    assert second.code == 2
    assert f"error: cannot write {first.folder / name}: " in second.error
    assert "If Excel, an image viewer or another program has it open, close it there" in second.error
    assert read_folder(first.folder) == before
    assert run("DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 1).code == 0


@pytest.mark.parametrize("name", ["results.csv", "results.md", "results.png"])
def test_a_table_is_written_fully_or_not_at_all(name, run, tmp_path, capsys, windows):
    run("--eval-only", **ZERO_SHOT)
    study = tmp_path / "study"
    for file in ("results.csv", "results.md", "results.png"):
        (study / file).write_text("earlier", encoding="utf-8")
    before = read_folder(study)
    with open(study / name, encoding="utf-8"):
        assert results_table([str(study)]) == 2
    assert f"error: cannot write {study / name}: " in capsys.readouterr().err
    assert read_folder(study) == before
    assert results_table([str(study)]) == 0
    assert b"earlier" not in read_folder(study).values()


def test_predict_refuses_a_sheet_that_a_viewer_shows_before_it_reads_images(tmp_path, capsys, windows):
    image, sheet = write_digit(tmp_path / "digit.png"), tmp_path / "sheet.png"
    sheet.write_bytes(b"earlier")
    with open(sheet, "rb"):
        assert predict.main([str(image), "--classes", "one", "two", "--backbone", "tiny", "--show", str(sheet)]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert f"cannot write {sheet}: " in output.err
    assert sheet.read_bytes() == b"earlier"


def test_paths_on_standard_input_in_another_encoding_are_no_traceback(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("小样本.png".encode()), encoding="gbk"))
    assert predict.main(["-", "--classes", "one", "two", "--backbone", "tiny"]) == 2
    assert "standard input is no text in gbk; set the environment variable PYTHONUTF8=1" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["classifier.onnx", "class_weights.npz"])
def test_an_export_replaces_all_files_or_none(name, run, capsys, windows):
    folder = run("--eval-only", **ZERO_SHOT).folder
    files = ("classifier.onnx", "class_weights.npz", "class_weights.safetensors")
    (folder / "classifier").mkdir()
    for file in files:
        (folder / "classifier" / file).write_bytes(b"earlier")
    with open(folder / "classifier" / name, "rb"):
        assert export_classifier([str(folder)]) == 2
    assert f"cannot write {folder / 'classifier' / name}: " in capsys.readouterr().err
    assert {*read_folder(folder / "classifier").values()} == {b"earlier"}


def test_a_file_is_replaced_once_a_virus_scanner_has_closed_it(tmp_path, windows):
    path = tmp_path / "file.txt"
    path.write_text("earlier", encoding="utf-8")
    scanner = open(path, encoding="utf-8")  # noqa: SIM115
    threading.Timer(0.2, scanner.close).start()
    with atomic_write(path) as file:
        file.write("new")
    assert path.read_text(encoding="utf-8") == "new"


def test_a_file_that_stays_open_is_named_and_nothing_is_left(tmp_path, windows):
    path = tmp_path / "file.txt"
    path.write_text("earlier", encoding="utf-8")
    with open(path, encoding="utf-8"), pytest.raises(UserError, match="close it there"), atomic_write(path) as file:
        file.write("new")
    assert read_folder(tmp_path) == {"file.txt": b"earlier"}


def test_an_old_checkpoint_in_use_does_not_end_the_training(run, capsys, windows):
    """It stays; the run goes on."""
    options = ("DATASET.NUM_SHOTS", 1, "TRAIN.CHECKPOINT_FREQ", 1, "TRAIN.KEEP_CHECKPOINTS", 1, "OPTIM.MAX_EPOCH", 1)
    first = run(*options)
    checkpoint = first.checkpoint(1)
    with open(checkpoint, "rb"):
        longer = run(*options, "OPTIM.MAX_EPOCH", 2, "FORCE_RESUME", True)
    assert longer.code == 0
    assert f"Note: {checkpoint} is not removed: " in longer.log
    assert longer.checkpoint(2).is_file()


def test_the_record_has_the_commit_of_a_branch_with_a_chinese_name(tmp_path, windows):
    """Three characters are nine bytes of UTF-8, which are no text in code page 936."""
    (tmp_path / "code.py").write_text("", encoding="utf-8")
    commit = ["-c", "user.name=a", "-c", "user.email=b", "commit", "-qm", "first"]
    for command in (["init", "-q", "-b", "小样本"], ["add", "code.py"], commit):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    assert len(code_version(tmp_path, ["code.py"])["commit"]) == 40


@pytest.fixture
def drive(tmp_path, monkeypatch) -> Path:
    """A folder that is on another drive than the rest of ``tmp_path``."""
    monkeypatch.setattr(simulation, "REPOSITORY", tmp_path / "D")
    return tmp_path / "D"


@pytest.mark.skipif(IS_WINDOWS, reason="simulates drives")
def test_ctrl_c_prints_a_command_that_works_from_another_drive(drive, tmp_path, monkeypatch, windows):
    monkeypatch.chdir(tmp_path)
    error = interrupted_error("in epoch 1 of 2", "from the beginning", str(drive / "train.py"), ["--seed", "1"])
    assert f"python {drive}/train.py --seed 1" in str(error)


@pytest.mark.skipif(IS_WINDOWS, reason="simulates drives")
def test_images_may_be_on_another_drive_than_the_root(drive, run, tmp_path, windows):
    """``DATASET.FOLDER`` may be an absolute path; predictions are named below DATASET.ROOT."""
    images = [write_digit(drive / f"photos/{split}/{name}/1.png") for split in ("train", "test") for name in "ab"]
    options = ("DATASET.NAME", "ImageFolder", "DATASET.FOLDER", drive / "photos", "DATASET.NUM_SHOTS", 1)
    result = run("--root", tmp_path, *options, "OPTIM.MAX_EPOCH", 1)
    assert result.code == 0, result.error
    rows = (result.folder / "predictions.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == [str(path) for path in images[2:]]


def test_a_path_is_relative_where_that_is_possible():
    assert relpath(REPOSITORY / "a/b", REPOSITORY) == os.path.join("a", "b")
    assert relpath(REPOSITORY / "a", REPOSITORY / "b") == os.path.join(os.pardir, "a")


def test_loader_workers_can_be_spawned(tmp_path):
    """As on Windows, where a worker gets the data set as a pickle."""
    import torch

    items = [Datum(str(write_digit(tmp_path / "1.png")), 0, 0, "one")]
    context = multiprocessing.get_context("spawn")
    dataset = DatasetWrapper(get_cfg_default(), items)
    loader = torch.utils.data.DataLoader(dataset, num_workers=1, multiprocessing_context=context, collate_fn=list)
    assert [batch[0]["impath"] for batch in loader] == [items[0].impath]


def test_a_plot_uses_a_font_with_the_letters_of_its_texts(monkeypatch, capsys):
    """Matplotlib's "Last Resort" has a sign for each letter, and so takes the place of a Chinese font."""
    assert fonts.find_fonts(("cat", "±")) == [fonts.DEFAULT_FONT]
    monkeypatch.setattr(fonts, "CJK_FONTS", ("cmsy10", "Last Resort High-Efficiency"))
    assert fonts.find_fonts(("猫 cat",)) == [fonts.DEFAULT_FONT, "Last Resort High-Efficiency"]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(fonts, "CJK_FONTS", ())
    with fonts.plot_fonts(["花 flower"]):
        pass
    error = capsys.readouterr().err
    assert "Note: no installed font has 花; " in error
    assert "install Noto Sans CJK SC" in error


def test_a_table_of_a_folder_with_a_chinese_name_has_one_note(run, tmp_path, capsys, monkeypatch, recwarn):
    monkeypatch.setattr(fonts, "CJK_FONTS", ())
    run("--eval-only", trainer="ZeroshotCLIP", out="花朵/ZeroshotCLIP")
    assert results_table([str(tmp_path / "花朵")]) == 0
    assert capsys.readouterr().err.count("Note: no installed font has") == 1
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_a_sheet_with_chinese_classes_has_one_note(tmp_path, capsys, monkeypatch, recwarn):
    monkeypatch.setattr(fonts, "CJK_FONTS", ())
    image, sheet = write_digit(tmp_path / "digit.png"), tmp_path / "sheet.png"
    assert predict.main([str(image), "--classes", "鸟", "鱼", "--backbone", "tiny", "--show", str(sheet)]) == 0
    assert capsys.readouterr().err.count("Note: no installed font has") == 1
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_a_study_runs_under_the_simulation(tmp_path, digits_root):
    """Sweep with two processes, table, resume and predictions; the folder of all has a Chinese name."""
    home = tmp_path / "张三"
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"} if IS_WINDOWS else simulated_environment(home)
    study, image = home / "输出", write_digit(home / "图片/数字 3.png")
    sweep = home / "sweep.yaml"
    sweep.parent.mkdir(exist_ok=True)
    sweep.write_text(
        f"output: {json.dumps(str(study))}\nthreads: 1\n"
        "arguments: --dataset-config-file configs/datasets/digits.yaml --config-file configs/trainers/CoOp/tiny.yaml\n"
        "runs:\n"
        "  - {folder: ZeroshotCLIP, arguments: --trainer ZeroshotCLIP --seed 1 --eval-only DATASET.NUM_SHOTS 0}\n"
        "  - {folder: 'CoOp/{shots}', arguments: '--trainer CoOp --seed 1 DATASET.NUM_SHOTS {shots}', "
        "grid: {shots: [1]}}\n",
        encoding="utf-8",
    )
    data = ("--root", digits_root, "--dataset-config-file", "configs/datasets/digits.yaml")
    coop = (*data, "--config-file", "configs/trainers/CoOp/tiny.yaml", "--trainer", "CoOp", "--seed", 1)
    commands = {
        "tools.sweep": (sweep, "--root", digits_root, "--jobs", 2, "OPTIM.MAX_EPOCH", 1),
        "tools.results_table": (study,),
        "train": (*coop, "--output-dir", study / "CoOp/1", "DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 1),
        "predict": (image, "--model-dir", study / "CoOp/1", "--show", home / "sheet.png"),
    }
    # In one process, since that takes long to start under the simulation.
    program = "import sys; from importlib import import_module\nfor name, *arguments in "
    program += f"{[[name, *map(str, arguments)] for name, arguments in commands.items()]!a}:\n"
    program += "    print('======', name)\n    if code := import_module(name).main(arguments): sys.exit(code)"
    result = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, env=environment, capture_output=True)
    assert result.returncode == 0, result.stderr.decode("gbk", "replace")
    parts = result.stdout.decode("utf-8" if os.name == "nt" else "gbk").split("====== ")
    output = dict(zip(("sweep", "table", "resume", "predict"), parts[1:], strict=True))
    assert "| CoOp" in output["table"]
    assert "输出" in output["table"]
    assert "Resuming" in output["resume"] or "resume" in output["resume"].lower()
    assert len([*(study / "CoOp/1").glob("result.json-*")]) == 1
    assert (home / "sheet.png").is_file()
