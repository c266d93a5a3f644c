"""Few-shot splits are stored in the data set's folder, and used for the images that they were drawn from alone."""

import json
import os
import pickle
import shutil

import pytest

from dassl.data.datasets import Datum, build_dataset
from tests.datasets.shapes import config, write_images, write_split_file

STORED = "dtd/split_fewshot/shot_2-seed_1.json"


@pytest.fixture
def textures(tmp_path):
    """Return the root of a data set with validation images, and a function that builds it with two shots."""
    root = tmp_path / "data"
    write_split_file("dtd", root)

    def build(root=root, shots=2, **values):
        return build_dataset(config(root, "DescribableTextures", NUM_SHOTS=shots, **values))

    return root, build


def list_shots(dataset) -> list[list[tuple]]:
    """Return (path below the root, label, class name) of the training and the validation images."""
    return [
        [(item.impath.split("/data/")[-1], item.label, item.classname) for item in split]
        for split in (dataset.train_x, dataset.val)
    ]


def change_json(path, **values) -> None:
    """Replace values of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_stored_split_has_relative_paths_and_is_recorded_in_split_source(textures):
    root, build = textures
    dataset = build()
    text = (root / STORED).read_text()
    content = json.loads(text)
    assert (content["shots"], content["seed"]) == (2, 1)
    assert str(root) not in text
    assert [(f"dtd/{path}", label, name) for path, label, name in content["train"]] == list_shots(dataset)[0]
    assert [(f"dtd/{path}", label, name) for path, label, name in content["val"]] == list_shots(dataset)[1]
    assert dataset.split_source == {"file": str(root / STORED), "fingerprint": content["fingerprint"]}


def test_a_stored_split_is_used_after_the_data_has_moved(textures, tmp_path, capsys):
    root, build = textures
    shots = list_shots(build())
    stored = json.loads((root / STORED).read_text())
    change_json(root / STORED, train=stored["train"][::-1])  # so that it is not what the seed draws
    before = (root / STORED).read_bytes()
    shutil.move(root, tmp_path / "moved/data")
    dataset = build(tmp_path / "moved/data")
    assert list_shots(dataset) == [shots[0][::-1], shots[1]]
    assert all(os.path.isfile(item.impath) for item in dataset.train_x)
    assert (tmp_path / "moved/data" / STORED).read_bytes() == before
    assert "Note" not in capsys.readouterr().out
    assert list_shots(build(tmp_path / "moved/data", SUBSAMPLE_CLASSES="new"))[0] == [
        (path, 0, name) for path, label, name in shots[0][::-1] if label == 2
    ]


def test_a_new_split_is_drawn_if_the_images_or_class_names_have_changed(textures, capsys):
    """One class has a new image, another class has a new name."""
    root, build = textures
    build()
    write_images(root / "dtd/images", ["bee/new.jpg"])
    path = root / "dtd/split_zhou_DescribableTextures.json"
    content = json.loads(path.read_text().replace('"cow"', '"cattle"'))
    change_json(path, **{**content, "train": [*content["train"], ["bee/new.jpg", 1, "bee"]]})
    capsys.readouterr()
    shots = list_shots(build())
    output = capsys.readouterr().out
    assert output.count("Note: ") == 1
    assert "it was drawn from other images or classes, in another order, or with another seed" in output
    shutil.rmtree(root / "dtd/split_fewshot")
    assert shots == list_shots(build())  # as without a stored split


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"seed": 2}, "with another seed"),
        ({"train": [["images/ant/test_0.jpg", 0, "ant"]]}, '"images/ant/test_0.jpg" is not among the images'),
        ({"train": [["images/ant/val_0.jpg", 0, "ant"]]}, "is not among the images"),
        ({"train": [["images/ant/train_0.jpg", 1, "bee"]]}, 'is of class "0 ant" now, and was of "1 bee"'),
        ({"train": [["images/ant/train_0.jpg", 0, "ant"]] * 2}, "it does not hold 2 different"),
        ({"val": []}, "it does not hold 2 different"),
        ({"train": [["images/ant/train_0.jpg", "0", "ant"]]}, "it does not list"),
        ({"train": [["\x1b[2J", 0, "ant"]]}, r"\u001b[2J"),
        ({"fingerprint": "0"}, "it was drawn from other images"),
        ("{", "it is damaged"),
        ("{}", "it is damaged"),
    ],
)
def test_a_changed_split_file_is_renamed_and_the_split_drawn_again(textures, values, reason, capsys):
    root, build = textures
    expected = list_shots(build())
    before = (root / STORED).read_text()
    change_json(root / STORED, **values) if isinstance(values, dict) else (root / STORED).write_text(values)
    tampered = (root / STORED).read_text()
    capsys.readouterr()
    assert list_shots(build()) == expected
    note = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Note: "))
    assert all(text in note for text in (str(root / STORED), reason))
    assert [path.read_text() for path in sorted((root / STORED).parent.iterdir())] == [before, tampered]


def test_a_folder_that_cannot_be_written_gives_a_note_and_the_same_split(textures, capsys):
    root, build = textures
    (root / "dtd/split_fewshot").write_text("a file where the folder should be")
    expected = list_shots(build())
    assert "Note: the few-shot split is not kept: cannot make the folder" in capsys.readouterr().out
    (root / "dtd/split_fewshot").unlink()
    assert list_shots(build()) == expected


def test_validation_images_from_the_training_images_are_added_to_the_stored_split(imagenet_root, capsys):
    """With or without them, the training shots are the same, and one file holds both."""

    def build(**values):
        return list_shots(build_dataset(config(imagenet_root, "ImageNet", NUM_SHOTS=2, **values)))

    path = imagenet_root / "imagenet/split_fewshot/shot_2-seed_1.json"
    without_val = build(VAL_IS_TEST=True)
    assert "val" not in json.loads(path.read_text())
    with_val = build()
    assert without_val[0] == with_val[0]
    assert len(json.loads(path.read_text())["val"]) == len(with_val[1]) == 6
    before = path.read_bytes()
    assert build() == with_val
    assert build(VAL_IS_TEST=True) == without_val
    assert path.read_bytes() == before
    content = json.loads(before)
    shot = next(entry for entry in content["train"] if entry[1] == content["val"][0][1])
    change_json(path, val=[shot, *content["val"][1:]])  # a training image among the validation images
    capsys.readouterr()
    assert build() == with_val
    assert f'is not used: "{shot[0]}" is not among the images' in capsys.readouterr().out
    assert path.read_bytes() == before


def test_the_split_of_an_image_folder_in_the_working_directory_is_stored_there(tmp_path, monkeypatch, capsys):
    write_images(tmp_path, (f"{pet}/{i}.jpg" for pet in ("cat", "dog") for i in range(6)))
    monkeypatch.chdir(tmp_path)
    first, second = (build_dataset(config(".", "ImageFolder", FOLDER=".", NUM_SHOTS=1)) for _ in range(2))
    assert list_shots(first) == list_shots(second)
    assert second.classnames == ["cat", "dog"]  # the folder of the split is not a class
    assert (tmp_path / "split_fewshot/shot_1-seed_1.json").is_file()
    assert "Note" not in capsys.readouterr().out


def _move(item, root, data_root) -> Datum:
    """Return an image with its path moved from ``root`` to ``data_root``."""
    return Datum(item.impath.replace(root, data_root), item.label, 0, item.classname)


def write_coop_pickle(root, dataset, splits=("train", "val"), data_root="/home/kaiyang/data", protocol=4) -> None:
    """Store a data set's split as CoOp's code does, with absolute paths in the data root of another machine."""
    items = {"train": dataset.train_x, "val": dataset.val}
    moved = {split: [_move(item, str(root), data_root) for item in items[split]] for split in splits}
    shutil.rmtree(root / "dtd/split_fewshot", ignore_errors=True)
    (root / "dtd/split_fewshot").mkdir()
    with open((root / STORED).with_suffix(".pkl"), "wb") as file:
        pickle.dump(moved, file, protocol=protocol)


@pytest.mark.parametrize(("data_root", "protocol"), [("/home/kaiyang/data", 2), ("C:\\data", 4), ("/data", 5)])
def test_a_split_of_coops_code_is_used_and_stored_as_json(textures, data_root, protocol, capsys):
    root, build = textures
    cfg = config(root, "DescribableTextures", NUM_SHOTS=2)
    cfg.SEED = 2
    dataset = build_dataset(cfg)
    assert list_shots(dataset) != list_shots(build())  # seed 1 draws other shots
    write_coop_pickle(root, dataset, data_root=data_root, protocol=protocol)
    assert list_shots(build()) == list_shots(dataset)
    assert f"The original's few-shot split {(root / STORED).with_suffix('.pkl')} fits" in capsys.readouterr().out
    (root / STORED).write_text("{")
    assert list_shots(build()) == list_shots(dataset)  # from the pickle
    assert f"Note: {root / STORED} is not used: it is damaged" in capsys.readouterr().out
    (root / STORED).with_suffix(".pkl").unlink()
    assert list_shots(build()) == list_shots(dataset)


def test_validation_images_are_drawn_for_a_split_of_coops_code_that_has_none(textures):
    root, build = textures
    expected = list_shots(build())
    dataset = build()
    dataset._train_x = dataset.train_x[::-1]
    write_coop_pickle(root, dataset, splits=("train",))
    assert list_shots(build()) == [expected[0][::-1], expected[1]]
    assert set(json.loads((root / STORED).read_text())) >= {"train", "val"}
    assert not list((root / STORED).parent.glob("*.json-*"))  # the file was extended, not replaced


def test_a_split_of_coops_code_with_missing_images_or_damage_is_not_used(textures, capsys):
    root, build = textures
    expected = list_shots(build())
    dataset = build()
    dataset._train_x = [Datum("/old/dtd/images/ant/gone.jpg", 0, 0, "ant"), *dataset.train_x[1:]]
    write_coop_pickle(root, dataset)
    assert list_shots(build()) == expected
    reason = '"/old/dtd/images/ant/gone.jpg" is not among the images'
    assert f"shot_2-seed_1.pkl is not used: {reason}" in capsys.readouterr().out
    for content in (b"\x80\x04", pickle.dumps([1]), pickle.dumps({"train": [1]}), pickle.dumps({"val": []})):
        (root / STORED).unlink()
        (root / STORED).with_suffix(".pkl").write_bytes(content)
        capsys.readouterr()
        assert list_shots(build()) == expected
        assert "shot_2-seed_1.pkl is not used: it cannot be read" in capsys.readouterr().out
