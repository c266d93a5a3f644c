"""Tests that need a GPU, and a minute: half precision, loss scaling, the feature cache, resuming."""

import pytest
import torch

from tests.common import REPOSITORY, assert_same_tensors
from tools.random_weights import build_random_clip
from vlm.images.encoder import build_image_encoder
from vlm.openai import build_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SHORT = ("DATASET.NUM_SHOTS", 4, "OPTIM.MAX_EPOCH", 6, "TRAIN.CHECKPOINT_FREQ", 3, "OPTIM.LR", 0.02)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "amp"])
def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(run, precision):
    overrides = (*SHORT, "TRAINER.COOP.PREC", precision)
    complete = run(*overrides, out="complete")
    assert complete.code == 0, complete.error
    assert complete.record["machine"]["device"] == "cuda"
    assert float(complete.accuracy) > 50  # chance is 10
    interrupted = run(*overrides, out="interrupted")
    for path in (interrupted.checkpoint(6), interrupted.folder / "result.json"):
        path.unlink()
    (interrupted.checkpoint(3).parent / "checkpoint").write_text("model.pth.tar-3\n", encoding="utf-8")
    resumed = run(*overrides, out="interrupted")
    assert "epoch [3/6]" not in resumed.log
    assert_same_tensors(complete.checkpoint(6), resumed.checkpoint(6))


def test_a_run_with_cached_features_gives_the_same_bits(run, tmp_path):
    overrides = (*SHORT, "INPUT.TRANSFORMS", "('random_resized_crop','random_flip','normalize')")
    cached = run(*overrides, "FEATURES.CACHE_DIR", tmp_path / "cache", out="cached")
    again = run(*overrides, "FEATURES.CACHE_DIR", tmp_path / "cache", out="again")
    plain = run(*overrides, "FEATURES.ENABLED", False, out="plain")
    for other in (again, plain):
        assert other.code == 0, other.error
        assert_same_tensors(cached.checkpoint(6), other.checkpoint(6))
        assert cached.accuracy == other.accuracy


def test_a_clip_can_be_fine_tuned_in_half_precision(run):
    config = ("--config-file", REPOSITORY / "configs/trainers/CLIPFineTune/tiny.yaml")
    short = ("DATASET.NUM_SHOTS", 4, "OPTIM.MAX_EPOCH", 2, "DATALOADER.TRAIN_X.BATCH_SIZE", 16)
    for precision in ("amp", "bf16"):
        tuned = run(*config, *short, "TRAINER.FINETUNE.PREC", precision, trainer="CLIPFineTune", out=precision)
        assert tuned.code == 0, tuned.error


@pytest.mark.parametrize("name", ["RN50", "ViT-B/32"])
def test_half_precision_changes_features_by_rounding(name):
    """A hundred images are two blocks, the second of them padded."""
    model = build_model(build_random_clip(name, 0)).cuda().requires_grad_(False)
    images = torch.rand(100, 3, 224, 224)
    half = torch.stack(list(build_image_encoder(model.visual, name).encode(iter(images)))).float()
    with torch.no_grad():
        single = model.float().visual(images.cuda()).cpu()
    assert (half - single).norm() < 0.01 * single.norm()
