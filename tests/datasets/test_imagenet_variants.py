"""ImageNet's variants, which have test images alone, and ImageNet's validation images."""

import pytest

from dassl.data.datasets import build_dataset
from dassl.utils import UserError
from tests.common import WNIDS
from tests.datasets.shapes import config, make_config, write_images

FOLDERS = {
    "imagenet_a": "imagenet-adversarial/imagenet-a",
    "imagenet_r": "imagenet-rendition/imagenet-r",
    "imagenet_sketch": "imagenet-sketch/images",
}
V2 = "imagenetv2/imagenetv2-matched-frequency-format-val"


def write_classnames(path, names):
    """Write a file with the class name of each folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{folder} {name}\n" for folder, name in names.items()))


@pytest.fixture(params=FOLDERS)
def variant(request, tmp_path):
    """Return the config file and the root of a variant with two images in each of three classes.

    There are an unused class name, a file and a hidden folder, too.
    """
    images = tmp_path / FOLDERS[request.param]
    write_images(images, (f"{wnid}/{i}.jpg" for wnid in reversed(WNIDS) for i in range(2)))
    (images / "README.txt").write_text("")
    (images / ".hidden").mkdir()
    write_classnames(images.parent / "classnames.txt", {"n00000000": "nothing", **WNIDS})
    return request.param, tmp_path


def test_a_variant_has_its_test_images_for_training_and_draws_no_shots(variant, capsys):
    cfg = make_config(*variant, NUM_SHOTS=1)
    assert cfg.DATASET.TEMPLATE == "a photo of a {}."
    dataset = build_dataset(cfg)
    assert dataset.classnames == list(WNIDS.values())
    assert [item.label for item in dataset.test] == [0, 0, 1, 1, 2, 2]
    assert dataset.train_x == dataset.test
    assert not dataset.val
    assert "shot" not in capsys.readouterr().out


def test_a_variant_has_base_and_new_classes(variant):
    base, new = (build_dataset(make_config(*variant, SUBSAMPLE_CLASSES=half)) for half in ("base", "new"))
    assert base.classnames == ["tench", "English springer"]
    assert [(item.label, item.classname) for item in new.test] == [(0, "church"), (0, "church")]


def test_a_variant_without_some_or_all_class_names_is_refused(variant):
    file, root = variant
    path = (root / FOLDERS[file]).parent / "classnames.txt"
    write_classnames(path, {"n01440764": "tench"})
    with pytest.raises(UserError, match="no name for the folders n02102040, n03028079"):
        build_dataset(make_config(file, root))
    path.unlink()
    with pytest.raises(UserError, match=r"no .*classnames.txt.* Copy it from imagenet/; tools/prepare_dataset.py \w+"):
        build_dataset(make_config(file, root))


def test_a_missing_variant_is_refused_with_a_hint(tmp_path):
    with pytest.raises(UserError, match="no folder .*imagenet-a. tools/prepare_dataset.py ImageNetA .* says where"):
        build_dataset(make_config("imagenet_a", tmp_path))


def test_the_folders_of_imagenetv2_are_numbers_of_the_lines_with_their_class_names(tmp_path):
    write_images(tmp_path / V2, ("999/a.jpeg", "7/a.jpeg", "10/a.jpeg"))
    write_classnames(tmp_path / "imagenetv2/classnames.txt", {f"n{i:08}": f"class {i}" for i in range(1000)})
    dataset = build_dataset(make_config("imagenetv2", tmp_path))
    assert [item.label for item in dataset.test] == [0, 1, 2]
    assert [item.classname for item in dataset.test] == ["class 7", "class 10", "class 999"]
    assert dataset.test[0].impath == str(tmp_path / V2 / "7/a.jpeg")
    write_images(tmp_path / V2, ("1000/a.jpeg",))
    with pytest.raises(UserError, match="numbers from 0 to 999; there is 1000"):
        build_dataset(make_config("imagenetv2", tmp_path))


def test_imagenetv2_without_all_1000_class_names_is_refused(tmp_path):
    write_images(tmp_path / V2, ("0/a.jpeg",))
    write_classnames(tmp_path / "imagenetv2/classnames.txt", WNIDS)
    with pytest.raises(UserError, match="has 3 names; it takes all 1,000 of ImageNet"):
        build_dataset(make_config("imagenetv2", tmp_path))


def test_val_is_test_makes_the_test_images_the_validation_images_as_in_coops_code(imagenet_root):
    dataset = build_dataset(config(imagenet_root, "ImageNet", NUM_SHOTS=2))
    val_is_test = build_dataset(config(imagenet_root, "ImageNet", NUM_SHOTS=2, VAL_IS_TEST=True))
    test = [item.impath for item in val_is_test.test]
    assert len(test) == 6
    assert [item.impath for item in val_is_test.val] == test
    assert not {item.impath for item in dataset.val} & set(test)
    assert [item.impath for item in dataset.train_x] == [item.impath for item in val_is_test.train_x]
