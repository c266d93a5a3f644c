"""A repository of the CoOp family (in repository/, written for these tests) runs against the installed package."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.common import REPOSITORY, assert_same_tensors

SOURCE = Path(__file__).parent / "repository"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Where ``pip install .`` puts the files that git knows, without the packages they need."""
    folder = tmp_path_factory.mktemp("install")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for name in filter(lambda name: (REPOSITORY / name).is_file(), files.splitlines()):
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, folder / "source" / name)
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*command, "--target", folder / "site", folder / "source"], check=True)
    return folder / "site"


@dataclass
class Foreign:
    """The foreign repository in a folder of its own."""

    folder: Path
    environment: dict

    def python(self, *arguments: object, code: int = 0) -> str:
        """Run Python there; returns what it prints."""
        command = [sys.executable, *map(str, arguments)]
        result = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        assert result.returncode == code, result.stderr
        return result.stdout

    def train(self, trainer: str, out: str, *options: object, code: int = 0) -> str:
        """Run its train.py; returns the log."""
        files = ["--dataset-config-file", "configs/colors.yaml", "--config-file", "configs/ep3.yaml"]
        flags = ["--root", "data", "--seed", 1, "--trainer", trainer, "--output-dir", f"output/{out}", *files]
        self.python("train.py", *flags, *options, code=code)
        return (self.folder / "output" / out / "log.txt").read_text()


@pytest.fixture(scope="module")
def foreign(site, tmp_path_factory) -> Foreign:
    folder = tmp_path_factory.mktemp("foreign") / "repository"
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    rng = np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "pale_blue")):
        (folder / "data/colors/images" / name).mkdir(parents=True)
        for i in range(16):
            image = rng.integers(0, 120, (8, 8, 3), dtype=np.uint8)
            image[..., channel] += 120
            Image.fromarray(image).save(folder / "data/colors/images" / name / f"{i:02}.png")
    return Foreign(folder, {**os.environ, "PYTHONPATH": str(site)})


def rates(log: str) -> list[str]:
    return re.findall(r"^epoch \[(.*?)\] .* lr (\S+) eta", log, re.MULTILINE)


def accuracy(log: str) -> str:
    return re.findall(r"\* accuracy: ([\.\deE+-]+)%", log)[-1]


def test_an_install_shadows_nothing_of_theirs(site, foreign):
    installed = {path.name for path in site.iterdir()}
    assert {name for name in installed if not name.endswith(".dist-info")} == {"dassl", "vlm"}
    printed = foreign.python("-c", "import dassl, trainers, datasets, clip; print(dassl, trainers, datasets, clip)")
    assert str(site / "dassl") in printed
    assert printed.count(str(foreign.folder)) == 3


def test_their_clip_does_not_come_in_place_of_ours(foreign):
    print_module = "import vlm.clip.load, clip; print(vlm.clip.load.CLIP.__module__, clip.__file__)"
    module, file = foreign.python("-c", print_module).split()
    assert module == "vlm._openai_clip.model"
    assert file == str(foreign.folder / "clip/__init__.py")


def test_their_sources_use_dassl_alone():
    sources = list(SOURCE.rglob("*.py"))
    assert len(sources) > 8
    for path in sources:
        assert not re.search(r"\bvlm\b|trainers\.(coop|zsclip|clip_trainer)|class_folders", path.read_text()), path


def test_a_prompt_learner_trains_and_is_evaluated_again(foreign):
    log = foreign.train("MyCoOp", "mycoop", "TRAINER.MYCOOP.PREC", "amp", "TEST.PER_CLASS_RESULT", "True")
    assert float(accuracy(log)) > 60  # chance is 33
    assert re.search(r"\* class: 1 \(pale_blue\)\ttotal: 4\tcorrect: \d\tacc: \d+\.\d\d%", log)
    assert rates(log)[::6] == [("1/3", "1.0000e-05"), ("2/3", "2.0000e-01"), ("3/3", "1.5000e-01")]
    learner = foreign.folder / "output/mycoop/prompt_learner"
    assert {p.name for p in learner.iterdir()} == {"checkpoint", *(f"model.pth.tar-{n}" for n in (1, 2, 3))}
    saved = torch.load(learner / "model.pth.tar-3", weights_only=True)
    assert set(saved["state_dict"]) == {"ctx", "token_prefix", "token_suffix"}
    again = foreign.train("MyCoOp", "evaluated", "--eval-only", "--model-dir", "output/mycoop", "--load-epoch", 3)
    assert "(epoch = 3)" in again
    assert accuracy(again) == accuracy(log)


def test_a_stopped_run_of_several_models_ends_as_if_never_stopped(foreign):
    settings = ("TEST.FINAL_MODEL", "best_val")
    whole = foreign.train("TwoHeads", "twoheads/seed1", *settings)
    assert "Training adapter, head, teacher from epoch 1 of 3" in whole
    foreign.environment["STOP_AFTER"] = "2"
    stopped = foreign.train("TwoHeads", "twoheads/seed2", *settings, code=1)
    del foreign.environment["STOP_AFTER"]
    assert rates(stopped) == rates(whole)[:12]
    resumed = foreign.train("TwoHeads", "twoheads/seed2", *settings)
    assert "Loading preprocessed few-shot data" in resumed
    assert rates(resumed) == rates(whole)[12:]
    losses = [re.findall(r"loss.*?acc \S+", log) for log in (whole, resumed)]
    assert losses[1] == losses[0][12:]
    for model in ("adapter", "head", "teacher"):
        for file in ("model.pth.tar-3", "model-best.pth.tar"):
            one, other = (foreign.folder / f"output/twoheads/seed{n}" / model / file for n in (1, 2))
            assert_same_tensors(one, other)

    printed = foreign.python("parse_test_res.py", "output/twoheads")
    assert printed.count("file: output/twoheads/seed") == 2
    assert printed.endswith(f"* accuracy: {float(accuracy(whole)):.2f}% +- 0.00%\n")
    assert foreign.python("parse_test_res.py", "output/twoheads", "--end-signal", "Finished training") == printed
