"""Trainers on the digits, and runs of CLIPFineTune on pictures of two digits."""

from __future__ import annotations

import pytest

import train
from dassl.engine import build_trainer
from tests.common import REPOSITORY
from tests.conftest import Run
from tools import digit_pairs

CONFIGS = REPOSITORY / "configs/trainers/CLIPFineTune"


@pytest.fixture
def digits_trainer(digits_root, tmp_path):
    """A function that builds a method's trainer on the digits, of one shot."""

    def build(method: str, *options: object):
        argv = ["--root", digits_root, "--trainer", method, "--seed", 1, "--output-dir", tmp_path]
        argv += ["--dataset-config-file", REPOSITORY / "configs/datasets/digits.yaml"]
        argv += ["--config-file", REPOSITORY / f"configs/trainers/{method}/tiny.yaml", "DATASET.NUM_SHOTS", 1, *options]
        return build_trainer(train.setup_cfg(train.parse_args([str(word) for word in argv])))

    return build


@pytest.fixture(scope="session")
def pairs_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    assert digit_pairs.main(["--root", str(root), "--pairs", "64"]) == 0
    return root


@pytest.fixture
def arguments(pairs_root, tmp_path):
    """The arguments of a run in ``out``; more are added at the end, so they win."""

    def of(*more: object, out: str = "run", config: str = "tiny") -> list[str]:
        flags = [item for item in more if str(item).startswith("--")]
        start = max((more.index(flag) + 2 for flag in flags), default=0)
        argv = ["--root", pairs_root, "--seed", 1, "--trainer", "CLIPFineTune", "--output-dir", tmp_path / out]
        argv += ["--dataset-config-file", REPOSITORY / "configs/datasets/captions.yaml"]
        argv += ["--config-file", CONFIGS / f"{config}.yaml", *more[:start], "DATASET.FOLDER", "digit_pairs"]
        return [str(word) for word in [*argv, *more[start:]]]

    return of


@pytest.fixture
def tune(arguments, tmp_path, capsys):
    def call(*more: object, out: str = "run", config: str = "tiny") -> Run:
        code = train.main(arguments(*more, out=out, config=config))
        return Run(code, tmp_path / out, capsys.readouterr().err)

    return call


@pytest.fixture
def trainer_of(arguments):
    def build(*more: object, config: str = "tiny"):
        return build_trainer(train.setup_cfg(train.parse_args(arguments(*more, config=config))))

    return build
