"""The shell scripts, as a person calls them."""

import os
import shutil
import subprocess

import pytest

from tests.common import REPOSITORY

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture
def bash(tmp_path, digits_root):
    def call(script, *arguments, **environment):
        settings = {"DATA": str(digits_root), "OUTPUT": str(tmp_path / "out put"), "EPOCHS": "1", "SHOTS": "1 2"}
        return subprocess.run(
            ["bash", str(REPOSITORY / "scripts" / script), *arguments],
            env={**os.environ, **settings, **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    return call


def test_quickstart_makes_the_table_and_is_quick_the_second_time(bash, tmp_path):
    first = bash("quickstart.sh")
    assert first.returncode == 0, first.stderr
    study = tmp_path / "out put" / "digits"
    assert len(list(study.rglob("log.txt"))) == 5  # zero-shot, and two shots of two settings
    assert {"results.md", "results.csv", "results.png"} <= {p.name for p in study.iterdir()}
    assert "| CoOp (Efficient)" in first.stdout
    written = {p: p.stat().st_mtime_ns for p in study.rglob("log.txt")}
    (study / "ZeroshotCLIP" / "result.json").unlink()  # as if that run had crashed
    second = bash("quickstart.sh")
    assert second.returncode == 0, second.stderr
    again = {p for p in written if p.stat().st_mtime_ns != written[p]}
    assert again == {study / "ZeroshotCLIP" / "log.txt"}


def test_quickstart_repeats_cells_over_seeds_and_reports_a_failure(bash, tmp_path):
    result = bash("quickstart.sh", SEEDS="1 2", SHOTS="1")
    assert result.returncode == 0, result.stderr
    assert " ± " in (tmp_path / "out put/digits/results.md").read_text()
    failed = bash("quickstart.sh", SHOTS="x 1", SEEDS="3")
    assert failed.returncode == 1
    assert "FAILED" in failed.stdout
    assert "DATASET.NUM_SHOTS" in failed.stdout


def test_main_and_eval_and_zeroshot(bash, tmp_path):
    """Upstream's arguments; runs that are finished are skipped."""
    out = tmp_path / "out put"
    main = ("coop/main.sh", "digits", "tiny", "end", "4", "1", "False")
    result = bash(*main, SEEDS="1")
    assert result.returncode == 0, result.stderr
    run = out / "digits/CoOp/tiny_1shots/nctx4_cscFalse_ctpend/seed1"
    assert "* accuracy: " in (run / "log.txt").read_text()
    assert "finished already" in bash(*main, SEEDS="1").stdout
    result = bash("coop/zeroshot.sh", "digits", "tiny")
    assert result.returncode == 0, result.stderr
    assert (out / "digits/ZeroshotCLIP/tiny/result.json").is_file()
    (out / "imagenet").symlink_to(out / "digits")
    result = bash("coop/eval.sh", "digits", "tiny", SEEDS="1", SHOTS="1", NCTX="4")
    assert result.returncode == 0, result.stderr
    assert (out / "evaluation/CoOp/tiny_1shots/nctx4_cscFalse_ctpend/digits/seed1/result.json").is_file()
    assert bash("coop/main.sh", "digits").returncode == 2
