"""No method sees test data: with other test images under permuted labels, all that it fits and chooses is the same."""

import random
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps

import train
import trainers  # noqa: F401  fills the registry
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import set_random_seed
from tests.common import REPOSITORY

CONFIGS = REPOSITORY / "configs/trainers"
METHODS = [
    name for name in TRAINER_REGISTRY.registered_names() if TRAINER_REGISTRY.get(name).__module__[:9] == "trainers."
]
# Keys that keep a run of a method short. PROTOCOL is validation: what a method can choose, it chooses.
OPTIONS = (
    "DATASET.NUM_SHOTS",
    "2",
    "OPTIM.MAX_EPOCH",
    "2",
    "TEST.FINAL_MODEL",
    "last_step",
    "FEATURES.ENABLED",
    "False",
)


@pytest.fixture(scope="module")
def other_root(digits_root, tmp_path_factory) -> Path:
    """The root of a copy of the digits whose test images are negatives, in the folders of other classes."""
    root = tmp_path_factory.mktemp("other")
    shutil.copytree(digits_root / "digits", root / "digits", ignore=shutil.ignore_patterns("split_fewshot"))
    test = root / "digits/images/val"
    paths = sorted(test.rglob("*.png"))
    folders = [path.parent for path in paths]
    random.Random(0).shuffle(folders)
    for path, folder in zip(paths, folders, strict=True):
        negative = ImageOps.invert(Image.open(path))
        path.unlink()
        negative.save(folder / path.name)
    return root


def fit(method: str, root: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Train ``method`` with the tiny CLIP on the digits in ``root``; return all tensors that it fitted, by name."""
    config = next((path for path in sorted(CONFIGS.glob(f"{method}/tiny.yaml"))), CONFIGS / "CoOp/tiny.yaml")
    argv = ["--root", root, "--trainer", method, "--seed", 1, "--output-dir", folder, "--config-file", config]
    argv += ["--dataset-config-file", REPOSITORY / "configs/datasets/digits.yaml", *OPTIONS]
    set_random_seed(1)
    trainer = build_trainer(train.setup_cfg(train.parse_args([str(word) for word in argv])))
    trainer.train()
    fitted = {
        f"{name}.{key}": value for name, model in trainer._models.items() for key, value in model.state_dict().items()
    }
    if hasattr(trainer, "linear_head"):
        with torch.no_grad():
            fitted |= zip(("weight", "bias"), trainer.linear_head(), strict=True)
    return fitted


@pytest.mark.parametrize("method", METHODS)
def test_other_test_data_change_nothing_that_a_method_fits_or_chooses(method, digits_root, other_root, tmp_path):
    fitted, other = fit(method, digits_root, tmp_path / "run"), fit(method, other_root, tmp_path / "other")
    assert fitted
    assert fitted.keys() == other.keys()
    for name, value in fitted.items():
        assert torch.equal(value, other[name]), name


def test_a_method_that_looks_at_test_data_is_noticed(digits_root, other_root, tmp_path, monkeypatch):
    """The comparison above can fail: here, the probe's validation images are the test images."""
    method = "LinearProbe"
    monkeypatch.setattr(
        "trainers.shots.collect_validation_features",
        lambda trainer: next((batch["img"].float(), batch["label"]) for batch in trainer.test_loader),
    )
    fitted, other = fit(method, digits_root, tmp_path / "run"), fit(method, other_root, tmp_path / "other")
    assert not torch.equal(fitted["weight"], other["weight"])
