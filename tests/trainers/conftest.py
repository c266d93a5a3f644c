"""Trainers on the digits, and runs of CLIPFineTune on pictures of two digits."""

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
    """A function that builds a method's trainer; arguments are added at the end, so they win."""

    def call(method: str, *arguments: object):
        argv = ["--trainer", method, "--seed", 1, "--output-dir", tmp_path, *arguments]
        return build_trainer(train.setup_cfg(train.parse_args([str(word) for word in argv])))

    return call


@pytest.fixture
def digits_trainer(build, digits_root):
    """A function that builds a method's trainer on the digits, of one shot."""

    def call(method: str, *options: object):
        flags = ["--root", digits_root, "--dataset-config-file", REPOSITORY / "configs/datasets/digits.yaml"]
        flags += ["--config-file", REPOSITORY / f"configs/trainers/{method}/tiny.yaml"]
        return build(method, *flags, "DATASET.NUM_SHOTS", 1, *options)

    return call


@pytest.fixture(scope="session")
def pairs_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    assert digit_pairs.main(["--root", str(root), "--pairs", "64"]) == 0
    example = (REPOSITORY / "configs/datasets/captions.yaml").read_text()
    (root / "pairs.yaml").write_text(example.replace('FOLDER: ""', 'FOLDER: "digit_pairs"'))
    return root


def pairs(root: Path, config: str) -> list[object]:
    """The flags of a run of CLIPFineTune on them."""
    configs = ["--dataset-config-file", root / "pairs.yaml", "--config-file", CONFIGS / f"{config}.yaml"]
    return ["--root", root, *configs]


@pytest.fixture
def tune(run, pairs_root):
    def call(*arguments: object, out: str = "run", config: str = "tiny") -> Run:
        return run(*pairs(pairs_root, config), *arguments, trainer="CLIPFineTune", out=out)

    return call


@pytest.fixture
def trainer_of(build, pairs_root):
    def call(*options: object, config: str = "tiny"):
        return build("CLIPFineTune", *pairs(pairs_root, config), *options)

    return call
