"""A repository of the CoOp family (in repository/, written for these tests) runs against the installed package."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.common import REPOSITORY, assert_same_tensors

FLAGS = "--root data --seed 1 --dataset-config-file configs/colors.yaml --config-file configs/ep3.yaml"
FLAGS += " --trainer MyCoOp --output-dir"
PROGRAM = """
import json, runpy, sys
import dassl, trainers, datasets, clip, vlm.clip.load
json.dump([module.__path__[0] for module in (dassl, trainers, datasets, clip)], open("modules.json", "w"))
assert vlm.clip.load.CLIP.__module__ == "vlm._openai_clip.model"
stdout = sys.stdout
for arguments in json.loads(sys.argv[1]):
    sys.stdout, sys.argv = stdout, ["train.py", *arguments]
    runpy.run_path("train.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The folder into which ``pip install .`` puts this repository, without the packages that it needs."""
    folder = tmp_path_factory.mktemp("install")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for name in filter(lambda name: (REPOSITORY / name).is_file(), files.splitlines()):
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, folder / "source" / name)
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*command, "--target", folder / "site", folder / "source"], check=True)
    return folder / "site"


@pytest.fixture(scope="module")
def foreign(site, tmp_path_factory) -> Path:
    """The third-party repository after a run that was stopped, and its resume and further runs in another process."""
    folder = tmp_path_factory.mktemp("foreign") / "repository"
    shutil.copytree(Path(__file__).parent / "repository", folder, ignore=shutil.ignore_patterns("__pycache__"))
    rng = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "pale_blue")):
        (folder / "data/colors/images" / name).mkdir(parents=True)
        for i in range(16):
            image = rng.integers(0, 120, (8, 8, 3), dtype=np.uint8)
            image[..., channel] += 120
            Image.fromarray(image).save(folder / "data/colors/images" / name / f"{i:02}.png")
    settings = "TEST.PER_CLASS_RESULT True TEST.FINAL_MODEL best_val"
    assert train(folder, site, f"stopped {settings}", STOP_AFTER="2") == 1
    shutil.copy(folder / "stopped/log.txt", folder / "stopped.txt")
    evaluation = "evaluation --eval-only --model-dir unbroken"
    assert train(folder, site, f"stopped {settings}", f"unbroken {settings}", evaluation) == 0
    return folder


def train(folder: Path, site: Path, *commands: str, **environment: str) -> int:
    """Run its train.py with each command, in one process since that takes long to start; return the exit code."""
    command = [sys.executable, "-c", PROGRAM, json.dumps([f"{FLAGS} {command}".split() for command in commands])]
    environment = {**os.environ, "PYTHONPATH": str(site), **environment}
    return subprocess.run(command, cwd=folder, env=environment).returncode


def rates(log: str) -> list[tuple[str, str]]:
    """Return the epoch and the learning rate of each training line."""
    return re.findall(r"^epoch \[(.*?)\] .* lr (\S+) eta", log, re.MULTILINE)


def accuracy(log: str) -> str:
    """Return the last accuracy of a log, as the field's parsers do."""
    return re.findall(r"\* accuracy: ([\.\deE+-]+)%", log)[-1]


def test_an_installed_dassl_does_not_hide_the_repositorys_packages(site, foreign):
    """And our code does not import the repository's package ``clip``."""
    installed = {path.name for path in site.iterdir()}
    assert {name for name in installed if not name.endswith(".dist-info")} == {"dassl", "vlm"}
    dassl_path, *paths = json.loads((foreign / "modules.json").read_text())
    assert dassl_path == str(site / "dassl")
    assert paths == [str(foreign / name) for name in ("trainers", "datasets", "clip")]


def test_a_prompt_learner_trains_and_is_evaluated_again(foreign):
    log, evaluation = ((foreign / out / "log.txt").read_text() for out in ("unbroken", "evaluation"))
    assert float(accuracy(log)) > 60  # chance is 33
    assert re.search(r"\* class: 1 \(pale_blue\)\ttotal: 4\tcorrect: \d\tacc: \d+\.\d\d%", log)
    assert rates(log)[::6] == [("1/3", "1.0000e-05"), ("2/3", "2.0000e-01"), ("3/3", "1.5000e-01")]
    learner = foreign / "unbroken/prompt_learner"
    checkpoints = {"model-best.pth.tar", *(f"model.pth.tar-{epoch}" for epoch in (1, 2, 3))}
    assert {path.name for path in learner.iterdir()} == {"checkpoint", *checkpoints}
    saved = torch.load(learner / "model.pth.tar-3", weights_only=True)
    assert set(saved["state_dict"]) == {"ctx", "token_prefix", "token_suffix"}
    assert 'from "unbroken/prompt_learner/model-best.pth.tar"' in evaluation
    assert accuracy(evaluation) == accuracy(log)


def test_a_stopped_and_resumed_run_ends_as_an_unbroken_one(foreign):
    files = ("unbroken/log.txt", "stopped.txt", "stopped/log.txt")
    unbroken, stopped, resumed = ((foreign / file).read_text() for file in files)
    assert rates(stopped) == rates(unbroken)[:12]
    assert "Loading preprocessed few-shot data" in resumed
    assert rates(resumed) == rates(unbroken)[12:]
    losses = [re.findall(r"loss.*?acc \S+", log) for log in (unbroken, resumed)]
    assert losses[1] == losses[0][12:]
    for file in ("model.pth.tar-3", "model-best.pth.tar"):
        assert_same_tensors(*(foreign / out / "prompt_learner" / file for out in ("unbroken", "stopped")))
