"""Pictures that cannot be read stop nothing, and no result over fewer images than a split has looks like one."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from dassl.utils import load_checkpoint, read_json
from tests.common import REPOSITORY, assert_same_tensors, damage
from tools import digit_pairs
from trainers.coop import CoOp

RANDOM = ("INPUT.TRANSFORMS", "('random_resized_crop','random_flip','normalize')")
SKIP = ("DATASET.SKIP_BAD_IMAGES", True)
FEW = ("DATASET.NUM_SHOTS", 2)  # with as many validation images


@pytest.fixture
def root(imagenet_root) -> Path:
    """The small ImageNet: 3 classes, 15 images to train on, 6 to test."""
    return imagenet_root / "imagenet/images"


@pytest.fixture
def short(run, imagenet_root, tmp_path):
    """Two epochs on the small ImageNet with the cache of this test."""
    flags = ("--root", imagenet_root, "--dataset-config-file", REPOSITORY / "configs/datasets/imagenet.yaml")
    settings = ("OPTIM.MAX_EPOCH", 2, "FEATURES.CACHE_DIR", tmp_path / "cache", "DATALOADER.TRAIN_X.BATCH_SIZE", 4)

    def call(*arguments, flags_=(), **values):
        return run(*flags, *flags_, *settings, *arguments, **values)

    return call


@pytest.fixture
def val_picture(short, monkeypatch) -> tuple[str, int]:
    """One of the validation images of the runs with FEW, and how many there are."""
    seen = []

    def watched(self, batch, original=CoOp.parse_batch_test):
        seen.append(batch["impath"])
        return original(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(CoOp, "parse_batch_test", watched)
        log = short(*FEW, "TEST.SPLIT", "val", out="seen").log
    return seen[0][1], int(re.search(r"# val +(\d+)", log)[1])


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
    assert "accuracy" not in result.log.partition("Finish training")[2]
    assert not (result.folder / "result.json").exists()


def test_bad_pictures_stop_nothing_and_are_named_together_at_the_end(short, root):
    whole = short(out="whole")
    bad = [*pictures(root / "train", 7), *pictures(root / "val", 0, 4)]
    contents = [path.read_bytes() for path in bad]
    damage(*bad)
    stopped = short()
    refused(stopped, "1 of 15 train_x images and 2 of 6 test images", *bad, "SKIP_BAD_IMAGES", "--output-dir")
    assert stopped.error.count("cannot read") == 3
    for path in bad:
        assert stopped.log.count(f"Note: cannot read {path} as an image: ") == 1  # in two epochs
    assert re.findall(r"epoch \[(\d)/2\] batch \[3/3\]", stopped.log) == ["1", "2"]
    assert stopped.checkpoint(2).is_file()

    # The same command knows it, though no training picture is read again; and goes on where that is accepted.
    refused(short(), "1 of 15 train_x images and 2 of 6 test images", *bad)
    accepted = short(*SKIP)
    assert accepted.code == 0, accepted.error
    assert "epoch [" not in accepted.log
    said = accepted.log.partition("=> result")[2]
    assert "* total: 4\n" in said
    assert "Left out (DATASET.SKIP_BAD_IMAGES): 1 of 15 train_x images and 2 of 6 test images" in said
    assert all(said.count(f"cannot read {path} as an image") == 1 for path in bad)
    assert accepted.record["bad_images"] == {"train_x": [str(bad[0])], "test": [str(path) for path in bad[1:]]}

    # Pictures that are mended: those for testing are as if nothing had been, the other one was not learned from.
    for path, content in zip(bad, contents, strict=True):
        path.write_bytes(content)
    later = short()
    refused(later, "1 of 15 train_x images could not be read", bad[0], "begin anew in another --output-dir")
    assert "test images" not in later.error
    anew = short(out="anew")
    assert anew.accuracy == whole.accuracy
    assert "bad_images" not in anew.record
    assert "bad_images" not in load_checkpoint(anew.checkpoint(2))


def test_a_test_picture_that_is_mended_gives_the_result(short, root):
    whole = short(out="whole")
    (path,) = pictures(root / "val", 3)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    stopped = short()
    refused(stopped, "1 of 6 test images could not be read", path, "truncated", "The same command goes on")
    assert "begin anew" not in stopped.error
    assert stopped.error.count("\n") == 1
    path.write_bytes(content)
    assert short().accuracy == whole.accuracy
    assert_same_tensors(stopped.checkpoint(2), whole.checkpoint(2))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch", [1, 4])
def test_a_run_without_them_is_the_same_with_and_without_cache_and_workers(short, root, batch, workers):
    damage(*pictures(root / "train", 2, 9, 10), *pictures(root / "val", 1))
    settings = (*RANDOM, *SKIP, "DATALOADER.TRAIN_X.BATCH_SIZE", batch)
    first = short(*settings, out="first")
    assert first.code == 0, first.error
    other = short(*settings, "FEATURES.ENABLED", False, "DATALOADER.NUM_WORKERS", workers, out="other")
    assert other.record["bad_images"] == first.record["bad_images"]
    assert other.accuracy == first.accuracy
    assert_same_tensors(other.checkpoint(2), first.checkpoint(2))


def test_the_features_of_the_others_are_kept(short, root, monkeypatch):
    damage(*pictures(root / "train", 0), *pictures(root / "val", 5))
    assert short().code == 2
    monkeypatch.setattr("vlm.image_encoder.ImageEncoder._blocks", lambda self, images: iter(list(images)[:0]))
    again = short(*SKIP, out="again")  # which would lack features if it had to encode any
    assert again.code == 0, again.error


def test_the_schedule_goes_on_where_the_last_batches_of_an_epoch_are_left_out(short, root, monkeypatch):
    rates, seen = [], []
    original = CoOp.forward_backward

    def watched(self, batch):
        rates.append(self.get_current_lr())
        seen.append((self.epoch, batch["impath"][0], self.batch_idx + 1 == self.num_batches))
        return original(self, batch)

    monkeypatch.setattr(CoOp, "forward_backward", watched)
    settings = ("DATALOADER.TRAIN_X.BATCH_SIZE", 1, "DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 3)
    assert short(*settings, out="whole").code == 0
    whole = sorted(set(rates))
    last = {path for epoch, path, _ in seen[:3]}
    assert [is_last for *_, is_last in seen] == [False, False, True] * 3
    for number in range(2, 0, -1):  # of three pictures one is bad, then two: every place in an epoch comes up
        damage(sorted(last)[number])
        rates.clear()
        seen.clear()
        assert short(*settings, *SKIP, out=f"without{number}").code == 0
        assert len(rates) == 3 * number
        assert sorted(set(rates)) == whole
        assert [is_last for *_, is_last in seen] == ([False] * (number - 1) + [True]) * 3


def test_evaluation_alone_is_refused_too(short, root):
    (path,) = pictures(root / "val", 2)
    damage(path)
    zero_shot = partial(short, flags_=["--eval-only"], trainer="ZeroshotCLIP")
    stopped = zero_shot()
    refused(stopped, "1 of 6 test images", path)
    assert "=> result" not in stopped.log
    accepted = zero_shot(*SKIP)
    assert accepted.record["bad_images"] == {"test": [str(path)]}
    assert accepted.record["accuracy"] is not None
    refused(zero_shot("FEATURES.ENABLED", False), "1 of 6 test images", path)


def test_validation_pictures_that_choose_the_model(short, val_picture):
    settings = (*FEW, "TEST.FINAL_MODEL", "best_val")
    path, count = val_picture
    damage(path)
    stopped = short(*settings)
    refused(stopped, f"1 of {count} val images", path, "Replace or remove the files")
    accepted = short(*settings, *SKIP)
    assert accepted.code == 0, accepted.error
    assert accepted.record["bad_images"] == {"val": [path]}
    assert accepted.log.count("Left out (DATASET.SKIP_BAD_IMAGES)") == 3  # after each evaluation


def test_without_a_test_the_end_of_training_accounts_for_them(short, root):
    (path,) = pictures(root / "train", 1)
    damage(path)
    settings = ("TEST.NO_TEST", True)
    stopped = short(*settings)
    refused(stopped, "1 of 15 train_x images", path)
    assert stopped.checkpoint(2).is_file()
    accepted = short(*settings, *SKIP)
    assert accepted.record["bad_images"] == {"train_x": [str(path)]}
    assert accepted.log.count("Left out (DATASET.SKIP_BAD_IMAGES): 1 of 15 train_x images") == 1


def test_a_run_that_was_interrupted_still_knows_them(short, root, monkeypatch):
    (path,) = pictures(root / "train", 1)
    content = path.read_bytes()
    damage(path)
    original = CoOp.before_epoch
    settings = ("TRAIN.CHECKPOINT_FREQ", 1)

    def stop(self):
        if self.epoch == 1:
            raise KeyboardInterrupt
        original(self)

    monkeypatch.setattr(CoOp, "before_epoch", stop)
    assert short(*settings).code == 130
    monkeypatch.undo()
    path.write_bytes(content)
    refused(short(*settings), "1 of 15 train_x images", path, "begin anew")


def test_a_method_that_evaluates_by_itself_gets_the_error_at_once(short, root, monkeypatch):
    (path,) = pictures(root / "val", 1)
    damage(path)

    def test(self, split=None):
        for batch in self.test_loader:
            self.evaluator.process(self.model_inference(batch["img"]), batch["label"])
        self.results = self.evaluator.evaluate()
        return 0.0

    monkeypatch.setattr(CoOp, "test", test)
    refused(short(), f"cannot read {path} as an image")
    path.unlink()
    Image.new("RGB", (40, 40)).save(path)
    damage(*pictures(root / "train", 1))
    refused(short(out="trained"), "1 of 15 train_x images")
    monkeypatch.setattr(CoOp, "after_train", lambda self: self.test())
    refused(short(out="ended"), "1 of 15 train_x images")


# ---- methods that read whole splits, or images ----


@pytest.mark.parametrize("method", ["TipAdapter", "TipAdapterF", "LinearProbe", "CLIPAdapter"])
def test_models_on_top_of_the_features_go_without_them(short, root, method):
    bad = [*pictures(root / "train", 0, 6), *pictures(root / "val", 1)]
    damage(*bad)
    tiny = ("--config-file", REPOSITORY / f"configs/trainers/{method}/tiny.yaml")
    random = RANDOM if method != "LinearProbe" else ()
    call = partial(short, "OPTIM.MAX_EPOCH", 2, *random, flags_=tiny, trainer=method)
    refused(call(), "2 of 15 train_x images and 1 of 6 test images", *bad)
    accepted = call(*SKIP)
    assert accepted.code == 0, accepted.error
    assert accepted.record["bad_images"] == {"train_x": [str(path) for path in bad[:2]], "test": [str(bad[2])]}
    anew = call(*SKIP, out="anew")
    assert anew.accuracy == accepted.accuracy
    if method.startswith("Tip"):
        assert "Cache: 13 keys" in anew.log


def test_validation_pictures_that_choose_the_strength_of_a_model(short, val_picture):
    path, count = val_picture
    damage(path)
    tiny = ("--config-file", REPOSITORY / "configs/trainers/LinearProbe/tiny.yaml")
    refused(short(*FEW, flags_=tiny, trainer="LinearProbe"), f"1 of {count} val images", path)
    accepted = short(*FEW, *SKIP, flags_=tiny, trainer="LinearProbe")
    assert accepted.record["bad_images"] == {"val": [path]}
    assert "swept on" not in accepted.log  # that was done before


def test_a_linear_probe_wants_a_picture_of_each_class(short, root):
    bad = pictures(root / "train", *range(5))
    damage(*bad)
    tiny = ("--config-file", REPOSITORY / "configs/trainers/LinearProbe/tiny.yaml")
    refused(short(flags_=tiny, trainer="LinearProbe"), "5 of 15 train_x images", *bad)
    result = short(*SKIP, flags_=tiny, trainer="LinearProbe", out="accepted")
    refused(result, "a training image of each class", "without: tench")


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
    refused(call(), "1 of 64 train_x images and 1 of 100 test images", *bad)
    accepted = call(*SKIP)
    assert accepted.code == 0, accepted.error
    assert f"* images: {images - 1}\n" in accepted.log
    assert f"* texts: {texts - texts // images}\n" in accepted.log
    assert accepted.record["bad_images"] == {"train_x": [str(bad[0])], "test": [str(bad[1])]}
