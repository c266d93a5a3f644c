"""Fixtures: trainers on the digits, and trainers and runs of CLIPFineTune on images of digit pairs."""

from __future__ import annotations

from pathlib import Path

import pytest

import train
from dassl.engine import build_trainer
from tests.common import REPOSITORY
from tests.conftest import Run
from tools import digit_pairs

CONFIGS = REPOSITORY / "configs/trainers/CLIPFineTune"


@pytest.fixture
def build(tmp_path):
    """Return a function that builds a trainer from its name and command-line arguments, which override the seed 1."""

    def call(method: str, *arguments: object):
        argv = ["--trainer", method, "--seed", 1, "--output-dir", tmp_path, *arguments]
        return build_trainer(train.setup_cfg(train.parse_args([str(argument) for argument in argv])))

    return call


@pytest.fixture
def digits_trainer(build, digits_root):
    """Return a function that builds a trainer on the digits with 1 shot, from its name and config options."""

    def call(method: str, *options: object):
        flags = ["--root", digits_root, "--dataset-config-file", REPOSITORY / "configs/datasets/digits.yaml"]
        flags += ["--config-file", REPOSITORY / f"configs/trainers/{method}/tiny.yaml"]
        return build(method, *flags, "DATASET.NUM_SHOTS", 1, *options)

    return call


@pytest.fixture(scope="session")
def pairs_root(tmp_path_factory):
    """Return the data root with 64 captioned images of digit pairs and their config ``pairs.yaml``."""
    root = tmp_path_factory.mktemp("pairs")
    assert digit_pairs.main(["--root", str(root), "--pairs", "64"]) == 0
    example = (REPOSITORY / "configs/datasets/captions.yaml").read_text(encoding="utf-8")
    (root / "pairs.yaml").write_text(example.replace('FOLDER: ""', 'FOLDER: "digit_pairs"'), encoding="utf-8")
    return root


def pairs_arguments(root: Path, config: str) -> list[object]:
    """Return the arguments of a run of CLIPFineTune with the config file ``config`` on the digit pairs."""
    configs = ["--dataset-config-file", root / "pairs.yaml", "--config-file", CONFIGS / f"{config}.yaml"]
    return ["--root", root, *configs]


@pytest.fixture
def fine_tune(run, pairs_root):
    """Return a function that runs CLIPFineTune on the digit pairs."""

    def call(*arguments: object, out: str = "run", config: str = "tiny") -> Run:
        return run(*pairs_arguments(pairs_root, config), *arguments, trainer="CLIPFineTune", out=out)

    return call


@pytest.fixture
def pairs_trainer(build, pairs_root):
    """Return a function that builds the trainer CLIPFineTune on the digit pairs, from config options."""

    def call(*options: object, config: str = "tiny"):
        return build("CLIPFineTune", *pairs_arguments(pairs_root, config), *options)

    return call
