"""Data sets with published splits: layouts, few shots, and refused split files and missing images."""

import json
import random

import pytest

from dassl.data.datasets import Datum, build_dataset
from dassl.utils import UserError
from datasets.few_shot_split import FewShotSplit
from tests.common import REPOSITORY
from tests.datasets.shapes import CLASSES, COUNTS, SPLIT_FILES, make_config, write_images, write_split_file

AIRCRAFT = ("DHC-8-100", "707-320", "Model B200", "A340-300")  # not sorted


@pytest.fixture
def aircraft(tmp_path):
    """Return the root of FGVCAircraft with four variants, whose image lists are not in label order."""
    base = tmp_path / "fgvc_aircraft"
    lines = {
        split: [f"{split}{i}{label} {AIRCRAFT[label]}" for i in range(count) for label in (2, 0, 3, 1)]
        for split, count in COUNTS.items()
    }
    write_images(base / "images", (f"{line.split()[0]}.jpg" for split in lines.values() for line in split))
    (base / "variants.txt").write_text("".join(f"{name}\n" for name in AIRCRAFT))
    for split in lines:
        (base / f"images_variant_{split}.txt").write_text("\n".join(lines[split]) + "\n")
    return tmp_path


@pytest.mark.parametrize("file", SPLIT_FILES)
def test_a_split_file_gives_paths_labels_class_names_and_splits(file, tmp_path):
    path = write_split_file(file, tmp_path)
    cfg = make_config(file, tmp_path)
    name, images, _, template = SPLIT_FILES[file]
    assert (name, template) == (cfg.DATASET.NAME, cfg.DATASET.TEMPLATE)
    dataset = build_dataset(cfg)
    assert dataset.classnames == list(CLASSES)
    for items, split in ((dataset.train_x, "train"), (dataset.val, "val"), (dataset.test, "test")):
        expected = [[str(tmp_path / images / p), *label] for p, *label in json.loads(path.read_text())[split]]
        assert [[item.impath, item.label, item.classname] for item in items] == expected


def test_the_label_of_an_aircraft_is_the_line_number_of_its_variant(aircraft):
    cfg = make_config("fgvc_aircraft", aircraft)
    assert cfg.DATASET.TEMPLATE == "a photo of a {}, a type of aircraft."
    dataset = build_dataset(cfg)
    assert dataset.classnames == list(AIRCRAFT)
    assert (len(dataset.train_x), len(dataset.val), len(dataset.test)) == (24, 20, 8)
    assert [item.label for item in dataset.test[:4]] == [2, 0, 3, 1]
    assert dataset.test[0].impath == str(aircraft / "fgvc_aircraft/images/test02.jpg")


def test_missing_aircraft_and_unknown_variants_are_refused(aircraft):
    base = aircraft / "fgvc_aircraft"
    with open(base / "images_variant_test.txt", "a", encoding="utf-8") as file:
        file.write("1234 Concorde\n")
    with pytest.raises(UserError, match='images_variant_test.txt: "1234 Concorde" is not'):
        build_dataset(make_config("fgvc_aircraft", aircraft))
    (base / "variants.txt").unlink()
    with pytest.raises(UserError, match="cannot read .*variants.txt"):
        build_dataset(make_config("fgvc_aircraft", aircraft))
    (base / "images").rename(base / "elsewhere")
    with pytest.raises(UserError, match="no folder .*fgvc_aircraft/images. python tools/prepare_dataset.py FGVC"):
        build_dataset(make_config("fgvc_aircraft", aircraft))


@pytest.mark.parametrize(("shots", "val_shots", "seed"), [(2, 2, 1), (5, 4, 2)])
def test_few_shots_are_drawn_for_training_and_then_for_validation(tmp_path, shots, val_shots, seed):
    """Both are drawn by one generator of Python's random, class by class in the order of the split file."""
    path = write_split_file("dtd", tmp_path)
    cfg = make_config("dtd", tmp_path, NUM_SHOTS=shots)
    cfg.SEED = seed
    dataset = build_dataset(cfg)
    content = json.loads(path.read_text())
    random.seed(seed)
    for items, split, count in ((dataset.train_x, "train", shots), (dataset.val, "val", val_shots)):
        expected = []
        for name in reversed(CLASSES):
            expected += random.sample([p for p, _, classname in content[split] if classname == name], count)
        assert [item.impath for item in items] == [str(tmp_path / "dtd/images" / p) for p in expected]
    assert len(dataset.test) == 6


def test_a_second_run_uses_the_stored_split(tmp_path, capsys):
    """There are more shots than the at most 4 validation images of a class."""
    write_split_file("dtd", tmp_path)
    first, again = (build_dataset(make_config("dtd", tmp_path, NUM_SHOTS=5)) for _ in range(2))
    output = capsys.readouterr().out
    assert (output.count("Few-shot split kept: "), output.count("Few-shot split: ")) == (1, 1)
    for expected, actual in ((first.train_x, again.train_x), (first.val, again.val)):
        assert [item.impath for item in actual] == [item.impath for item in expected]


def test_val_is_test_does_not_replace_the_validation_images_of_a_split_file(tmp_path):
    write_split_file("dtd", tmp_path)
    dataset = build_dataset(make_config("dtd", tmp_path, VAL_IS_TEST=True))
    assert {item.impath.rpartition("/")[2].partition("_")[0] for item in dataset.val} == {"val"}


def test_the_fingerprint_depends_on_the_split_of_each_image(tmp_path):
    images = [Datum(tmp_path / f"{number}.jpg", 0, classname="ant") for number in range(4)]
    two, three = (FewShotSplit(tmp_path, 1, 1, images[:count], images[count:]) for count in (2, 3))
    assert two.fingerprint != three.fingerprint


ENTRY = ["ant/train_0.jpg", 0, "ant"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda split: {"train": [], "test": []}, "must hold train, val, test"),
        (lambda split: {**split, "train": []}, "train must be a list of images"),
        (lambda split: {**split, "val": [ENTRY, ["ant/x.jpg", 0]]}, r"val\[1\] must be \[path, label, class name\]"),
        (lambda split: {**split, "val": [["../../secret.jpg", 0, "ant"]]}, r"\.\./\.\./secret.jpg is no path .* below"),
        (lambda split: {**split, "val": [["/etc/passwd", 0, "ant"]]}, "/etc/passwd is no path of a file below"),
        (lambda split: {**split, "val": [["C:\\x.jpg", 0, "ant"]]}, "is no path of a file below"),
        (lambda split: {**split, "train": [["ant/train_0.jpg", 1, "ant"]]}, "labels of training .* 1 stands for 0"),
        (lambda split: {**split, "val": [["ant/val_0.jpg", 9, "fly"]]}, "class 9 .* has no training image"),
        (lambda split: {**split, "val": [["ant/val_0.jpg", 0, "fly"]]}, 'class 0 has two names, "ant" and "fly"'),
    ],
)
def test_a_wrong_split_file_is_refused(change, message, tmp_path):
    path = write_split_file("dtd", tmp_path)
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(UserError, match=message):
        build_dataset(make_config("dtd", tmp_path))


@pytest.mark.parametrize("file", ["bee/test_1.jpg", "bee"])
def test_missing_images_are_refused_with_their_number_and_the_first_path(file, tmp_path):
    write_split_file("dtd", tmp_path)
    (tmp_path / "dtd/images" / file).rename(tmp_path / "elsewhere")
    count, first = (1, "test_1") if file.endswith("jpg") else (13, "test_0")
    with pytest.raises(UserError, match=rf"^{count} images .* the first is .*dtd/images/bee/{first}\.jpg$"):
        build_dataset(make_config("dtd", tmp_path))


def test_missing_images_and_a_missing_or_damaged_split_file_give_one_message_with_a_hint(run, tmp_path):
    root = tmp_path / "sets"
    arguments = ("--root", root, "--dataset-config-file", REPOSITORY / "configs/datasets/oxford_pets.yaml")
    result = run(*arguments)
    assert result.code == 2
    assert f"no folder {root}/oxford_pets/images" in result.error
    assert f"python tools/prepare_dataset.py OxfordPets --root {root}" in result.error
    path = write_split_file("oxford_pets", root)
    path.write_text(path.read_text()[:-9])
    assert "split_zhou_OxfordPets.json is not valid JSON" in run(*arguments).error
    path.unlink()
    result = run(*arguments)
    assert result.code == 2
    assert result.error.count("error: ") == 1
    assert "Traceback" not in result.error
    assert f"no {path}" in result.error
    assert "https://drive.google.com/file/d/1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs" in result.error
    assert f"tools/prepare_dataset.py OxfordPets --root {root} --own-split" in result.error
