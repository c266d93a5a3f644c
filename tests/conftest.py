"""Shared pieces: small data sets of the real layout, and runs through the real ``train.main``."""

from __future__ import annotations

import json
import re
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train
from datasets.digits import write_digits
from tests.common import REPOSITORY, WNIDS


@dataclass
class Run:
    """What a call of ``train.main`` left."""

    code: int
    folder: Path
    error: str

    @property
    def log(self) -> str:
        return (self.folder / "log.txt").read_text()

    @property
    def record(self) -> dict:
        return json.loads((self.folder / "result.json").read_text())

    @property
    def accuracy(self) -> str:
        return re.findall(r"^\* accuracy: (.*)%$", self.log, re.MULTILINE)[-1]

    def checkpoint(self, epoch: int) -> Path:
        return self.folder / "prompt_learner" / f"model.pth.tar-{epoch}"


@pytest.fixture(scope="session", autouse=True)
def _sigint():
    """Ctrl-C stops what the tests start, even where the tests themselves run in the background of a script: there, the
    shell has them ignore SIGINT, and the programs they start would, too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _as_many_threads():
    """A sweep in this process sets their number; tests that run beside each other have one core each."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Features go to a folder of the tests, not to the user's cache; scripts that the tests start use it too."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def digits_root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_digits(root / "digits")
    return root


@pytest.fixture
def run(tmp_path, digits_root, capsys):
    """Call ``train.main`` on the digits with the tiny CLIP; arguments are added at the end, so they win."""

    def call(*arguments: object, out: str = "run", trainer: str = "CoOp", seed: int = 1) -> Run:
        folder = tmp_path / out
        argv = ["--root", digits_root, "--trainer", trainer, "--seed", seed, "--output-dir", folder]
        argv += ["--dataset-config-file", REPOSITORY / "configs/datasets/digits.yaml"]
        argv += ["--config-file", REPOSITORY / "configs/trainers/CoOp/tiny.yaml"]
        code = train.main([str(a) for a in [*argv, *arguments]])
        return Run(code, folder, capsys.readouterr().err)

    return call


@pytest.fixture
def imagenet_root(tmp_path) -> Path:
    """Three ImageNet classes of noise pictures: five training and two test images each."""
    root = tmp_path / "data"
    base = root / "imagenet"
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 2)):
        for wnid in WNIDS:
            folder = base / "images" / split / wnid
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(folder / f"{wnid}_{i}.JPEG")
    (base / "classnames.txt").write_text("".join(f"{wnid} {name}\n" for wnid, name in WNIDS.items()))
    return root


@pytest.fixture
def call(request, capsys):
    """Call ``main`` of what the tests' file imports as ``tool``; returns its exit code, output and errors."""

    def run_it(*arguments):
        capsys.readouterr()
        code = request.module.tool.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run_it
