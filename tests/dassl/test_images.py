"""Pictures that cannot be read: a run ends with the list of them, or goes without them where that is asked for."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest

from dassl.data.images import find_unreadable
from dassl.utils import read_json
from tests.common import REPOSITORY, assert_same_tensors, damage
from tools import check_images, digit_pairs
from vlm.images.extractor import CachedFeatureExtractor

RANDOM = ("INPUT.TRANSFORMS", "('random_resized_crop','random_flip','normalize')")
SKIP = ("DATASET.SKIP_BAD_IMAGES", True)
IMAGENET = REPOSITORY / "configs/datasets/imagenet.yaml"


@pytest.fixture
def root(imagenet_root) -> Path:
    """The small ImageNet: 3 classes, 15 images to train on, 6 to test."""
    return imagenet_root / "imagenet/images"


@pytest.fixture
def short(run, imagenet_root, tmp_path):
    """Two epochs on the small ImageNet with the cache of this test."""
    flags = ("--root", imagenet_root, "--dataset-config-file", IMAGENET)
    settings = ("OPTIM.MAX_EPOCH", 2, "FEATURES.CACHE_DIR", tmp_path / "cache", "DATALOADER.TRAIN_X.BATCH_SIZE", 4)

    def call(*arguments, flags_=(), **values):
        return run(*flags, *flags_, *settings, *arguments, **values)

    return call


def pictures(folder: Path, *numbers: int) -> list[Path]:
    found = sorted(folder.rglob("*.JPEG"))
    return [found[number] for number in numbers]


def refused(result, *parts: object) -> None:
    assert result.code == 2
    assert result.error.startswith("error: ")
    assert "Traceback" not in result.error
    for part in parts:
        assert str(part) in result.error
        assert str(part) in result.log
    assert "accuracy" not in result.log
    assert not (result.folder / "result.json").exists()


def test_pictures_are_read_and_the_reasons_told(tmp_path):
    damage(tmp_path / "cut.png")
    (tmp_path / "text.png").write_text("no picture")
    paths = [str(tmp_path / name) for name in ("cut.png", "text.png", "absent.png", "cut.png")]
    reasons = find_unreadable(paths)
    assert list(reasons) == paths[:3]
    assert reasons[paths[1]] == "it is in no format that PIL knows, or damaged"
    assert reasons[paths[2]] == "No such file or directory"


def test_extraction_goes_through_and_one_error_lists_every_bad_file(short, root, monkeypatch):
    bad = pictures(root / "train", 2, 7, 14)
    contents = [path.read_bytes() for path in bad]
    damage(*bad)
    stopped = short(*RANDOM)
    refused(
        stopped, "3 of 15 train_x images cannot be read:", *(f"\n  {path}: " for path in bad), "SKIP_BAD_IMAGES True"
    )
    assert "epoch [" not in stopped.log
    for path, content in zip(bad, contents, strict=True):
        path.write_bytes(content)
    encoded, extract = {}, CachedFeatureExtractor._extract

    def counting(self, requests, threads, name):
        encoded[name] = len(requests)
        return extract(self, requests, threads, name)

    monkeypatch.setattr(CachedFeatureExtractor, "_extract", counting)
    assert short(*RANDOM).code == 0
    assert encoded["test images"] == 6
    assert 0 < encoded["train_x images"] <= 2 * 3  # in two epochs; of the others, the features were kept


def test_test_pictures_are_met_when_they_are_tested(short, root):
    bad = pictures(root / "val", 0, 4)
    damage(*bad)
    stopped = short()
    refused(stopped, "2 of 6 test images cannot be read:", *bad)
    assert stopped.checkpoint(2).is_file()
    refused(short(flags_=["--eval-only"], trainer="ZeroshotCLIP", out="zero"), "2 of 6 test images", *bad)


def test_a_loader_of_images_raises_at_the_first(run, imagenet_root, root):
    path = pictures(root / "train", 3)[0]
    damage(path)
    flags = ("--root", imagenet_root, "--dataset-config-file", IMAGENET, "--trainer", "CLIPFineTune")
    flags += ("--config-file", REPOSITORY / "configs/trainers/CLIPFineTune/tiny.yaml")
    settings = ("OPTIM.MAX_EPOCH", 1, "DATALOADER.TRAIN_X.BATCH_SIZE", 15, "DATALOADER.NUM_WORKERS", 2)
    refused(run(*flags, *settings), f"cannot read {path} as an image: ")


def test_a_run_goes_without_them_and_says_so(short, root):
    bad = [*pictures(root / "train", 2, 9), *pictures(root / "val", 1)]
    damage(*bad)
    first = short(*RANDOM, *SKIP, out="first")
    assert first.code == 0, first.error
    for path in bad:
        assert first.log.count(f"(DATASET.SKIP_BAD_IMAGES): {path}: ") == 1
    assert "2 of 15 train_x images left out" in first.log
    assert re.search(r"# train_x +13\n", first.log)
    assert "* total: 5\n" in first.log
    assert first.record["bad_images"] == {"train_x": [str(p) for p in bad[:2]], "test": [str(bad[2])]}
    assert (first.record["splits"]["train_x"]["images"], first.record["total"]) == (13, 5)
    other = short(*RANDOM, *SKIP, "FEATURES.ENABLED", False, "DATALOADER.NUM_WORKERS", 2, out="other")
    assert other.accuracy == first.accuracy
    assert_same_tensors(other.checkpoint(2), first.checkpoint(2))


def test_only_images_that_a_run_uses_are_looked_at(short, root):
    shots = ("DATASET.NUM_SHOTS", 1)
    split = Path(short(*shots, *SKIP, out="whole").record["few_shot_split"]["file"]).read_text()
    others = [path for path in pictures(root / "train", *range(15)) if path.name not in split]
    assert others
    damage(*others)
    again = short(*shots, *SKIP, out="again")
    assert again.code == 0, again.error
    assert "bad_images" not in again.record


def test_a_split_of_which_nothing_is_left_is_refused(short, root):
    damage(*pictures(root / "val", *range(6)))
    result = short(*SKIP)
    assert result.code == 2
    assert "has no images for a loader" in result.error


def test_a_linear_probe_wants_a_picture_of_each_class(short, root):
    damage(*pictures(root / "train", *range(5)))
    tiny = ("--config-file", REPOSITORY / "configs/trainers/LinearProbe/tiny.yaml")
    refused(short(*SKIP, flags_=tiny, trainer="LinearProbe"), "a training image of each class; without: tench")


def test_an_image_takes_its_captions_with_it(run, tmp_path):
    digit_pairs.main(["--root", str(tmp_path), "--pairs", "64"])
    folder = tmp_path / "digit_pairs"
    flags = ["--root", tmp_path, "--dataset-config-file", REPOSITORY / "configs/datasets/captions.yaml"]
    flags += ["--config-file", REPOSITORY / "configs/trainers/CLIPFineTune/tiny.yaml"]
    settings = ("DATASET.FOLDER", "digit_pairs", "OPTIM.MAX_EPOCH", 1, "DATALOADER.TRAIN_X.BATCH_SIZE", 8)
    call = partial(run, *flags, *settings, trainer="CLIPFineTune")
    whole = call(out="whole")
    images, texts = (int(re.search(rf"\* {name}: (\d+)", whole.log)[1]) for name in ("images", "texts"))
    entries = read_json(folder / "captions.json")
    bad = [next(folder / entry["image"] for entry in entries if entry["split"] == split) for split in ("train", "test")]
    damage(*bad)
    accepted = call(*SKIP)
    assert accepted.code == 0, accepted.error
    assert f"* images: {images - 1}\n" in accepted.log
    assert f"* texts: {texts - texts // images}\n" in accepted.log
    assert accepted.record["bad_images"] == {"train_x": [str(bad[0])], "test": [str(bad[1])]}


def test_a_data_set_is_looked_through(imagenet_root, root, capsys):
    command = ["--root", str(imagenet_root), "--dataset-config-file", str(IMAGENET)]
    assert check_images.main(command) == 0
    assert capsys.readouterr().out.endswith("0 of 21 images cannot be read\n")
    bad = [*pictures(root / "train", 3), *pictures(root / "val", 0)]
    damage(*bad)
    assert check_images.main(command) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines[-3:-1]] == [str(path) for path in bad]
    assert lines[-1] == "2 of 21 images cannot be read"
    assert check_images.main([*command, "DATASET.NUM_SHOT", "1"]) == 2
