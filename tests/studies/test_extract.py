"""tools/features.py extract: feature sets, extracted whole or in shards, resumed, and read by row number."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tools.features as tool  # noqa: F401  the module whose main the fixture `call` calls
from dassl.utils import Decoding, read_image
from inference.classifier import build_preprocessing
from studies import extract
from tests.common import IS_WINDOWS, REPOSITORY, WNIDS, damage_images
from trainers.linear_probe import fit_linear_probe, predict
from vlm.clip.load import load_cached_clip
from vlm.images import lance_features
from vlm.images.encoder import build_image_encoder
from vlm.images.lance_features import LanceFeatures

DIGITS, IMAGENET = (REPOSITORY / f"configs/datasets/{name}.yaml" for name in ("digits", "imagenet"))
IMAGE_PATH = "imagenet/images/train/n02102040/n02102040_{}.JPEG"
pytest.importorskip("lance", reason="needs Lance: pip install pylance")


@pytest.fixture
def extract_set(call, tmp_path, imagenet_root, monkeypatch):
    """A function that extracts a feature set; by default, of the 15 training images of ``imagenet_root``.

    Args:
        extra: further arguments.
        out: the set's folder below tmp_path.
        block: images of a block.
    """

    def call_extract(*extra, dataset=IMAGENET, root=imagenet_root, split="train", out="set", block=4):
        monkeypatch.setattr(extract, "MIN_BLOCK_IMAGES", block)
        flags = {"dataset": dataset, "root": root, "backbone": "tiny", "split": split, "output": tmp_path / out}
        return call("extract", *(word for flag, value in flags.items() for word in (f"--{flag}", value)), *extra)

    return call_extract


def test_shards_make_one_set_with_the_features_of_the_encoder(extract_set, tmp_path, imagenet_root):
    code, text, error = extract_set("--shards", 2, "--shard", 2)
    assert (code, error) == (0, "")
    assert "2 of 4 blocks are missing, those of other shards" in text
    with pytest.raises(lance_features.UserError, match="no set of"):
        LanceFeatures(tmp_path / "set")
    assert extract_set("--shards", 2)[1].endswith("set: complete, 15 images\n")
    features = LanceFeatures(tmp_path / "set")
    assert (features.classnames, features.counts) == (list(WNIDS.values()), [5, 5, 5])
    rows = [14, 0, 7, 7]
    taken, labels = features.take(rows)
    assert labels.tolist() == [2, 0, 1, 1]
    paths = [f"imagenet/images/train/{wnid}/{wnid}_{i}.JPEG" for wnid in WNIDS for i in range(5)]
    assert features.data.to_table(columns=["path"])["path"].to_pylist() == paths
    clip, weights = load_cached_clip("tiny", "", "fp16", "cpu")
    images = (build_preprocessing(clip.visual)(read_image(imagenet_root / paths[row])) for row in rows)
    expected = torch.stack(list(build_image_encoder(clip.visual, weights).encode(images)))
    torch.testing.assert_close(taken, expected, rtol=2**-11, atol=1e-7)
    assert torch.equal(features.take(range(15))[0][rows], taken)
    assert extract_set()[1].endswith("complete, 15 images\n")


def test_a_linear_probe_learns_from_few_shots_of_a_feature_set(extract_set, digits_root, tmp_path):
    for split in ("train", "test"):
        assert extract_set(dataset=DIGITS, root=digits_root, split=split, out=split, block=400)[0] == 0
    train, test = LanceFeatures(tmp_path / "train"), LanceFeatures(tmp_path / "test")
    shots = train.few_shot(16, seed=1)
    assert shots == train.few_shot(16, seed=1) != train.few_shot(16, seed=2)
    features, labels = train.take(shots)
    assert labels.bincount().tolist() == [16] * 10
    assert len({*shots}) == 160
    head = fit_linear_probe(features, labels, c=0.316)
    features, labels = test.take(range(sum(test.counts)))
    assert (predict(head, features).argmax(1) == labels).float().mean() > 0.8


def test_the_shots_of_a_class_do_not_depend_on_the_other_classes():
    def draw_shots(**counts):
        """Return three drawn rows of each class, counted from the first row of the class."""
        features = object.__new__(LanceFeatures)
        features.classnames, features.counts = [*counts], [*counts.values()]
        starts = [sum(features.counts[:i]) for i in range(len(counts))]
        drawn = features.few_shot(3, seed=1)
        return {
            name: [row - start for row in drawn if start <= row < start + counts[name]]
            for name, start in zip(counts, starts, strict=True)
        }

    assert draw_shots(a=10, b=20)["b"] == draw_shots(b=20, c=1)["b"]
    assert sorted(draw_shots(c=2)["c"]) == [0, 1]


def test_an_extraction_resumes_after_a_kill_without_its_complete_blocks(extract_set, tmp_path, digits_root):
    """SIGKILL ends the extraction; the resumed set equals an undisturbed one."""
    code = "import sys; from studies import extract; extract.MIN_BLOCK_IMAGES = 32; from tools import features; "
    arguments = ["extract", "--dataset", DIGITS, "--root", digits_root, "--backbone", "tiny", "--split", "train"]
    command = [sys.executable, "-c", f"{code}features.main(sys.argv[1:])", *arguments, "--output", tmp_path / "set"]
    process = subprocess.Popen([str(word) for word in command], cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    blocks = tmp_path / "set/blocks"
    while time.monotonic() < deadline and process.poll() is None and len([*blocks.glob("*.json")]) < 3:
        time.sleep(0.002)
    process.kill()
    process.wait()
    complete = {path.name: path.stat().st_mtime_ns for path in blocks.glob("*.json")}
    assert 3 <= len(complete) < 29
    assert extract_set("--shards", 2, dataset=DIGITS, root=digits_root, block=32)[0] == 0
    assert complete.items() <= {path.name: path.stat().st_mtime_ns for path in blocks.glob("*.json")}.items()
    assert extract_set(dataset=DIGITS, root=digits_root, block=32)[1].endswith("complete, 901 images\n")
    assert extract_set(dataset=DIGITS, root=digits_root, out="other", block=400)[0] == 0
    whole = [LanceFeatures(tmp_path / name).take(range(901)) for name in ("set", "other")]
    assert torch.equal(whole[0][0], whole[1][0])
    assert torch.equal(whole[0][1], whole[1][1])


def test_unreadable_images_are_listed_or_left_out(extract_set, tmp_path, imagenet_root):
    bad = [imagenet_root / IMAGE_PATH.format(i) for i in (0, 3)]
    damage_images(*bad)
    code, _, error = extract_set()
    assert code == 2
    assert all(IMAGE_PATH.format(i) in error for i in (0, 3))
    code, text, _ = extract_set("DATASET.SKIP_BAD_IMAGES", True)
    assert code == 0
    assert text.endswith("complete, 13 images\n")
    features = LanceFeatures(tmp_path / "set")
    assert features.counts == [5, 3, 5]
    assert features.take(range(13))[1].tolist() == [0] * 5 + [1] * 3 + [2] * 5


def test_a_set_that_an_earlier_version_began_without_a_newer_key_is_completed(extract_set, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(extract, "IGNORED_DATASET_KEYS", (*extract.IGNORED_DATASET_KEYS, "CSV"))
        assert extract_set("--shards", 2)[0] == 0
    code, text, error = extract_set("--shards", 2, "--shard", 2)
    assert code == 0, error
    assert text.endswith("complete, 15 images\n")
    assert "data.CSV" in extract_set("DATASET.CSV", "photos.csv")[2]


def test_changed_settings_and_wrong_flags_are_refused(extract_set, tmp_path):
    assert extract_set("--shards", 2)[0] == 0
    for extra, messages in (
        (("FEATURES.PREC", "bf1"), ["FEATURES.PREC", "bf1"]),
        (("DATASET.VAL_PERCENT", 0.2), ["data.VAL_PERCENT 0.1, not 0.2"]),
        (("DATASET.NUM_SHOTS", 4), ["no NUM_SHOTS"]),
        (("DATASET.FEWSHOT_FILE", "shots.json"), ["no FEWSHOT_FILE"]),
        (("INPUT.SIZE", "(8, 8)"), ["no INPUT"]),
        (("--shards", 2, "--shard", 3), ["--shard is 3"]),
    ):
        code, _, error = extract_set(*extra)
        assert code == 2
        assert all(message in error for message in messages), error
    assert extract_set(split="bits")[0] == 2
    assert extract_set(dataset="Nothing", out="nothing")[0] == 2


def test_a_missing_lance_names_the_package_to_install(extract_set, monkeypatch):
    monkeypatch.setitem(sys.modules, "lance", None)
    for module in ("studies.extract", "vlm.images.lance_features"):
        monkeypatch.delitem(sys.modules, module)
    code, _, error = extract_set()
    assert code == 2
    assert 'pip install "coop-dassl[scale]"' in error


@pytest.mark.skipif(IS_WINDOWS, reason="Ray is not tested on Windows")
def test_extraction_on_ray_gives_the_same_bits(extract_set, tmp_path):
    pytest.importorskip("ray", reason="needs Ray: pip install ray")
    assert extract_set(out="local")[0] == 0
    code, text, error = extract_set("--ray")
    assert (code, error) == (0, ""), error
    assert text.endswith("complete, 15 images\n")
    sets = [LanceFeatures(tmp_path / name).take(range(15))[0] for name in ("local", "set")]
    assert torch.equal(*sets)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Return the root of class folders: the first image of a class has 16 bits, the second is turned by EXIF."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(4):
            rng, shape = np.random.default_rng(4 * label + i), (30, 50) if i == 0 else (30, 50, 3)
            pixels = rng.integers(0, 4096, shape).astype(np.uint16) if i == 0 else rng.integers(0, 256, shape, np.uint8)
            path = tmp_path / "photos" / name / f"{i}.png"
            Image.fromarray(pixels).save(path, **({"exif": exif} if i == 1 else {}))
    return tmp_path / "photos"


FOLDERS = REPOSITORY / "configs/datasets/image_folder.yaml"


def test_images_are_scaled_and_turned_as_the_set_says(extract_set, tmp_path, photos):
    code, text, error = extract_set(dataset=FOLDERS, root=photos, split="all")
    assert code == 0, error
    assert text.count("images of more than 8 bits a channel: 2;") == 1
    assert "set INPUT.WHITE_LEVEL 4095" in text
    keys = ("INPUT.WHITE_LEVEL", 255, "INPUT.ORIENTATION", "stored")
    assert extract_set(*keys, dataset=FOLDERS, root=photos, split="all", out="original")[0] == 0
    taken = {}
    for name, decoding in (("set", Decoding(0, "exif")), ("original", Decoding(255, "stored"))):
        features = LanceFeatures(tmp_path / name)
        taken[name] = features.take(range(8))[0]
        clip, weights = load_cached_clip("tiny", "", "fp16", "cpu")
        paths = features.data.to_table(columns=["path"])["path"].to_pylist()
        images = (build_preprocessing(clip.visual)(read_image(photos / path, decoding)) for path in paths)
        expected = torch.stack(list(build_image_encoder(clip.visual, weights).encode(images)))
        assert torch.equal(taken[name], expected.half())
    equal = [torch.equal(*rows) for rows in zip(*taken.values(), strict=True)]
    assert equal == [False, False, True, True] * 2
    message = extract_set(*keys, dataset=FOLDERS, root=photos, split="all")[2]
    assert "input.WHITE_LEVEL 0, not 255" in message
    assert "input.ORIENTATION exif, not stored" in message
    assert "INPUT.ORIENTATION" in extract_set("INPUT.ORIENTATION", "up", dataset=FOLDERS, root=photos, out="other")[2]


def test_a_set_that_an_earlier_version_began_is_completed_without_turning_and_scaling(
    extract_set, tmp_path, photos, monkeypatch
):
    keys = ("INPUT.WHITE_LEVEL", 255, "INPUT.ORIENTATION", "stored")
    flags = {"dataset": FOLDERS, "root": photos, "split": "all"}
    assert extract_set(*keys, **flags, out="original")[0] == 0
    write = extract.lance.write_dataset

    def write_older(table, path):
        metadata = json.loads(table.schema.metadata[extract.METADATA_KEY.encode()])
        metadata["settings"].pop("input")
        return write(table.replace_schema_metadata({extract.METADATA_KEY: json.dumps(metadata)}), path)

    with monkeypatch.context() as patch:
        patch.setattr(extract.lance, "write_dataset", write_older)
        assert extract_set("--shards", 2, **flags)[0] == 0
    code, _, error = extract_set("--shards", 2, "--shard", 2, **flags)
    assert code == 0, error
    features = [LanceFeatures(tmp_path / name).take(range(8))[0] for name in ("set", "original")]
    assert torch.equal(*features)
