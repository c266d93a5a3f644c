"""tools/features.py extract: shards of features, made one by one or all, stopped, gone on with, looked at."""

import os
import re
import shlex
import subprocess
import sys
import threading
import time
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

import tools.features as tool
from dassl.utils import alone_in, read_image
from tests.common import REPOSITORY, WNIDS, damage
from tools.clusters import tasks
from tools.feature_sets import extract, job
from trainers.linear_probe import fit, predict
from vlm import feature_shard
from vlm.feature_set import FeatureSet

DIGITS = REPOSITORY / "configs/datasets/digits.yaml"
PLACE = "imagenet/images/train/n02102040/n02102040_{}.JPEG"


@pytest.fixture
def make(call, tmp_path, imagenet_root):
    """Extract the noise pictures in ImageNet's layout: 15 for training, 6 for testing; options win."""

    def run_it(*more, dataset="ImageNet", root=imagenet_root, split="train", shards=3, out="set"):
        flags = {"dataset": dataset, "root": root, "backbone": "tiny", "split": split, "shards": shards}
        given = [word for flag, value in flags.items() for word in (f"--{flag}", value)]
        return call("extract", *given, "--output", tmp_path / out, *more)

    return run_it


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "set"


def shards_in(folder):
    return sorted(path.name for path in folder.glob("*.safetensors"))


def test_shards_are_made_one_by_one_and_hold_what_the_encoder_gives(make, folder, imagenet_root):
    code, text, error = make("--shard", 2)
    assert (code, error) == (0, "")
    assert "15 images, 3 classes, 2 of 3 shards are missing" in text
    assert shards_in(folder) == ["shard-00002-of-00003.safetensors"]
    first = (folder / shards_in(folder)[0]).stat().st_mtime_ns
    code, text, _ = make()
    assert code == 0
    assert "10 images in" in text
    assert "images/s a core while it encoded\n100,000,000 such images would take" in text
    assert text.endswith(" hours of a core, and 13 GB\n")
    assert (folder / "shard-00002-of-00003.safetensors").stat().st_mtime_ns == first
    assert sorted(os.listdir(folder)) == [".lock", "images.txt", "set.json", *shards_in(folder)]
    features = FeatureSet(folder)
    assert features.classnames == list(WNIDS.values())
    assert features.labels(range(15)).tolist() == [0] * 5 + [1] * 5 + [2] * 5
    paths = features.paths(range(15))
    assert paths == [f"imagenet/images/train/{wnid}/{wnid}_{i}.JPEG" for wnid in WNIDS for i in range(5)]
    data = job.loaded(job.Job("ImageNet", str(imagenet_root), "tiny", "", "train", str(folder), 3))
    expected = torch.stack(list(data.encoder.encode(data.transform(read_image(imagenet_root / p)) for p in paths)))
    torch.testing.assert_close(features.features(range(15)), expected, rtol=2**-11, atol=1e-7)
    assert "15 images, 3 classes, complete" in make()[1]


def test_a_probe_learns_from_few_shots_of_a_set_without_the_images(make, digits_root, tmp_path):
    sets = {}
    for split in ("train", "test"):
        assert make(dataset=DIGITS, root=digits_root, split=split, shards=2, out=split)[0] == 0
        sets[split] = FeatureSet(tmp_path / split)
    shots = sets["train"].few_shot(16, seed=1)
    assert len(shots) == 160
    head = fit(sets["train"].features(shots), sets["train"].labels(shots), c=0.316)
    right = sum(int((predict(head, x).argmax(1) == y).sum()) for x, y in sets["test"].blocks())
    assert right > 0.8 * len(sets["test"])


def test_all_images_are_there_once_class_by_class(make, folder):
    assert make("DATASET.VAL_IS_TEST", True, split="all", shards=1)[0] == 0
    features = FeatureSet(folder)
    assert features.counts == [7, 7, 7]
    assert len(set(features.paths(range(21)))) == 21


def test_a_stopped_shard_goes_on_with_the_images_that_it_lacks(make, folder, digits_root, monkeypatch):
    monkeypatch.setattr(feature_shard, "KEPT_EVERY", 16)
    monkeypatch.setattr(extract, "read_image", stop := StopAfter(200))
    code, _, error = make(dataset=DIGITS, root=digits_root, shards=1)
    assert code == 130
    command = error.splitlines()[-1].split()
    assert command[:3] == ["python", os.path.relpath(tool.__file__), "extract"]
    assert not shards_in(folder)
    stop.left = 901
    code, text, _ = make(dataset=DIGITS, root=digits_root, shards=1)
    assert code == 0
    encoded = int(text.partition(" images in ")[0].rpartition("\n")[2])
    assert 701 <= encoded < 800
    monkeypatch.undo()
    assert make(dataset=DIGITS, root=digits_root, shards=2, out="other")[0] == 0
    whole = [FeatureSet(folder.parent / name).features(range(901)) for name in ("set", "other")]
    assert torch.equal(*whole)


class StopAfter:
    """``read_image`` until Ctrl-C comes."""

    def __init__(self, count):
        self.left = count

    def __call__(self, path):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return read_image(path)


def test_a_killed_extraction_is_gone_on_with(make, folder, digits_root):
    """SIGKILL in the middle of a shard; half of its pictures are gone meanwhile, and not asked for again."""
    code = "import sys; from vlm import feature_shard; feature_shard.KEPT_EVERY = 8; from tools import features; "
    arguments = ["extract", "--dataset", DIGITS, "--root", digits_root, "--backbone", "tiny", "--split", "train"]
    arguments += ["--shards", "1", "--output", folder]
    command = [sys.executable, "-c", f"{code}features.main(sys.argv[1:])", *map(str, arguments)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    part = folder / ".work/shard-00001-of-00001/part.safetensors"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if part.is_file() and part.read_bytes()[-901:].count(0) > 50:
            break
        time.sleep(0.002)
    process.kill()
    process.wait()
    kept = part.read_bytes()[-901:].count(0)
    assert kept > 50
    code, text, _ = make(dataset=DIGITS, root=digits_root, shards=1)
    assert code == 0
    assert f"\n{901 - kept} images in" in text


def test_pictures_that_cannot_be_read_are_named_all_and_other_shards_made(make, folder, imagenet_root, call):
    damage(imagenet_root / PLACE.format(0), imagenet_root / PLACE.format(3))
    code, _, error = make()
    assert code == 2
    assert "1 of 3 shards were not done:\n  shard 2: 2 of 5 images could not be read" in error
    assert all(PLACE.format(number) in error for number in (0, 3))
    assert "DATASET.SKIP_BAD_IMAGES True" in error
    assert shards_in(folder) == ["shard-00001-of-00003.safetensors", "shard-00003-of-00003.safetensors"]
    code, text, _ = make("DATASET.SKIP_BAD_IMAGES", True)
    assert code == 0
    assert "shard 2: left out (DATASET.SKIP_BAD_IMAGES), 2 of 5 images" in text
    assert "shard 2 of 3: 5 images, 2 left out\n" in text
    assert re.search("left out +2 images", call("ls", "--set", folder)[1])
    assert FeatureSet(folder).has(range(15)).tolist() == [i not in (5, 8) for i in range(15)]


def test_a_wrong_root_leaves_no_set_of_nothing(make, folder, tmp_path):
    assert make("--shard", 1)[0] == 0
    code, _, error = make("DATASET.SKIP_BAD_IMAGES", True, root=tmp_path / "elsewhere")
    assert code == 2
    assert "5 of 5 images could not be read, which is all of them; is --root" in error
    assert shards_in(folder) == ["shard-00001-of-00003.safetensors"]


def test_other_settings_than_those_of_the_set_are_refused_by_name(make, folder):
    assert make("--shard", 1)[0] == 0
    code, _, error = make("INPUT.INTERPOLATION", "nearest", "DATASET.SUBSAMPLE_CLASSES", "base", split="test", shards=4)
    assert code == 2
    for told in (
        "transform is 'Pipeline(",
        "data.split is 'train', and would be 'test'",
        "data.SUBSAMPLE_CLASSES is not set, and would be 'base'",
        "shards is 3, and would be 4",
    ):
        assert told in error
    assert "weights" not in error
    assert len(shards_in(folder)) == 1


@pytest.mark.parametrize(
    ("more", "changes", "message"),
    [
        (["--shard", 4], {}, "--shard is 4; the set has the shards 1 to 3"),
        (["--shard", 0], {}, "--shard is 0"),
        ([], {"shards": 0}, "--shards"),
        ([], {"shards": 16}, "has 15 images in --split train"),
        ([], {"split": "tset"}, 'did you mean "test"'),
        ([], {"split": "val"}, "has 0 images in --split val"),
        ([], {"dataset": "ImageNot"}, "ImageNet"),
        ([], {"dataset": "no.yaml"}, "no config file no.yaml"),
        (["DATASET.NUM_SHOTS", 4], {}, "shots are drawn from it when it is read"),
        (["INPUT.NO_TRANSFORM", True], {}, "INPUT.NO_TRANSFORM"),
        (["DATALOADER.NUM_WORKERS", -1], {}, "DATALOADER.NUM_WORKERS"),
    ],
)
def test_a_mistake_is_one_message(make, more, changes, message):
    code, _, error = make(*more, **changes)
    assert code == 2
    assert error.startswith("error: ")
    assert message in error


def test_a_shard_that_somebody_else_makes_is_left_to_them(make, folder):
    assert make("--shard", 1)[0] == 0
    with alone_in(folder / ".work/shard-00002-of-00003"):
        code, text, _ = make()
        asked_for = make("--shard", 2)
    assert code == 0
    assert re.search(rf"shard 2 of 3: being extracted by process {os.getpid()} on .* since [-: \d]*\d\n", text)
    assert "1 of 3 shards are missing" in text
    assert "shard-00003-of-00003.safetensors" in shards_in(folder)
    assert asked_for[0] == 2
    assert f"shard 2: {folder}/.work/shard-00002-of-00003 is in use by process {os.getpid()}" in asked_for[2]
    assert make()[0] == 0


def test_what_another_extraction_has_made_meanwhile_is_no_error(make, folder, monkeypatch):
    done = extract.extract_shard
    monkeypatch.setattr(extract, "extract_shard", lambda job, number: replace(done(job, number), error="was in use"))
    code, text, error = make()
    assert (code, error) == (0, "")
    assert "complete" in text


def test_a_task_waits_for_the_worker_that_it_replaces(make, folder, imagenet_root, monkeypatch):
    assert make("--shard", 1)[0] == 0
    monkeypatch.setattr(tasks, "POLL", 0.05)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    begun = threading.Event()

    def dying():
        with alone_in(folder / ".work/shard-00002-of-00003"):
            begun.set()
            time.sleep(0.5)

    thread = threading.Thread(target=dying)
    thread.start()
    begun.wait()
    done = extract.extract_shard(job.Job("ImageNet", str(imagenet_root), "tiny", "", "train", str(folder), 3), 2, 1)
    assert (done.error, done.images) == ("", 5)
    thread.join()


def test_images_outside_the_data_sets_folder_are_in_no_set(make, folder, tmp_path, digits_root):
    """Their place would mean another on another machine."""
    code, _, error = make("DATASET.FOLDER", digits_root / "digits/images", dataset="ImageFolder", root=tmp_path)
    assert code == 2
    assert re.search("digits/images/.* is not below the data sets' folder", error)
    assert not (folder / "set.json").exists()


def test_a_set_is_shown_and_verified(make, folder, call):
    make("--shard", 2, "DATALOADER.NUM_WORKERS", 1)
    code, text, _ = call("ls", "--set", folder)
    assert code == 0
    assert "ImageNet" in text
    assert "2 of 3 shards are missing. This extracts them:\n  python tools/features.py extract" in text
    again = shlex.split(text.splitlines()[-1])
    assert call(*again[2:])[0] == 0
    assert call("ls", "--set", folder)[1].endswith("complete: 3 shards\n")
    assert call("verify", "--set", folder)[:2] == (0, "3 shards are sound; 0 were damaged and removed; 0 are missing\n")
    path = folder / "shard-00003-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    code, _, error = call("ls", "--set", folder)
    assert code == 2
    assert f"{path} is damaged" in error
    code, text, _ = call("verify", "--set", folder)
    assert code == 1
    assert f"{path} is damaged, and removed. This extracts it anew:" in text
    again = shlex.split(text.splitlines()[1])
    assert again[:5] == ["python", "tools/features.py", "extract", "--shard", "3"]
    assert call(*again[2:])[0] == 0
    assert call("verify", "--set", folder)[0] == 0
    (folder / "images.txt").write_text("\n")
    assert "images" in call("verify", "--set", folder)[2]
    assert call("ls", "--set", folder / "none")[0] == 2


@pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: pip install ray")
def test_tasks_of_ray_make_the_same_set(make, folder, imagenet_root, monkeypatch):
    """And what one of them cannot do comes back as its message; KEY VALUE pairs may follow --ray."""
    assert make(out="alone")[0] == 0
    whole = FeatureSet(folder.parent / "alone").features(range(15))
    damage(imagenet_root / PLACE.format(0))
    monkeypatch.chdir(folder.parent)
    more = ["--output", folder.name, "--cpus", 1, "--ray", "DATALOADER.NUM_WORKERS", 1]
    code, text, error = make(*more, root=os.path.relpath(imagenet_root))
    assert code == 2
    assert "shard 2: 1 of 5 images could not be read" in error
    assert shards_in(folder) == ["shard-00001-of-00003.safetensors", "shard-00003-of-00003.safetensors"]
    features = FeatureSet(folder, partial=True)
    there = features.has(range(15))
    torch.testing.assert_close(features.features(torch.arange(15)[there]), whole[there], rtol=2**-10, atol=1e-7)
    assert "14 images in" in text
