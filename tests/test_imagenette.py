"""The README's three commands, on some of ImageNette's photos, with a CLIP of RN50's dimensions and random weights."""

import shlex
import tarfile

import pytest
from safetensors.torch import save_file

import train
from tests.common import REPOSITORY, SHARED, needs_shared
from tests.conftest import Run
from tools.prepare_imagenette import main as prepare
from tools.random_weights import random_clip
from tools.results_table import main as results_table

pytestmark = needs_shared
SETTINGS = "--dataset-config-file configs/datasets/imagenet.yaml --config-file configs/trainers/CoOp/rn50.yaml "
SETTINGS += "--output-dir {out} "
DATA = "DATASET.SUBSAMPLE_CLASSES all DATALOADER.NUM_WORKERS 0 DATALOADER.TEST.BATCH_SIZE 32"
COMMANDS = {
    "ZeroshotCLIP": "--seed 1 --trainer ZeroshotCLIP " + SETTINGS + "--eval-only DATASET.NUM_SHOTS 0 " + DATA,
    "CoOp/rn50_16shots": "--seed 1 --trainer CoOp " + SETTINGS + "DATASET.NUM_SHOTS 16 " + DATA,
    "CoOp/rn50_4shots_ctx4": f"--seed 1 --trainer CoOp {SETTINGS} DATASET.NUM_SHOTS 4 {DATA} TRAINER.COOP.N_CTX 4",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Four training and two test photos of each class, through the preparation tool."""
    folder = tmp_path_factory.mktemp("imagenette")
    counts: dict[str, int] = {}
    with tarfile.open(SHARED / "data/imagenette-224.tar") as source, tarfile.open(folder / "some.tar", "w") as target:
        for member in source:
            place = member.name.rpartition("/")[0]
            counts[place] = counts.get(place, 0) + member.isfile()
            if member.isfile() and counts[place] <= (4 if "/train/" in place else 2):
                target.addfile(member, source.extractfile(member))
    assert prepare(["--root", str(folder), "--archive", str(folder / "some.tar")]) == 0
    save_file(random_clip("RN50", seed=0), folder / "rn50.safetensors")
    return folder


def test_the_three_commands_run_and_make_the_table(root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    for name, command in COMMANDS.items():
        folder = tmp_path / "imagenet" / name
        arguments = shlex.split(command.format(out=folder))
        short = ["OPTIM.MAX_EPOCH", "1", "MODEL.BACKBONE.WEIGHTS", str(root / "rn50.safetensors")]
        run = Run(train.main(["--root", str(root), *arguments, *short]), folder, capsys.readouterr().err)
        assert run.code == 0, run.error
        assert "* total: 20" in run.log
        assert run.record["total_parameters"] > 102_000_000
    assert (
        "fewer than 16 images, so all there are, for tench (4)"
        in (tmp_path / "imagenet/CoOp/rn50_16shots/log.txt").read_text()
    )
    assert run.record["trainable_parameters"] == 4 * 512
    assert results_table([str(tmp_path / "imagenet")]) == 0
    assert "75% fewer parameters" in capsys.readouterr().out
