"""The data sets that are class folders: what they list, and how they split it."""

import numpy as np
import pytest
from PIL import Image

from dassl.data.datasets import Datum, build_dataset
from dassl.utils import UserError
from datasets import class_folders
from datasets.digits import NAMES, read_scans
from datasets.protocol import subsample_classes
from tests.datasets.shapes import config


def test_digits_are_an_ordinary_data_set(digits_root):
    dataset = build_dataset(config(digits_root, "Digits"))
    assert dataset.classnames == list(NAMES)
    assert (len(dataset.train_x), len(dataset.test)) == (901, 896)
    assert not dataset.val
    per_class = [sum(d.label == label for d in dataset.test) for label in range(10)]
    assert min(per_class) >= 87


def test_ink_from_0_to_16_is_rounded_to_grey_levels():
    from sklearn.datasets import load_digits

    levels = np.array([round(ink * 255 / 16) for ink in range(17)])
    pixels, digits = read_scans()
    expected = load_digits()
    assert np.array_equal(pixels, levels[expected.images.astype(int)])
    assert np.array_equal(digits, expected.target)


def test_digits_are_written_on_first_use_whole_or_not_at_all(tmp_path, monkeypatch):
    save, saved = Image.Image.save, []

    def break_off(self, path, *arguments):
        saved.append(path)
        if len(saved) == 50:
            raise KeyboardInterrupt
        save(self, path, *arguments)

    monkeypatch.setattr(Image.Image, "save", break_off)
    with pytest.raises(KeyboardInterrupt):
        build_dataset(config(tmp_path, "Digits"))
    assert list(tmp_path.iterdir()) == []


def test_however_many_class_folders_there_are(imagenet_root):
    dataset = build_dataset(config(imagenet_root, "ImageNette"))
    assert dataset.classnames == ["tench", "English springer", "church"]
    assert (len(dataset.train_x), len(dataset.test)) == (15, 6)
    assert [d.label for d in dataset.test] == [0, 0, 1, 1, 2, 2]


def test_validation_images_are_neither_trained_on_nor_tested(imagenet_root):
    dataset = build_dataset(config(imagenet_root, "ImageNet", NUM_SHOTS=2))
    train, val, test = ({d.impath for d in split} for split in (dataset.train_x, dataset.val, dataset.test))
    assert len(val) == 6
    assert not train & val
    assert not val & test


def test_base_and_new_classes():
    items = [Datum(str(i), label=i % 5, classname="abcde"[i % 5]) for i in range(10)]
    (base,), (new,) = (subsample_classes(items, subsample=half) for half in ("base", "new"))
    assert [(d.label, d.classname) for d in base[:3]] == [(0, "a"), (1, "b"), (2, "c")]
    assert [(d.label, d.classname) for d in new[:2]] == [(0, "d"), (1, "e")]
    assert len(base) + len(new) == 10
    with pytest.raises(UserError, match="the data set has one class"):
        subsample_classes(items[::5], subsample="new")


def test_images_of_a_class_come_by_name_whatever_the_order_of_the_file_system(imagenet_root, monkeypatch):
    """The few shots are places in this order."""
    real = class_folders.scan_folder
    monkeypatch.setattr(class_folders, "scan_folder", lambda folder: dict(sorted(real(folder).items(), reverse=True)))
    dataset = build_dataset(config(imagenet_root, "ImageNet"))
    for items in (dataset.train_x, dataset.test):
        assert [item.impath for item in items] == sorted(item.impath for item in items)
