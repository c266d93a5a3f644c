"""Fixtures: small data sets in the real layouts, and runs by the real ``train.main``."""

from __future__ import annotations

import hashlib
import re
import shutil
import signal
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train
from dassl.utils import read_json
from datasets.digits import write_digits
from tests.common import IS_WINDOWS, REPOSITORY, WNIDS
from tests.windows import simulation
from vlm.images.encoder import OpenVINOEncoder


@dataclass
class Run:
    """A run that ended: its exit code, its output directory, and what it wrote to stderr."""

    code: int
    folder: Path
    error: str

    @property
    def log(self) -> str:
        """The text of log.txt."""
        return (self.folder / "log.txt").read_text(encoding="utf-8")

    @property
    def record(self) -> dict:
        """The content of result.json."""
        return read_json(self.folder / "result.json")

    @property
    def accuracy(self) -> str:
        """The last accuracy in log.txt, in percent with two decimals."""
        return re.findall(r"^\* accuracy: (.*)%$", self.log, re.MULTILINE)[-1]

    def checkpoint(self, epoch: int) -> Path:
        """Return the path of the prompt learner's checkpoint after ``epoch`` epochs."""
        return self.folder / "prompt_learner" / f"model.pth.tar-{epoch}"


@pytest.fixture(scope="session", autouse=True)
def _restore_sigint():
    """Restore Python's handler of SIGINT, which a shell sets to "ignore" for a program in the background of a script.

    Programs that tests start inherit the setting, and would ignore the Ctrl-C of a test.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _restore_threads():
    """Restore PyTorch's number of threads after a test, since a sweep in this process changes it."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _retries_without_pauses(monkeypatch):
    """Let downloads try again at once."""
    monkeypatch.setattr("dassl.data.downloads.RETRY_PAUSES", (0, 0, 0))


@pytest.fixture(scope="session", autouse=True)
def _cache_folder(tmp_path_factory):
    """Set the user's cache folder to one of the tests, for this process and the scripts that it starts."""
    patch = pytest.MonkeyPatch()
    for name in ("XDG_CACHE_HOME", "WIN_PD_OVERRIDE_LOCAL_APPDATA"):  # the second: of platformdirs, on Windows
        patch.setenv(name, str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="session", autouse=True)
def _compile_each_image_encoder_once():
    """Let encoders with equal layers, weights and settings share what OpenVINO compiled, since that takes seconds."""
    compiled, compile_encoder = {}, OpenVINOEncoder._requests.func

    def get_requests(encoder):
        digest = hashlib.sha256()
        for tensor in encoder.visual.state_dict().values():
            digest.update(tensor.contiguous().numpy())
        settings = encoder.precision, encoder.size, encoder.block, torch.get_num_threads()
        key = (repr(encoder.visual), digest.hexdigest(), *settings)
        if key not in compiled:
            compiled[key] = compile_encoder(encoder)
        return compiled[key]

    requests = cached_property(get_requests)
    requests.__set_name__(OpenVINOEncoder, "_requests")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OpenVINOEncoder, "_requests", requests)
        yield


@pytest.fixture(scope="session")
def digits_root(tmp_path_factory) -> Path:
    """The root of a data folder with the digits."""
    root = tmp_path_factory.mktemp("data")
    write_digits(root / "digits")
    return root


@pytest.fixture
def digits_copy(digits_root, tmp_path) -> Path:
    """The root of a copy of the digits that a test may change."""
    shutil.copytree(digits_root / "digits", tmp_path / "copy/digits")
    return tmp_path / "copy"


@pytest.fixture
def run(tmp_path, digits_root, capsys):
    """A function that runs ``train.main`` on the digits with the tiny CLIP; ``arguments`` come last, so they win."""

    def call(*arguments: object, out: str = "run", trainer: str = "CoOp", seed: int = 1) -> Run:
        folder = tmp_path / out
        argv = ["--root", digits_root, "--trainer", trainer, "--seed", seed, "--output-dir", folder]
        argv += ["--dataset-config-file", REPOSITORY / "configs/datasets/digits.yaml"]
        argv += ["--config-file", REPOSITORY / "configs/trainers/CoOp/tiny.yaml"]
        code = train.main([str(a) for a in [*argv, *arguments]])
        return Run(code, folder, capsys.readouterr().err)

    return call


@pytest.fixture
def windows(monkeypatch):
    """Let this process refuse what Windows refuses, such as to replace an open file."""
    if not IS_WINDOWS:
        if sys.version_info < (3, 11):
            pytest.skip("the simulation of Windows needs Python 3.11: pathlib of 3.10 keeps functions of its own")
        for module, name, value in simulation.REPLACEMENTS:
            monkeypatch.setattr(module, name, value)


@pytest.fixture
def imagenet_root(tmp_path) -> Path:
    """The root of a data folder with noise in ImageNet's layout: 3 classes, each with 5 training and 2 test images."""
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
    """A function that calls ``main`` of the module that the test file imports as ``tool``.

    It returns the exit code, the output and the errors.
    """

    def call_main(*arguments):
        capsys.readouterr()
        code = request.module.tool.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call_main


@pytest.fixture
def figures(monkeypatch):
    """Return a list to which matplotlib's figures go when they are closed; they are closed after the test."""
    from matplotlib import pyplot as plt

    drawn: list = []
    monkeypatch.setattr(plt, "close", drawn.append)
    yield drawn
    monkeypatch.undo()
    plt.close("all")
