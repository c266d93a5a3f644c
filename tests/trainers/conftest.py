"""Fixtures: trainers on the digits, and trainers and runs of CLIPFineTune on images of digit pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import predict
import train
from dassl.engine import build_trainer
from datasets.digits import DIGIT_NAMES
from tests.common import REPOSITORY
from tests.conftest import Run
from tools import digit_pairs
from vlm.openai import CLIP

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


@pytest.fixture(scope="session", params=["ViT", "ResNet"])
def small_weights(request, tmp_path_factory):
    """Return the file of a CLIP with random weights: three layers of text, and a small image encoder of each kind."""
    torch.manual_seed(0)
    vision = (3, 128, 8) if request.param == "ViT" else ((1, 1, 1, 1), 8, None)
    clip = CLIP(32, 64, *vision, 77, 49408, 128, 2, 3)
    for name, parameter in clip.named_parameters():
        if name.endswith("bn3.weight"):  # zero at first, so that a residual branch would not count
            torch.nn.init.constant_(parameter, 0.5)
    path = tmp_path_factory.mktemp("weights") / f"{request.param}.safetensors"
    save_file({name: value.contiguous() for name, value in clip.state_dict().items()}, path)
    return path


@pytest.fixture
def small_trainer(digits_trainer, small_weights):
    """Return a function that builds a trainer with the small CLIP, from its name and config options."""
    options = ("MODEL.BACKBONE.WEIGHTS", small_weights, "INPUT.SIZE", (64, 64))
    return lambda method, *others: digits_trainer(method, *options, *others)


@pytest.fixture
def predict_digits(capsys, digits_root):
    """Return a function from a run to the accuracy (%, two decimals) of ``predict.py --model-dir`` on the digits."""

    def call(run: Run) -> str:
        capsys.readouterr()
        folder = digits_root / "digits/images/val"
        assert predict.main([str(folder), "--model-dir", str(run.folder), "--json", "--top-k", "1"]) == 0
        records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        names = [DIGIT_NAMES[int(Path(record["image"]).parent.name)] for record in records]
        correct = [record["predictions"][0]["class"] == name for record, name in zip(records, names, strict=True)]
        return f"{100 * sum(correct) / len(correct):.2f}"

    return call
