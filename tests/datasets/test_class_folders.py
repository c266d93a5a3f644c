"""Data sets in class folders: their images, labels, few shots, and base and new classes."""

import numpy as np
import pytest
from PIL import Image

from dassl.data.datasets import Datum, build_dataset
from dassl.utils import UserError
from datasets import class_folders
from datasets.digits import DIGIT_NAMES, read_scans
from datasets.protocol import subsample_classes
from tests.datasets.shapes import config


def test_digits_have_ten_classes_and_two_halves(digits_root):
    dataset = build_dataset(config(digits_root, "Digits"))
    assert dataset.classnames == list(DIGIT_NAMES)
    assert (len(dataset.train_x), len(dataset.test)) == (901, 896)
    assert not dataset.val
    per_class = [sum(d.label == label for d in dataset.test) for label in range(10)]
    assert min(per_class) >= 87


def test_scan_values_from_0_to_16_are_rounded_to_grey_levels_from_0_to_255():
    from sklearn.datasets import load_digits

    levels = np.array([round(value * 255 / 16) for value in range(17)])
    pixels, digits = read_scans()
    expected = load_digits()
    assert np.array_equal(pixels, levels[expected.images.astype(int)])
    assert np.array_equal(digits, expected.target)


def test_an_interruption_while_the_digits_are_written_leaves_no_files(tmp_path, monkeypatch):
    save, saved = Image.Image.save, []

    def interrupt(self, path, *args):
        saved.append(path)
        if len(saved) == 50:
            raise KeyboardInterrupt
        save(self, path, *args)

    monkeypatch.setattr(Image.Image, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_dataset(config(tmp_path, "Digits"))
    assert list(tmp_path.iterdir()) == []


def test_each_class_folder_is_a_class_in_sorted_order(imagenet_root):
    dataset = build_dataset(config(imagenet_root, "ImageNette"))
    assert dataset.classnames == ["tench", "English springer", "church"]
    assert (len(dataset.train_x), len(dataset.test)) == (15, 6)
    assert [d.label for d in dataset.test] == [0, 0, 1, 1, 2, 2]


def test_validation_images_are_neither_training_nor_test_images(imagenet_root):
    dataset = build_dataset(config(imagenet_root, "ImageNet", NUM_SHOTS=2))
    train, val, test = ({d.impath for d in split} for split in (dataset.train_x, dataset.val, dataset.test))
    assert len(val) == 6
    assert not train & val
    assert not val & test


def test_base_and_new_are_the_halves_of_the_classes_with_labels_from_0():
    items = [Datum(str(i), label=i % 5, classname="abcde"[i % 5]) for i in range(10)]
    (base,), (new,) = (subsample_classes(items, subsample=half) for half in ("base", "new"))
    assert [(d.label, d.classname) for d in base[:3]] == [(0, "a"), (1, "b"), (2, "c")]
    assert [(d.label, d.classname) for d in new[:2]] == [(0, "d"), (1, "e")]
    assert len(base) + len(new) == 10
    with pytest.raises(UserError, match="each class of the data set is a base class"):
        subsample_classes(items[::5], subsample="new")


def test_base_classes_come_from_a_file_and_all_others_are_new(imagenet_root, tmp_path, capsys):
    path = tmp_path / "base.txt"

    def build(lines, subsample="base"):
        path.write_text(lines, encoding="utf-8-sig")
        values = {"SUBSAMPLE_CLASSES": subsample, "BASE_CLASSES": str(path)}
        return build_dataset(config(imagenet_root, "ImageNet", **values))

    base = build("church\r\n\n tench\n")
    assert base.classnames == ["tench", "church"]  # in the order of the labels
    assert sorted({(item.label, item.classname) for item in base.test}) == [(0, "tench"), (1, "church")]
    new = build("church\ntench", "new")
    assert {(item.label, item.classname) for item in new.train_x} == {(0, "English springer")}
    assert len(build("church", "all").classnames) == 3
    assert "Note: DATASET.BASE_CLASSES does nothing" in capsys.readouterr().out
    with pytest.raises(UserError, match=r'base.txt, line 2: .* no class "churches"; among its 3 names are church'):
        build("tench\nchurches")
    with pytest.raises(UserError, match='base.txt, line 3: the class "tench" is named twice'):
        build("tench\n\ntench")
    with pytest.raises(UserError, match="base.txt names no class"):
        build(" \n")
    with pytest.raises(UserError, match="each class of the data set is a base class"):
        build("church\ntench\nEnglish springer", "new")
    path = tmp_path / "absent.txt" / "base.txt"
    with pytest.raises(UserError, match="cannot read .*absent.txt/base.txt"):
        build_dataset(config(imagenet_root, "ImageNet", SUBSAMPLE_CLASSES="new", BASE_CLASSES=str(path)))


def test_images_of_a_class_are_sorted_by_name_whatever_the_order_of_the_file_system(imagenet_root, monkeypatch):
    """The few shots are drawn from this order."""
    scan = class_folders.scan_folder
    monkeypatch.setattr(class_folders, "scan_folder", lambda folder: dict(sorted(scan(folder).items(), reverse=True)))
    dataset = build_dataset(config(imagenet_root, "ImageNet"))
    for items in (dataset.train_x, dataset.test):
        assert [item.impath for item in items] == sorted(item.impath for item in items)
