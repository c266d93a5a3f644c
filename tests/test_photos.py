"""Runs on images of one's own: 16 bits a channel, turned by EXIF; and runs that were recorded before the keys."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import train
from dassl import engine
from dassl.config import get_cfg_default, merge_options
from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import Datum
from dassl.data.decoding import format_decoding
from dassl.data.features import build_feature_loader
from dassl.data.transforms import build_transform
from dassl.engine.checkpoint import diff_origins
from dassl.utils import Decoding, UserError, file_digest, read_image
from studies.tables.runs import find_differences, read_run
from tests.common import REPOSITORY
from tools import check_images, rerun

ORIGINAL = ("INPUT.WHITE_LEVEL", 255, "INPUT.ORIENTATION", "stored")
EXIF = Image.Exif()
EXIF[0x0112] = 6
NOTE = "images of more than 8 bits a channel"


def write_photo(path: Path, number: int, is_deep: bool = False, is_turned: bool = False) -> None:
    """Write a PNG of noise, wider than high, with values up to 4,780 if ``is_deep``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(number)
    pixels = (
        rng.integers(1000, 4781, (30, 50)).astype(np.uint16) if is_deep else rng.integers(0, 256, (30, 50, 3), np.uint8)
    )
    Image.fromarray(pixels).save(path, **({"exif": EXIF} if is_turned else {}))


@pytest.fixture
def photos(tmp_path) -> Path:
    """The root of class folders: in train and test, each class has an image of 16 bits and a turned one."""
    for label, name in enumerate(("cat", "dog")):
        for i in range(4):
            path = tmp_path / "photos" / ("test" if i < 2 else "train") / name / f"{i}.png"
            write_photo(path, 10 * label + i, is_deep=i % 2 == 0, is_turned=i % 2 == 1)
    return tmp_path / "photos"


@pytest.fixture
def plain(tmp_path) -> Path:
    """The root of class folders of images that no setting changes."""
    for split, label in (("train", 0), ("train", 1), ("test", 0), ("test", 1)):
        for i in range(2):
            write_photo(tmp_path / "plain" / split / ("cat", "dog")[label] / f"{split}{i}.png", 10 * label + i)
    return tmp_path / "plain"


@pytest.fixture
def short(run, photos, tmp_path):
    """A function that runs two epochs on ``photos``, or on ``root``, with a feature cache for this test."""

    def call(*arguments, root=photos, flags=(), **values):
        base = ("--root", root, "--dataset-config-file", REPOSITORY / "configs/datasets/image_folder.yaml", *flags)
        settings = ("OPTIM.MAX_EPOCH", 2, "FEATURES.CACHE_DIR", tmp_path / "cache", "DATALOADER.TRAIN_X.BATCH_SIZE", 4)
        return run(*base, *settings, *arguments, **values)

    return call


def make_older(folder: Path) -> None:
    """Remove the keys from a run's record, config and checkpoints, as if it had been recorded before them."""
    keys = ("WHITE_LEVEL", "ORIENTATION")
    if (record_file := folder / "result.json").exists():
        record = json.loads(record_file.read_text(encoding="utf-8"))
        for key in keys:
            record["config"]["INPUT"].pop(key)
        for entry in record["splits"].values():
            entry.pop("decoding", None)
        record_file.write_text(json.dumps(record), encoding="utf-8")

    def strip(text: str) -> str:
        config = yaml.safe_load(text)
        for key in keys:
            config["INPUT"].pop(key)
        return yaml.safe_dump(config)

    if (config_file := folder / "config.yaml").exists():
        config_file.write_text(strip(config_file.read_text(encoding="utf-8")), encoding="utf-8")
    for path in folder.glob("*/model*.pth.tar*"):
        checkpoint = torch.load(path, weights_only=True)
        origin = {key: value for key, value in checkpoint["origin"].items() if not key.endswith(" decoding")}
        checkpoint["origin"] = {**origin, "settings": strip(origin["settings"])}
        torch.save(checkpoint, path)
    if record_file.exists():
        record_file.touch()  # newer than the checkpoints


def test_a_run_scales_and_turns_and_says_so_once(short):
    first = short(out="first")
    assert first.code == 0, first.error
    assert first.log.count(NOTE) == 1
    assert f"{NOTE}: 4; in 4 of them, values go from 1,0" in first.log
    assert "so they stay dark" in first.log
    assert "set INPUT.WHITE_LEVEL 8191" in first.log
    record = first.record
    assert record["config"]["INPUT"]["WHITE_LEVEL"] == 0
    assert record["config"]["INPUT"]["ORIENTATION"] == "exif"
    assert yaml.safe_load((first.folder / "config.yaml").read_text(encoding="utf-8"))["INPUT"]["ORIENTATION"] == "exif"
    changes = {"scaled": 2, "white_level": 0, "turned": 2}
    assert {name: record["splits"][name]["decoding"] for name in ("train_x", "test")} == dict.fromkeys(
        ("train_x", "test"), changes
    )
    again = short(out="again")  # its features are stored
    assert again.log.count(NOTE) == 1
    plain = short("FEATURES.ENABLED", False, "DATALOADER.NUM_WORKERS", 2, out="plain")
    assert plain.log.count(NOTE) == 1
    predictions = [(result.folder / "predictions.csv").read_text(encoding="utf-8") for result in (first, again, plain)]
    assert predictions[0] == predictions[1] == predictions[2]


def test_the_originals_decoding_comes_back_and_other_decodings_give_other_predictions(short):
    results = [
        short(*keys, out=f"run{n}") for n, keys in enumerate(((), ORIGINAL, ORIGINAL[:2], ("INPUT.WHITE_LEVEL", 8191)))
    ]
    assert [result.code for result in results] == [0] * 4, results[-1].error
    predictions = {(result.folder / "predictions.csv").read_text(encoding="utf-8") for result in results}
    assert len(predictions) == 4
    assert "decoding" not in results[1].record["splits"]["test"]
    assert results[2].record["splits"]["test"]["decoding"] == {"turned": 2}
    assert "255 becomes white, and so does all above it" in results[1].log


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("INPUT.ORIENTATION", "upright"), 'unknown INPUT.ORIENTATION "upright"; Known: exif, stored'),
        (("INPUT.WHITE_LEVEL", -2), "INPUT.WHITE_LEVEL is -2; it must be at least -1"),
    ],
)
def test_other_values_are_refused_by_name(short, keys, message):
    result = short(*keys)
    assert result.code == 2
    assert message in result.error
    assert not result.folder.exists()


def test_the_papers_data_sets_are_decoded_as_stored_and_captions_as_photos(run, tmp_path):
    record = run(trainer="ZeroshotCLIP").record
    assert record["config"]["INPUT"]["ORIENTATION"] == "stored"
    assert all("decoding" not in entry for entry in record["splits"].values())
    cfg = get_cfg_default()
    cfg.DATASET.NAME = "Captions"
    engine.resolve_decoding(cfg, str(tmp_path / "absent"))
    assert (cfg.INPUT.WHITE_LEVEL, cfg.INPUT.ORIENTATION) == (0, "exif")


# ---- features ----


class KeyExtractor:
    """Collects the keys of the features that are asked for."""

    def __init__(self):
        self.keys: list[bytes] = []

    def __call__(self, requests, threads, name):
        self.keys += [key for key, _ in requests]
        return torch.zeros(len(requests), 1)


def list_keys(paths: list[Path], *settings, is_train: bool = False) -> list[bytes]:
    """Return the keys of the features of images, of one epoch with random transforms if ``is_train``."""
    cfg = get_cfg_default()
    merge_options(cfg, ["SEED", "1", "DATASET.ROOT", str(paths[0].parent), *map(str, settings)])
    images = [Datum(path, 0, classname="a") for path in paths]
    transform = build_transform(cfg, is_train=is_train)
    loader = build_data_loader(cfg, data_source=images, tfm=transform, is_train=is_train, batch_size=len(images))
    extractor = KeyExtractor()
    dataset = build_feature_loader(loader, extractor, "test").dataset
    return [dataset._feature_key(0 if is_train else None, index, {}) for index in range(len(images))]


def test_features_of_deep_and_turned_images_have_new_keys_and_all_others_their_old_ones(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        write_photo(path, i, is_deep=i == 1, is_turned=i == 2)
    texts = [f"{file_digest(path, 'blake2b')} " for path in paths]
    old = list_keys(paths, *ORIGINAL)
    cfg = get_cfg_default()
    transform = repr(build_transform(cfg, is_train=False))  # earlier versions: content, transform, seed
    assert old == [hashlib.blake2b(f"{text}{transform} ".encode(), digest_size=16).digest() for text in texts]
    new = list_keys(paths, "INPUT.ORIENTATION", "exif")
    assert [key in old for key in new] == [True, False, False]
    assert [key in old for key in list_keys(paths)] == [True, False, True]  # a data set that is not turned
    assert list_keys(paths, "INPUT.WHITE_LEVEL", 4095, "INPUT.ORIENTATION", "exif")[1] not in (*old, *new)


def test_the_keys_of_random_transforms_do_not_hold_the_settings(tmp_path):
    path = tmp_path / "a.png"
    write_photo(path, 0)
    transforms = ("INPUT.TRANSFORMS", "('random_flip','normalize')")
    keys = [
        list_keys([path], *transforms, *settings, is_train=True)
        for settings in (ORIGINAL, (), ("INPUT.WHITE_LEVEL", 9))
    ]
    assert keys[0] == keys[1] == keys[2]
    cfg = get_cfg_default()
    merge_options(cfg, ["SEED", "1", "DATASET.ROOT", str(tmp_path), *transforms])
    values = {key: value for key, value in cfg.INPUT.items() if key not in ("WHITE_LEVEL", "ORIENTATION")}
    loader = build_data_loader(cfg, data_source=[Datum(path, 0)], tfm=build_transform(cfg, is_train=True), batch_size=1)
    seed = loader.dataset.transform_seed(0, 0)
    text = f"{file_digest(path, 'blake2b')} {loader.dataset.transform!r} {values} {seed}"
    assert keys[0] == [hashlib.blake2b(text.encode(), digest_size=16).digest()]


# ---- runs that were recorded before the keys, and others to resume, evaluate and repeat ----


def test_a_run_resumes_as_it_began_and_is_refused_with_another_decoding(short, tmp_path):
    first = short(*ORIGINAL, "OPTIM.MAX_EPOCH", 2, "TRAIN.CHECKPOINT_FREQ", 1)
    assert first.code == 0, first.error
    expected = (first.folder / "predictions.csv").read_text(encoding="utf-8")
    make_older(first.folder)
    pointer = first.folder / "prompt_learner/checkpoint"
    pointer.write_text(pointer.read_text(encoding="utf-8").replace("-2", "-1"), encoding="utf-8")
    (first.folder / "prompt_learner/model.pth.tar-2").unlink()
    refused = short("INPUT.ORIENTATION", "exif", "TRAIN.CHECKPOINT_FREQ", 1)
    assert refused.code == 2
    for text in (
        "train_x decoding",
        "INPUT.WHITE_LEVEL 255, INPUT.ORIENTATION stored",
        "INPUT.ORIENTATION exif (2 images",
    ):
        assert text in refused.error
    resumed = short("TRAIN.CHECKPOINT_FREQ", 1)
    assert resumed.code == 0, resumed.error
    assert (resumed.folder / "predictions.csv").read_text(encoding="utf-8") == expected
    assert resumed.record["config"]["INPUT"]["ORIENTATION"] == "stored"
    assert resumed.record["config"]["INPUT"]["WHITE_LEVEL"] == 255


def test_a_run_that_scales_and_turns_is_refused_with_the_originals_decoding(short):
    assert short().code == 0
    refused = short(*ORIGINAL, "OPTIM.MAX_EPOCH", 2)
    assert refused.code == 2
    for text in ("INPUT.WHITE_LEVEL 0 (2 images", "INPUT.ORIENTATION exif (2 images", "INPUT.ORIENTATION stored"):
        assert text in refused.error
    assert short().code == 0


def test_a_refusal_gives_the_same_decoding_of_several_splits_once():
    origin = {f"{split} images": "a" for split in ("train_x", "val", "train_u")}
    turned = {f"{split} decoding": format_decoding({"turned": 1}) for split in ("train_x", "val")}
    (change,) = diff_origins({**origin, **turned}, origin)
    assert change.startswith("train_x and val decoding: INPUT.ORIENTATION exif (1 image turned) -> as in the original")
    turned["val decoding"] = format_decoding({"turned": 2})
    assert [change.partition(" ->")[0] for change in diff_origins({**origin, **turned}, origin)] == [
        "train_x decoding: INPUT.ORIENTATION exif (1 image turned)",
        "val decoding: INPUT.ORIENTATION exif (2 images turned)",
    ]


def test_settings_that_change_no_image_of_a_run_do_not_matter_to_a_resume(short, plain):
    first = short(root=plain)
    assert "decoding" not in first.record["splits"]["train_x"]
    assert NOTE not in first.log
    make_older(first.folder)
    for keys in (("INPUT.ORIENTATION", "exif"), ("INPUT.WHITE_LEVEL", 4095), ORIGINAL, ()):
        result = short(*keys, root=plain)
        assert result.code == 0, result.error


@pytest.mark.parametrize("trainer", ["ZeroshotCLIP", "CoOp"])
def test_a_finished_older_run_does_not_start_again(short, trainer):
    assert short(trainer=trainer).code == 0
    folder = short(trainer=trainer).folder
    make_older(folder)
    record = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert train.find_rerun_reason(folder, record["command"]) == ""


def test_an_evaluation_decodes_as_the_run_whose_model_it_loads(short, photos):
    for settings, values in ((ORIGINAL, (255, "stored")), ((), (0, "exif"))):
        first = short(*settings, out=f"run {values[0]}")
        if settings:
            make_older(first.folder)
        evaluated = short(flags=["--eval-only", "--model-dir", first.folder], out=f"eval {values[0]}")
        assert evaluated.code == 0, evaluated.error
        node = evaluated.record["config"]["INPUT"]
        assert (node["WHITE_LEVEL"], node["ORIENTATION"]) == values
        first_lines, lines = ((r.folder / "predictions.csv").read_text(encoding="utf-8") for r in (first, evaluated))
        assert first_lines == lines


def test_build_trainer_resolves_the_keys_for_other_repositories(tmp_path, photos, monkeypatch):
    seen = []
    monkeypatch.setattr(engine.TRAINER_REGISTRY, "get", lambda name: lambda cfg: seen.append(cfg))
    cfg = get_cfg_default()
    cfg.SEED, cfg.DATASET.NAME, cfg.OUTPUT_DIR = 1, "ImageFolder", str(tmp_path / "out")
    cfg.freeze()
    engine.build_trainer(cfg)
    assert (seen[0].INPUT.WHITE_LEVEL, seen[0].INPUT.ORIENTATION) == (0, "exif")
    assert seen[0].is_frozen()
    assert cfg.INPUT.ORIENTATION == ""
    bad = get_cfg_default()
    bad.SEED, bad.INPUT.ORIENTATION = 1, "up"
    with pytest.raises(UserError, match="INPUT.ORIENTATION"):
        engine.build_trainer(bad)


def test_a_rerun_of_an_older_record_decodes_as_it_did(short, tmp_path, capsys):
    first = short(*ORIGINAL)
    make_older(first.folder)
    code = rerun.main([str(first.folder), "--output-dir", str(tmp_path / "again")])
    text, error = capsys.readouterr()
    assert code == 0, text + error
    assert "The same results, and the same tensors" in text


def test_tables_tell_decodings_apart_only_where_they_change_images(short, plain, tmp_path):
    runs = {"new": short(out="new"), "original": short(*ORIGINAL, out="original"), "old": short(*ORIGINAL, out="old")}
    runs |= {"plain": short(root=plain, out="plain"), "plain old": short(root=plain, out="plain old")}
    for name in ("old", "plain old"):
        make_older(runs[name].folder)

    def differences(*names):
        return {*find_differences([read_run(runs[name].folder) for name in names])}

    assert differences("new", "old") == differences("new", "original") == {"white level", "orientation"}
    assert differences("original", "old") == set()
    assert differences("plain", "plain old") == set()


def test_seeds_whose_shots_are_not_turned_stay_together_with_those_whose_are(short, photos):
    for path in (photos / "test").rglob("*.png"):
        write_photo(path, 1)
    first = short("DATASET.NUM_SHOTS", 1, out="first")
    record = first.record
    other = first.folder.with_name("other")
    shutil.copytree(first.folder, other)
    record["splits"]["train_x"].pop("decoding", None)
    record["splits"]["test"].pop("decoding", None)
    (other / "result.json").write_text(json.dumps(record), encoding="utf-8")
    assert "decoding" in first.record["splits"]["train_x"]
    assert find_differences([read_run(first.folder), read_run(other)]) == {}


# ---- tools ----


def test_check_images_reads_images_as_a_run_would(tmp_path, capsys):
    for name in ("cat", "dog"):
        for i in range(2):
            write_photo(tmp_path / name / f"{i}.png", i)
    Image.fromarray(np.array([[0, np.nan]], np.float32)).save(tmp_path / "cat/2.tiff")
    command = ["--root", str(tmp_path), "--dataset-config-file", str(REPOSITORY / "configs/datasets/image_folder.yaml")]
    assert check_images.main(command) == 1
    assert "cat/2.tiff: it has values that are infinite or no numbers (NaN)" in capsys.readouterr().out
    assert check_images.main([*command, "INPUT.WHITE_LEVEL", "255"]) == 0


def test_training_images_in_memory_are_decoded_as_the_run_says(tmp_path):
    write_photo(tmp_path / "a.png", 0, is_deep=True, is_turned=True)
    cfg = get_cfg_default()
    merge_options(
        cfg, ["SEED", "1", "INPUT.WHITE_LEVEL", "8191", "INPUT.ORIENTATION", "exif", "INPUT.NO_TRANSFORM", "True"]
    )
    image = Datum(tmp_path / "a.png", 0)
    dataset = build_data_loader(cfg, data_source=[image], is_train=True, batch_size=1).dataset
    expected = np.asarray(read_image(image.impath, Decoding(8191, "exif")))
    assert expected.shape == (50, 30, 3)
    for _ in range(2):
        assert np.array_equal(np.asarray(dataset[0]["img"]), expected)
