"""Images that cannot be read: a run ends with a list of them, or leaves them out with DATASET.SKIP_BAD_IMAGES."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest

from dassl.data.images import find_unreadable
from dassl.utils import read_json
from tests.common import REPOSITORY, assert_same_tensors, damage_images
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
    """A function that runs two epochs on the small ImageNet with a feature cache for this test."""
    flags = ("--root", imagenet_root, "--dataset-config-file", IMAGENET)
    settings = ("OPTIM.MAX_EPOCH", 2, "FEATURES.CACHE_DIR", tmp_path / "cache", "DATALOADER.TRAIN_X.BATCH_SIZE", 4)

    def call(*arguments, more_flags=(), **values):
        return run(*flags, *more_flags, *settings, *arguments, **values)

    return call


def image_paths(folder: Path, *numbers: int) -> list[Path]:
    """Return the images of those numbers in the sorted list of all images in a folder."""
    paths = sorted(folder.rglob("*.JPEG"))
    return [paths[number] for number in numbers]


def assert_refused(result, *texts: object) -> None:
    """Assert that a run ended with one error message and no result, and that the message has all the texts."""
    assert result.code == 2
    assert result.error.startswith("error: ")
    assert "Traceback" not in result.error
    for text in texts:
        assert str(text) in result.error
        assert str(text) in result.log
    assert "accuracy" not in result.log
    assert not (result.folder / "result.json").exists()


def test_find_unreadable_returns_the_reason_of_each_image(tmp_path):
    damage_images(tmp_path / "cut.png")
    (tmp_path / "text.png").write_text("no picture")
    paths = [str(tmp_path / name) for name in ("cut.png", "text.png", "absent.png", "cut.png")]
    reasons = find_unreadable(paths)
    assert list(reasons) == paths[:3]
    assert reasons[paths[1]] == "it is in no format that PIL knows, or damaged"
    assert reasons[paths[2]] == "No such file or directory"


def test_one_error_lists_all_unreadable_images_and_features_of_the_others_are_stored(short, root, monkeypatch):
    bad = image_paths(root / "train", 2, 7, 14)
    contents = [path.read_bytes() for path in bad]
    damage_images(*bad)
    stopped = short(*RANDOM)
    assert_refused(
        stopped, "3 of 15 train_x images cannot be read:", *(f"\n  {path}: " for path in bad), "SKIP_BAD_IMAGES True"
    )
    assert "epoch [" not in stopped.log
    for path, content in zip(bad, contents, strict=True):
        path.write_bytes(content)
    encoded, extract = {}, CachedFeatureExtractor._extract

    def counting(self, requests, threads, name, first):
        encoded[name] = len(requests)
        return extract(self, requests, threads, name, first)

    monkeypatch.setattr(CachedFeatureExtractor, "_extract", counting)
    assert short(*RANDOM).code == 0
    assert encoded["test images"] == 6
    assert 0 < encoded["train_x images"] <= 2 * 3  # draws of the three images in two epochs; other features were stored


def test_unreadable_test_images_are_reported_by_the_evaluation(short, root):
    bad = image_paths(root / "val", 0, 4)
    damage_images(*bad)
    stopped = short()
    assert_refused(stopped, "2 of 6 test images cannot be read:", *bad)
    assert stopped.checkpoint(2).is_file()
    assert_refused(short(more_flags=["--eval-only"], trainer="ZeroshotCLIP", out="zero"), "2 of 6 test images", *bad)


def test_an_image_loader_raises_at_the_first_unreadable_image(run, imagenet_root, root):
    path = image_paths(root / "train", 3)[0]
    damage_images(path)
    flags = ("--root", imagenet_root, "--dataset-config-file", IMAGENET, "--trainer", "CLIPFineTune")
    flags += ("--config-file", REPOSITORY / "configs/trainers/CLIPFineTune/tiny.yaml")
    settings = ("OPTIM.MAX_EPOCH", 1, "DATALOADER.TRAIN_X.BATCH_SIZE", 15, "DATALOADER.NUM_WORKERS", 2)
    assert_refused(run(*flags, *settings), f"cannot read {path} as an image: ")


def test_skip_bad_images_leaves_unreadable_images_out_and_prints_them(short, root):
    bad = [*image_paths(root / "train", 2, 9), *image_paths(root / "val", 1)]
    damage_images(*bad)
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


def test_skip_bad_images_reads_only_the_images_of_the_run(short, root):
    shots = ("DATASET.NUM_SHOTS", 1)
    split = Path(short(*shots, *SKIP, out="whole").record["few_shot_split"]["file"]).read_text(encoding="utf-8")
    unused = [path for path in image_paths(root / "train", *range(15)) if path.name not in split]
    assert unused
    damage_images(*unused)
    again = short(*shots, *SKIP, out="again")
    assert again.code == 0, again.error
    assert "bad_images" not in again.record


def test_a_split_without_readable_images_is_refused(short, root):
    damage_images(*image_paths(root / "val", *range(6)))
    result = short(*SKIP)
    assert result.code == 2
    assert "has no images for a loader" in result.error


def test_a_linear_probe_needs_a_readable_image_of_each_class(short, root):
    damage_images(*image_paths(root / "train", *range(5)))
    tiny = ("--config-file", REPOSITORY / "configs/trainers/LinearProbe/tiny.yaml")
    assert_refused(
        short(*SKIP, more_flags=tiny, trainer="LinearProbe"), "a training image of each class; without: tench"
    )


def test_an_image_is_left_out_with_its_captions(run, tmp_path):
    digit_pairs.main(["--root", str(tmp_path), "--pairs", "64"])
    folder = tmp_path / "digit_pairs"
    flags = ["--root", tmp_path, "--dataset-config-file", REPOSITORY / "configs/datasets/captions.yaml"]
    flags += ["--config-file", REPOSITORY / "configs/trainers/CLIPFineTune/tiny.yaml"]
    settings = ("DATASET.FOLDER", "digit_pairs", "OPTIM.MAX_EPOCH", 1, "DATALOADER.TRAIN_X.BATCH_SIZE", 8)
    call = partial(run, *flags, *settings, trainer="CLIPFineTune")
    complete = call(out="whole")
    images, texts = (int(re.search(rf"\* {name}: (\d+)", complete.log)[1]) for name in ("images", "texts"))
    entries = read_json(folder / "captions.json")
    bad = [next(folder / entry["image"] for entry in entries if entry["split"] == split) for split in ("train", "test")]
    damage_images(*bad)
    accepted = call(*SKIP)
    assert accepted.code == 0, accepted.error
    assert f"* images: {images - 1}\n" in accepted.log
    assert f"* texts: {texts - texts // images}\n" in accepted.log
    assert accepted.record["bad_images"] == {"train_x": [str(bad[0])], "test": [str(bad[1])]}


def test_check_images_reads_all_images_of_a_data_set(imagenet_root, root, capsys):
    command = ["--root", str(imagenet_root), "--dataset-config-file", str(IMAGENET)]
    assert check_images.main(command) == 0
    assert capsys.readouterr().out.endswith("0 of 21 images cannot be read\n")
    bad = [*image_paths(root / "train", 3), *image_paths(root / "val", 0)]
    damage_images(*bad)
    assert check_images.main(command) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines[-3:-1]] == [str(path) for path in bad]
    assert lines[-1] == "2 of 21 images cannot be read"
    assert check_images.main([*command, "DATASET.NUM_SHOT", "1"]) == 2
