"""Before a sweep's first run: which runs are finished, what every run would fail of, and how long all take."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml
from PIL import Image

from studies.estimate import format_duration
from studies.grid import Trial
from studies.progress import ProgressPrinter, read_status
from tests.common import REPOSITORY, WNIDS
from tools.sweep import main
from vlm.tiny.weights import load_tiny

SETTINGS = (
    f"--dataset-config-file {REPOSITORY}/configs/datasets/imagenet.yaml "
    f"--config-file {REPOSITORY}/configs/trainers/CoOp/tiny.yaml"
)
ZERO_SHOT = {"folder": "zs", "arguments": f"--trainer ZeroshotCLIP --eval-only --seed 1 {SETTINGS}"}
COOP = {
    "folder": "CoOp/{shots}shots/seed{seed}",
    "arguments": f"--trainer CoOp --seed {{seed}} {SETTINGS} OPTIM.MAX_EPOCH 3 DATASET.NUM_SHOTS {{shots}}",
    "grid": {"seed": [1, 2], "shots": [1]},
}


@pytest.fixture
def sweep(tmp_path, imagenet_root, capsys):
    """A function that runs a sweep of ``runs`` with options, one run at a time; it returns code, output, errors."""

    def call(*options: object, runs=(ZERO_SHOT, COOP)):
        path = tmp_path / "sweep.yaml"
        path.write_text(
            yaml.safe_dump({"output": str(tmp_path / "out"), "threads": 1, "runs": list(runs)}), encoding="utf-8"
        )
        capsys.readouterr()
        code = main([str(path), "--root", str(imagenet_root), "--jobs", "1", *map(str, options)])
        return code, *capsys.readouterr()

    return call


def test_a_run_of_other_test_images_runs_again(sweep, imagenet_root):
    assert sweep()[:2][0] == 0
    assert "3 runs, 3 finished already" in sweep()[1]
    next((imagenet_root / "imagenet/images/val").glob("*/*")).unlink()
    code, output, _ = sweep()
    assert code == 0
    assert "3 runs, 0 finished already" in output
    assert re.search(r"run again: \S+/zs and 2 more: other test images than in its record\n", output)
    assert "3 runs, 3 finished already" in sweep()[1]


def test_a_run_of_other_training_images_is_refused_where_it_would_resume(sweep, imagenet_root, tmp_path):
    assert sweep(runs=[COOP])[0] == 0
    record = (tmp_path / "out/CoOp/1shots/seed1/result.json").read_bytes()
    added = next((imagenet_root / "imagenet/images/train").glob("*/*"))
    shutil.copy(added, added.with_name("added.JPEG"))
    code, _, error = sweep(runs=[COOP])
    assert code == 2
    assert error.count("other training images than in its record") == 1
    assert (tmp_path / "out/CoOp/1shots/seed1/result.json").read_bytes() == record
    assert sweep("--output-dir", tmp_path / "other", runs=[COOP])[0] == 0


def test_a_run_of_other_weights_runs_again(sweep, tmp_path, monkeypatch):
    from safetensors.torch import save_file

    path = tmp_path / "clip.safetensors"
    weights = {key: value.contiguous() for key, value in load_tiny().items()}
    save_file(weights, path)
    options, stat = ("MODEL.BACKBONE.WEIGHTS", path), path.stat()
    assert sweep(*options, runs=[ZERO_SHOT])[0] == 0
    assert "1 runs, 1 finished" in sweep(*options, runs=[ZERO_SHOT])[1]
    weights["text_projection"] = -weights["text_projection"]
    save_file(weights, path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a copy that keeps times
    monkeypatch.setattr("vlm.clip.load._cached_clip", None)  # as in another process
    assert "other weights than in its record" in sweep(*options, runs=[ZERO_SHOT])[1]
    path.unlink()
    code, output, error = sweep(*options, runs=[ZERO_SHOT])  # nothing is left to compare with
    assert (code, "1 runs, 1 finished" in output) == (0, True)
    assert error.count("could not be compared") == 1


def test_skip_finished_runs_again_on_other_test_images(sweep, imagenet_root, tmp_path):
    import train

    assert sweep(runs=[ZERO_SHOT])[0] == 0
    command = json.loads((tmp_path / "out/zs/result.json").read_text(encoding="utf-8"))["command"]
    before = (tmp_path / "out/zs/log.txt").read_text(encoding="utf-8")
    assert train.main(["--skip-finished", *command]) == 0
    assert (tmp_path / "out/zs/log.txt").read_text(encoding="utf-8") == before
    next((imagenet_root / "imagenet/images/val").glob("*/*")).unlink()
    assert train.main(["--skip-finished", *command]) == 0
    assert "* total: 5\n" in (tmp_path / "out/zs/log.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MODEL.BACKBONE.WEIGHTS", "absent.pt"], "no weights file absent.pt"),
        (["MODEL.BACKBONE.WEIGHTS", __file__], "cannot be read as weights"),
        (["DATASET.NAME", "Food101"], "food-101"),
        (["TRAINER.NAME", "Nothing"], 'unknown trainer "Nothing"'),
        (["INPUT.SIZE", "(64, 64)"], "INPUT.SIZE is (64, 64)"),
        (["OPTIM.MAX_EPOCH", "0"], "OPTIM.MAX_EPOCH"),
        (["MODEL.INIT_WEIGHTS", "absent.pt"], "absent.pt"),
    ],
)
def test_a_cause_of_every_runs_failure_is_one_message_before_the_first_run(sweep, tmp_path, options, message):
    code, output, error = sweep(*options, runs=[COOP])
    assert (code, output) == (2, "")
    assert error.startswith(f"error: no run was started, as {tmp_path}/out/CoOp/1shots/seed1 would fail: ")
    assert error.count(message) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("axis", "values"), [("OPTIM.LR", [0.1, "fast"]), ("TRAINER.COOP.CLASS_TOKEN_POSITION", ["end", "sideways"])]
)
def test_a_wrong_value_in_one_point_of_a_grid_stops_the_sweep_and_names_the_run(sweep, tmp_path, axis, values):
    run = {"folder": f"{{{axis}}}", "arguments": f"--trainer CoOp --seed 1 {SETTINGS}", "grid": {axis: values}}
    code, _, error = sweep(runs=[run])
    assert code == 2
    assert f"{tmp_path}/out/{values[1]} would fail" in error
    assert not (tmp_path / "out").exists()


def test_an_unknown_flag_and_a_missing_model_stop_the_sweep(sweep):
    settings = f"--trainer CoOp --seed 1 {SETTINGS}"
    code, _, error = sweep(runs=[{"folder": "a", "arguments": f"{settings} --load-epoch last"}])
    assert code == 2
    assert "--load-epoch: invalid int value: 'last'" in error
    code, _, error = sweep(runs=[{"folder": "a", "arguments": f"{settings} --eval-only --model-dir elsewhere"}])
    assert code == 2
    assert "no model directory or checkpoint elsewhere" in error


def test_checkpoints_of_other_settings_are_one_message(sweep):
    assert sweep(runs=[COOP])[0] == 0
    code, _, error = sweep("OPTIM.LR", "0.5", runs=[COOP])
    assert code == 2
    assert error.count("OPTIM.LR 0.002 -> 0.5") == 1
    assert "FORCE_RESUME True" in error


def test_before_the_first_run_there_is_an_estimate_of_all(sweep, tmp_path):
    """Of 3 classes, 1-shot runs have 1 step an epoch; 6 test images are encoded once, and each seed's shots."""
    output = sweep()[1]
    estimate = r"3 runs, about \d+ s: 6 training steps, 12 images to read or encode \(fewer if "
    assert re.search(rf"3 runs, 0 finished already.*\n{estimate}.*\n\[1/3", output)
    probe = {"folder": "probe", "arguments": f"--trainer LinearProbe --seed 1 {SETTINGS}"}
    assert "\n1 runs; no estimate of their time (1 of LinearProbe)\n" in sweep(runs=[probe])[1]
    shutil.rmtree(tmp_path / "out/zs")
    output = sweep(runs=[ZERO_SHOT, {**probe, "folder": "probe2"}])[1]
    assert "0 training steps, 6 images" in output
    assert "; without 1 of LinearProbe, whose time cannot be estimated" in output


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "10 s"), (31, "40 s"), (121, "3 min"), (7300, "3 h"), (4e6, "1,112 h")]
)
def test_durations_are_rounded_up(seconds, text):
    assert format_duration(seconds) == text


def test_a_list_of_runs_loads_no_pytorch():
    code = "import sys; from tools.sweep import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    command = [sys.executable, "-c", code, "configs/sweeps/digits.yaml", "--list"]
    assert subprocess.run(command, cwd=REPOSITORY, capture_output=True).returncode == 0


# ---- progress of what runs ----


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self) -> bool:
        return True


def write_log(folder: Path, text: str) -> None:
    """Write ``text`` to the log of the run in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.txt").write_text(text, encoding="utf-8")


EPOCH = "epoch [3/50] batch [5/5] time 0.1 (0.1) data 0.0 (0.0) loss 0.1 (0.2) acc 96.8 (95.1) lr 2e-03 eta 0:00:42\n"
ENCODING = "encoding train_x images: 2,048 of 12,000, 03:10 left"


@pytest.mark.parametrize(
    ("log", "status"),
    [
        ("Loading dataset: a: b\n", "has started"),
        (EPOCH, "epoch [3/50] eta 0:00:42"),
        (f"{EPOCH}{ENCODING}\n", ENCODING),
        (f"encoding test images: 1 of 2, 00:10 left\n{EPOCH}", "epoch [3/50] eta 0:00:42"),
        ("x" * 9000 + f"\n{EPOCH}", "epoch [3/50] eta 0:00:42"),
    ],
)
def test_the_status_of_a_run_is_the_last_progress_in_its_log(tmp_path, log, status):
    write_log(tmp_path, log)
    assert read_status(tmp_path) == status


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["file", "terminal"])
def test_the_screen_shows_what_runs_and_results_have_lines_of_their_own(tmp_path, monkeypatch, stream):
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setattr("studies.progress.STATUS_SECONDS", 3600)
    monkeypatch.setattr("studies.progress.REFRESH_SECONDS", 3600)
    a, b, c = (Trial(tmp_path / name) for name in "abc")
    write_log(c.folder, EPOCH)  # of an earlier call
    progress = ProgressPrinter(tmp_path, [])
    with progress.watch([a, b, c]):
        progress.print_status()
        assert stream.getvalue() == ""
        write_log(a.folder, EPOCH)
        write_log(b.folder, "")
        progress.print_status()
        progress.print_result(a, "[1/3] a: 50.00%")
        progress.print_status()
    erased = re.sub(r"[^\r\n]*\r\x1b\[K", "", stream.getvalue())  # as a terminal shows it
    lines = erased.splitlines()
    if stream.isatty():
        assert "a epoch [3/50] eta 0:00:42; b has started" in stream.getvalue()
        assert lines == ["[1/3] a: 50.00%"]
    else:
        assert lines == [
            "running: a epoch [3/50] eta 0:00:42; b has started",
            "[1/3] a: 50.00%",
            "running: b has started",
        ]


def test_a_sweep_prints_what_runs_while_it_runs(sweep, monkeypatch):
    monkeypatch.setattr("studies.progress.STATUS_SECONDS", 0.01)
    printed = threading.Event()
    test = __import__("trainers.zsclip").zsclip.ZeroshotCLIP.test

    def wait_and_test(trainer):
        printed.wait(0.5)
        return test(trainer)

    monkeypatch.setattr("trainers.zsclip.ZeroshotCLIP.test", wait_and_test)
    output = sweep(runs=[ZERO_SHOT])[1]
    assert "running: zs has started\n" in output
    assert re.search(r"^\[1/1, \d+ s\] \S+/zs: [\d.]+%$", output, re.MULTILINE)


def test_a_run_of_replaced_test_images_or_descriptions_runs_again(sweep, imagenet_root, tmp_path):
    descriptions, record = tmp_path / "d.json", tmp_path / "out/zs/result.json"
    descriptions.write_text(json.dumps({name: ["A thing."] for name in WNIDS.values()}), encoding="utf-8")
    trial = {"folder": "zs", "arguments": f"{ZERO_SHOT['arguments']} DATASET.DESCRIPTIONS {descriptions}"}
    assert sweep(runs=[trial])[0] == 0
    old = record.stat().st_mtime - 9
    descriptions.write_text(json.dumps({name: ["One."] for name in WNIDS.values()}), encoding="utf-8")
    os.utime(descriptions, (old, old))  # as after cp -p
    assert "other descriptions than in its record" in sweep(runs=[trial])[1]
    image, *_ = (imagenet_root / "imagenet/images/val").glob("*/*")
    Image.new("RGB", (9, 9)).save(image)
    assert "other test images (sizes of their files) than in its record" in sweep(runs=[trial])[1]
    assert "1 runs, 1 finished already" in sweep(runs=[trial])[1]
