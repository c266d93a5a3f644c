"""ImageNet's test sets, and what is its validation set."""

import pytest

from dassl.data.datasets import build_dataset
from dassl.utils import UserError
from tests.common import WNIDS
from tests.datasets.shapes import config, config_of, write_images

FOLDERS = {
    "imagenet_a": "imagenet-adversarial/imagenet-a",
    "imagenet_r": "imagenet-rendition/imagenet-r",
    "imagenet_sketch": "imagenet-sketch/images",
}
V2 = "imagenetv2/imagenetv2-matched-frequency-format-val"


def write_names(path, names):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{folder} {name}\n" for folder, name in names.items()))


@pytest.fixture(params=FOLDERS)
def variant(request, tmp_path):
    """Config name and root: two images of each of three classes, a name too many, things that are no classes."""
    images = tmp_path / FOLDERS[request.param]
    write_images(images, (f"{wnid}/{i}.jpg" for wnid in reversed(WNIDS) for i in range(2)))
    (images / "README.txt").write_text("")
    (images / ".hidden").mkdir()
    write_names(images.parent / "classnames.txt", {"n00000000": "nothing", **WNIDS})
    return request.param, tmp_path


def test_a_variant_is_for_testing_alone(variant, capsys):
    cfg = config_of(*variant, NUM_SHOTS=1)
    assert cfg.DATASET.TEMPLATE == "a photo of a {}."
    dataset = build_dataset(cfg)
    assert dataset.classnames == list(WNIDS.values())
    assert [item.label for item in dataset.test] == [0, 0, 1, 1, 2, 2]
    assert dataset.train_x == dataset.test
    assert not dataset.val
    assert "shot" not in capsys.readouterr().out


def test_base_and_new_classes_of_a_variant(variant):
    base, new = (build_dataset(config_of(*variant, SUBSAMPLE_CLASSES=half)) for half in ("base", "new"))
    assert base.classnames == ["tench", "English springer"]
    assert [(item.label, item.classname) for item in new.test] == [(0, "church"), (0, "church")]


def test_names_of_a_variant_that_are_missing(variant):
    file, root = variant
    path = (root / FOLDERS[file]).parent / "classnames.txt"
    write_names(path, {"n01440764": "tench"})
    with pytest.raises(UserError, match="no name for the folders n02102040, n03028079"):
        build_dataset(config_of(file, root))
    path.unlink()
    with pytest.raises(UserError, match=r"no .*classnames.txt.* Copy it from imagenet/; tools/prepare_dataset.py \w+"):
        build_dataset(config_of(file, root))


def test_a_variant_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no folder .*imagenet-a. tools/prepare_dataset.py ImageNetA .* says where"):
        build_dataset(config_of("imagenet_a", tmp_path))


def test_imagenetv2_has_numbers_for_folders_and_keeps_the_names_of_a_part(tmp_path):
    write_images(tmp_path / V2, ("999/a.jpeg", "7/a.jpeg", "10/a.jpeg"))
    write_names(tmp_path / "imagenetv2/classnames.txt", {f"n{i:08}": f"class {i}" for i in range(1000)})
    dataset = build_dataset(config_of("imagenetv2", tmp_path))
    assert [item.label for item in dataset.test] == [0, 1, 2]
    assert [item.classname for item in dataset.test] == ["class 7", "class 10", "class 999"]
    assert dataset.test[0].impath == str(tmp_path / V2 / "7/a.jpeg")
    write_images(tmp_path / V2, ("1000/a.jpeg",))
    with pytest.raises(UserError, match="numbers from 0 to 999; there is 1000"):
        build_dataset(config_of("imagenetv2", tmp_path))


def test_imagenetv2_with_the_names_of_some_classes_would_be_wrong(tmp_path):
    write_images(tmp_path / V2, ("0/a.jpeg",))
    write_names(tmp_path / "imagenetv2/classnames.txt", WNIDS)
    with pytest.raises(UserError, match="has 3 names; it takes all 1,000 of ImageNet"):
        build_dataset(config_of("imagenetv2", tmp_path))


def test_the_original_validates_on_the_test_images(imagenet_root):
    ours = build_dataset(config(imagenet_root, "ImageNet", NUM_SHOTS=2))
    theirs = build_dataset(config(imagenet_root, "ImageNet", NUM_SHOTS=2, VAL_IS_TEST=True))
    test = [item.impath for item in theirs.test]
    assert len(test) == 6
    assert [item.impath for item in theirs.val] == test
    assert not {item.impath for item in ours.val} & set(test)
    assert [item.impath for item in ours.train_x] == [item.impath for item in theirs.train_x]
