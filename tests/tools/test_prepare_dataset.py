"""tools/prepare_dataset.py: from torchvision's downloads to the folders of the data sets."""

import os
import urllib.error
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from dassl.data.datasets import build_dataset
from datasets.sources import draw_split, find_dataset
from tests.datasets.shapes import SPLIT_FILES, make_config, write_images
from tests.tools.downloads import DOWNLOADS, SPLITS, matlab, numbered
from tools.prepare_dataset import main as prepare

VARIANTS = " ".join(f"images_variant_{split}.txt" for split in SPLITS)


@pytest.fixture
def internet(monkeypatch):
    """Let torchvision's download write the files of downloads.py; return the list of requested addresses."""
    import torchvision

    addresses = []

    def download_url(url, root, filename=None, md5=None, **_):
        addresses.append(url)
        os.makedirs(root, exist_ok=True)
        name = filename or os.path.basename(url)
        (content,) = (files[name] for files in DOWNLOADS.values() if name in files)
        Path(root, name).write_bytes(content)

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", download_url)
    monkeypatch.setattr(torchvision.datasets.flowers102, "download_url", download_url)
    monkeypatch.setattr(torchvision.datasets.flowers102, "check_integrity", lambda path, md5: os.path.isfile(path))
    return addresses


@pytest.mark.parametrize(
    ("name", "files", "classes", "sizes"),
    [
        ("caltech101", "101_ObjectCategories", "airplane, crab", (10, 4, 6)),
        ("oxford_pets", "images annotations", "abyssinian, american_bulldog", (12, 4, 4)),
        ("oxford_flowers", "jpg imagelabels.mat setid.mat", "hard-leaved pocket orchid, pink primrose", (6, 2, 12)),
        ("food101", "images meta", "apple_pie", (4, 1, 5)),
        ("dtd", "images labels", "banded, woven", (12, 2, 6)),
        ("eurosat", "2750", "Forest, Sea or Lake", (10, 4, 6)),
        ("sun397", "SUN397", "abbey, indoor apse", (10, 4, 6)),
        ("fgvc_aircraft", f"images variants.txt {VARIANTS}", "Yak-42", (3, 3, 3)),
    ],
)
def test_a_download_becomes_a_data_set(name, files, classes, sizes, internet, tmp_path, capsys):
    root = tmp_path / "data"
    assert prepare([name, "--root", str(root)]) == 0
    (base,) = root.iterdir()  # nothing else is left
    assert set(os.listdir(base)) == set(files.split())
    if name in SPLIT_FILES:
        path = base / f"split_zhou_{SPLIT_FILES[name][0]}.json"
        assert f"fetch CoOp's split, {path.name}, from https://drive.google.com/file/d/" in capsys.readouterr().out
        assert prepare([name, "--root", str(root), "--own-split"]) == 0
        assert "do not compare with published ones" in capsys.readouterr().out
    dataset = build_dataset(make_config(name, root))
    assert dataset.classnames == classes.split(", ")
    splits = (dataset.train_x, dataset.val, dataset.test)
    assert tuple(map(len, splits)) == sizes
    assert len({item.impath for split in splits for item in split}) == sum(sizes)
    if name == "oxford_pets":  # the test images of the data set's authors stay test images
        assert all(item.impath.endswith(("_1.jpg", "_2.jpg")) for item in dataset.test)
    before = len(internet)
    assert prepare([name, "--root", str(root)]) == 0
    assert len(internet) == before


@pytest.mark.parametrize("spelling", ["oxford_pets", "OxfordPets", "oxfordpets", "oxford-pets"])
def test_a_data_set_is_found_under_several_spellings(spelling):
    assert find_dataset(spelling).__name__ == "OxfordPets"


def test_an_existing_split_file_stays(tmp_path):
    write_images(tmp_path / "eurosat/2750", ["Forest/Forest_1.jpg"])
    path = tmp_path / "eurosat/split_zhou_EuroSAT.json"
    path.write_text("CoOp's")
    assert prepare(["EuroSAT", "--root", str(tmp_path), "--own-split"]) == 0
    assert path.read_text() == "CoOp's"


def test_a_drawn_split_is_the_same_each_time():
    train = {f"{name}/{i}.jpg": name for name in ("b", "a") for i in range(10)}
    split = draw_split(train, {})
    assert split == draw_split(dict(reversed(train.items())), {})
    assert [len(split[name]) for name in ("train", "val", "test")] == [10, 4, 6]
    assert {tuple(entry[1:]) for entry in split["test"]} == {(0, "a"), (1, "b")}
    files = [[path.rpartition("/")[2] for path, label, _ in split["train"] if label == number] for number in (0, 1)]
    assert files[0] != files[1]  # drawn at random


def test_a_download_that_is_cut_is_tried_again(internet, tmp_path, monkeypatch):
    import torchvision

    download_url, cuts = torchvision.datasets.utils.download_url, iter([ConnectionResetError(), TimeoutError()])

    def cut_twice(*args, **kwargs):
        if error := next(cuts, None):
            raise error
        download_url(*args, **kwargs)

    monkeypatch.setattr(torchvision.datasets.utils, "download_url", cut_twice)
    assert prepare(["eurosat", "--root", str(tmp_path), "--own-split"]) == 0
    assert len(internet) == 1


@pytest.mark.parametrize("name", ["food101", "oxford_flowers"])
def test_without_a_network_there_is_one_message(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", Mock(side_effect=urllib.error.URLError("no network")))
    assert prepare([name, "--root", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1
    assert "no network" in error
    assert f"its images belong into {tmp_path}" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "file"), [("food101", "food-101.tar.gz"), ("eurosat", "EuroSAT.zip")])
def test_a_truncated_archive_leaves_no_file(name, file, internet, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(DOWNLOADS[name], file, DOWNLOADS[name][file][:-100])
    assert prepare([name, "--root", str(tmp_path)]) == 2
    assert "error: cannot download" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_images_are_moved_last_since_they_mark_a_complete_data_set(internet, tmp_path, monkeypatch):
    moved, rename = [], Path.rename
    monkeypatch.setattr(Path, "rename", lambda self, target: moved.append(self.name) or rename(self, target))
    assert prepare(["fgvc_aircraft", "--root", str(tmp_path)]) == 0
    assert len(moved) == 6
    assert moved[-1] == "images"


def test_files_to_fetch_by_hand_are_named_with_their_folder(tmp_path, capsys):
    assert prepare(["imagenetv2", "--root", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "imagenetv2-matched-frequency.tar.gz" in error
    assert str(tmp_path / "imagenetv2/imagenetv2-matched-frequency-format-val") in error


def test_a_split_is_drawn_for_files_fetched_by_hand(tmp_path):
    base = tmp_path / "stanford_cars"
    write_images(base, numbered("cars_train/{:05}.jpg", "cars_test/{:05}.jpg"))
    (base / "devkit").mkdir()
    names = np.array(["Audi TT RS Coupe 2012", "Acura RL Sedan 2011"], dtype=object)
    (base / "devkit/cars_meta.mat").write_bytes(matlab(class_names=names))
    rows = [(f"{i:05}.jpg", i % 2 + 1) for i in range(1, 11)]
    annotations = np.array(rows, dtype=[("fname", object), ("class", object)])
    for file in ("devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat"):
        (base / file).write_bytes(matlab(annotations=annotations))
    assert prepare(["stanford_cars", "--root", str(tmp_path), "--own-split"]) == 0
    dataset = build_dataset(make_config("stanford_cars", tmp_path))
    assert dataset.classnames == ["2011 Acura RL Sedan", "2012 Audi TT RS Coupe"]
    assert {item.impath.split("/")[-2] for item in dataset.test} == {"cars_test"}
    assert next(item.label for item in dataset.test if item.impath.endswith("00001.jpg")) == 0
    assert [len(split) for split in (dataset.train_x, dataset.val, dataset.test)] == [8, 2, 10]


def test_no_split_is_drawn_without_lists_or_images(tmp_path, capsys):
    write_images(tmp_path / "oxford_pets/images", ["Abyssinian_1.jpg"])
    assert prepare(["oxford_pets", "--root", str(tmp_path), "--own-split"]) == 2
    assert "cannot draw a split of OxfordPets" in capsys.readouterr().err  # its lists are missing
    (tmp_path / "ucf101/UCF-101-midframes").mkdir(parents=True)
    assert prepare(["ucf101", "--root", str(tmp_path), "--own-split"]) == 2
    assert "no images (.jpg) below" in capsys.readouterr().err
    assert not (tmp_path / "ucf101/split_zhou_UCF101.json").exists()


def test_variants_of_imagenet_get_its_class_names(tmp_path, capsys):
    write_images(tmp_path / "imagenet-adversarial/imagenet-a", ["n01440764/a.jpg"])
    for _ in range(2):
        assert prepare(["imagenet_a", "--root", str(tmp_path)]) == 0
    assert "is there already" in capsys.readouterr().out
    lines = (tmp_path / "imagenet-adversarial/classnames.txt").read_text().splitlines()
    assert len(lines) == 1000
    assert build_dataset(make_config("imagenet_a", tmp_path)).classnames == ["tench"]


def test_wrong_arguments_are_refused_with_a_message(tmp_path, capsys):
    assert prepare(["oxford_pet", "--root", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert 'did you mean "OxfordPets"?' in error
    assert "tools/prepare_imagenette.py prepares ImageNette" in error
    assert prepare(["fgvc_aircraft", "--root", str(tmp_path), "--own-split"]) == 2
    assert "FGVCAircraft needs no split file" in capsys.readouterr().err
