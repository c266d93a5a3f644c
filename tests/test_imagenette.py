"""Tests on real data outside the repository: ImageNette's images, and CLIP's features of Caltech101."""

import json
import shlex
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, load_file, save_file

import train
from tests.common import REPOSITORY, SHARED, needs_shared
from tests.conftest import Run
from tests.fixtures.make_parity import FOLDER, as_files
from tools.prepare_imagenette import main as prepare
from tools.random_weights import build_random_clip
from tools.results_table import main as results_table
from trainers.linear_probe import fit_linear_probe, predict
from trainers.tip_adapter import affinity

pytestmark = needs_shared
CONFIGS = "--dataset-config-file configs/datasets/imagenet.yaml --config-file configs/trainers/CoOp/rn50.yaml"
DATA = "DATASET.SUBSAMPLE_CLASSES all DATALOADER.NUM_WORKERS 0 DATALOADER.TEST.BATCH_SIZE 32"
COMMANDS = {
    "ZeroshotCLIP": f"--seed 1 --trainer ZeroshotCLIP {CONFIGS} --eval-only DATASET.NUM_SHOTS 0 {DATA}",
    "CoOp/rn50_16shots": f"--seed 1 --trainer CoOp {CONFIGS} DATASET.NUM_SHOTS 16 {DATA}",
    "CoOp/rn50_4shots_ctx4": f"--seed 1 --trainer CoOp {CONFIGS} DATASET.NUM_SHOTS 4 {DATA} TRAINER.COOP.N_CTX 4",
}


def prepare_imagenette(root: Path, train_images: int, test_images: int) -> None:
    """Prepare ImageNette in ``root`` by tools/prepare_imagenette.py, with the first images of each class by name."""
    limits, counts = {"train": train_images, "val": test_images}, {}
    with tarfile.open(SHARED / "data/imagenette-224.tar") as source, tarfile.open(root / "subset.tar", "w") as target:
        for member in sorted(filter(tarfile.TarInfo.isfile, source), key=lambda member: member.name):
            folder = Path(member.name).parent
            counts[folder] = counts.get(folder, 0) + 1
            if counts[folder] <= limits[folder.parent.name]:
                target.addfile(member, source.extractfile(member))
    assert prepare(["--root", str(root), "--archive", str(root / "subset.tar")]) == 0


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Return a function that calls ``train.main`` in the repository with the data root ``tmp_path``."""
    monkeypatch.chdir(REPOSITORY)

    def call(command: str, out: str) -> Run:
        folder = tmp_path / "output" / out
        code = train.main(["--root", str(tmp_path), "--output-dir", str(folder), *shlex.split(command)])
        result = Run(code, folder, capsys.readouterr().err)
        assert result.code == 0, result.error
        return result

    return call


def test_the_fixtures_are_those_that_make_parity_computes_from_the_reference():
    """Up to rounding for the tensors: image features of size 5 differ by 4e-6 between two makers of processors."""
    files, command = as_files(SHARED), f"python -m tests.fixtures.make_parity {SHARED}"
    assert files["parity.json"] == (FOLDER / "parity.json").read_bytes(), command
    computed, stored = load(files["parity.safetensors"]), load_file(FOLDER / "parity.safetensors")
    assert computed.keys() == stored.keys()
    for name, tensor in computed.items():
        torch.testing.assert_close(tensor, stored[name], rtol=1e-5, atol=1e-5, msg=f"{name}: {command}")


def test_zero_shot_results_on_imagenette_are_those_of_coops_code(run, tmp_path):
    """On the first twenty test images of each class."""
    prepare_imagenette(tmp_path, 1, 20)
    parity, names = (
        json.loads((FOLDER / "parity.json").read_text(encoding="utf-8")),
        tmp_path / "imagenet/classnames.txt",
    )
    for line, name in zip(names.read_text(encoding="utf-8").splitlines(), parity["classnames"], strict=True):
        names.write_text(names.read_text(encoding="utf-8").replace(line, f"{line.split()[0]} {name}"), encoding="utf-8")
    values = f"INPUT.SIZE (64,64) MODEL.BACKBONE.WEIGHTS {SHARED}/reference/tiny_clip.pt TEST.PER_CLASS_RESULT True"
    for trainer, log in (("ZeroshotCLIP", "zero-shot"), ("ZeroshotCLIP2", "zero-shot, ensemble")):
        lines = run(f"--trainer {trainer} {CONFIGS} --eval-only {values}", trainer).log.splitlines()
        expected = [line for line in parity["logs"][log] if line.startswith(("* total", "* correct", "* class"))]
        assert {line.partition("\tacc")[0] for line in expected} <= {line.partition("\tacc")[0] for line in lines}
        assert len(expected) == (12 if trainer == "ZeroshotCLIP2" else 2)


def test_zero_shot_and_two_coop_runs_give_a_results_table(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("vlm.images.encoder._has_openvino", lambda: False)  # OpenVINO takes long to compile RN50
    prepare_imagenette(tmp_path, 2, 1)
    save_file(build_random_clip("RN50", seed=0), tmp_path / "rn50.safetensors")
    for name, command in COMMANDS.items():
        short = f"OPTIM.MAX_EPOCH 1 MODEL.BACKBONE.WEIGHTS {tmp_path}/rn50.safetensors"
        result = run(f"{command} {short}", f"imagenet/{name}")
        assert "* total: 10" in result.log
        assert result.record["total_parameters"] > 102_000_000
    folder = tmp_path / "output/imagenet"
    assert "fewer than 16 images, so all there are, for tench (2)" in (
        (folder / "CoOp/rn50_16shots/log.txt").read_text(encoding="utf-8")
    )
    assert result.record["trainable_parameters"] == 4 * 512
    assert results_table([str(folder)]) == 0
    assert "75% fewer parameters" in capsys.readouterr().out


@pytest.mark.parametrize(("shots", "cache", "probe"), [(1, 75.78, 78.54), (4, 85.15, 90.67), (16, 89.78, 93.96)])
def test_features_of_caltech101_give_the_accuracies_of_numpy_and_scikit_learn(shots, cache, probe):
    data = np.load(SHARED / "data/clip-vitb32-caltech101.npz")
    keys, features = (torch.from_numpy(data[f"{split}_features"]).float() for split in (f"train{shots}", "test"))
    classes, labels = (torch.from_numpy(data[f"{split}_labels"]).long() for split in (f"train{shots}", "test"))

    def accuracy(logits: torch.Tensor) -> float:
        return 100 * (logits.argmax(1) == labels).double().mean().item()

    assert accuracy(affinity(features, keys, 5.5) @ torch.eye(100)[classes]) == pytest.approx(cache, abs=0.01)
    # The solver stops at a tolerance, so some of the 2,465 predictions may differ from the reference.
    assert accuracy(predict(fit_linear_probe(keys, classes, 10.0), features)) == pytest.approx(probe, abs=0.25)
