"""The few shots that were drawn are kept with the data, and used for the images they were drawn from alone."""

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
    """A data set with validation images of its own, and a function that makes it with two shots."""
    root = tmp_path / "data"
    write_split_file("dtd", root)

    def build(root=root, shots=2, **values):
        return build_dataset(config(root, "DescribableTextures", NUM_SHOTS=shots, **values))

    return root, build


def drawn(dataset) -> list[list[tuple]]:
    """The shots and validation images, wherever the data set lies."""
    return [
        [(item.impath.split("/data/")[-1], item.label, item.classname) for item in split]
        for split in (dataset.train_x, dataset.val)
    ]


def change(path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_it_is_readable_and_relative(textures):
    root, build = textures
    dataset = build()
    text = (root / STORED).read_text()
    content = json.loads(text)
    assert (content["shots"], content["seed"]) == (2, 1)
    assert str(root) not in text
    assert [(f"dtd/{path}", label, name) for path, label, name in content["train"]] == drawn(dataset)[0]
    assert [(f"dtd/{path}", label, name) for path, label, name in content["val"]] == drawn(dataset)[1]
    assert dataset.split_source == {"file": str(root / STORED), "fingerprint": content["fingerprint"]}


def test_it_is_what_the_next_run_takes_even_elsewhere(textures, tmp_path, capsys):
    root, build = textures
    content = drawn(build())
    stored = json.loads((root / STORED).read_text())
    change(root / STORED, train=stored["train"][::-1])  # so that it is not what the seed draws
    before = (root / STORED).read_bytes()
    shutil.move(root, tmp_path / "moved/data")
    dataset = build(tmp_path / "moved/data")
    assert drawn(dataset) == [content[0][::-1], content[1]]
    assert all(os.path.isfile(item.impath) for item in dataset.train_x)
    assert (tmp_path / "moved/data" / STORED).read_bytes() == before
    assert "Note" not in capsys.readouterr().out
    assert drawn(build(tmp_path / "moved/data", SUBSAMPLE_CLASSES="new"))[0] == [
        (path, 0, name) for path, label, name in content[0][::-1] if label == 2
    ]


def test_it_is_drawn_anew_where_the_listing_has_changed(textures, capsys):
    """By an image more in one class, and another name of another class."""
    root, build = textures
    build()
    write_images(root / "dtd/images", ["bee/new.jpg"])
    path = root / "dtd/split_zhou_DescribableTextures.json"
    content = json.loads(path.read_text().replace('"cow"', '"cattle"'))
    change(path, **{**content, "train": [*content["train"], ["bee/new.jpg", 1, "bee"]]})
    capsys.readouterr()
    found = drawn(build())
    said = capsys.readouterr().out
    assert said.count("Note: ") == 1
    assert "it was drawn from other images or classes, in another order, or with another seed" in said
    shutil.rmtree(root / "dtd/split_fewshot")
    assert found == drawn(build())  # what is drawn where there never was a split


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
def test_a_file_that_was_tampered_with_is_not_used(textures, values, reason, capsys):
    root, build = textures
    expected = drawn(build())
    before = (root / STORED).read_text()
    change(root / STORED, **values) if isinstance(values, dict) else (root / STORED).write_text(values)
    tampered = (root / STORED).read_text()
    capsys.readouterr()
    assert drawn(build()) == expected
    note = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Note: "))
    assert all(part in note for part in (str(root / STORED), reason))
    assert [path.read_text() for path in sorted((root / STORED).parent.iterdir())] == [before, tampered]


def test_data_that_cannot_be_written_only_give_a_note(textures, capsys):
    root, build = textures
    (root / "dtd/split_fewshot").write_text("in the way of the folder")
    expected = drawn(build())
    assert "Note: the few-shot split is not kept: cannot make the folder" in capsys.readouterr().out
    (root / "dtd/split_fewshot").unlink()
    assert drawn(build()) == expected


def test_validation_images_that_are_left_over(imagenet_root, capsys):
    """Whether they are asked for or not, the shots are the same, and one file has both."""

    def build(**values):
        return drawn(build_dataset(config(imagenet_root, "ImageNet", NUM_SHOTS=2, **values)))

    path = imagenet_root / "imagenet/split_fewshot/shot_2-seed_1.json"
    as_original = build(VAL_IS_TEST=True)
    assert "val" not in json.loads(path.read_text())
    own = build()
    assert as_original[0] == own[0]
    assert len(json.loads(path.read_text())["val"]) == len(own[1]) == 6
    before = path.read_bytes()
    assert build() == own
    assert build(VAL_IS_TEST=True) == as_original
    assert path.read_bytes() == before
    content = json.loads(before)
    taken = next(entry for entry in content["train"] if entry[1] == content["val"][0][1])
    change(path, val=[taken, *content["val"][1:]])  # a validation image that is trained on is none
    capsys.readouterr()
    assert build() == own
    assert f'is not used: "{taken[0]}" is not among the images' in capsys.readouterr().out
    assert path.read_bytes() == before


def test_a_folder_of_ones_own(tmp_path, monkeypatch, capsys):
    write_images(tmp_path, (f"{pet}/{i}.jpg" for pet in ("cat", "dog") for i in range(6)))
    monkeypatch.chdir(tmp_path)
    first, second = (build_dataset(config(".", "ImageFolder", FOLDER=".", NUM_SHOTS=1)) for _ in range(2))
    assert drawn(first) == drawn(second)
    assert second.classnames == ["cat", "dog"]  # the folder of the split is no class
    assert (tmp_path / "split_fewshot/shot_1-seed_1.json").is_file()
    assert "Note" not in capsys.readouterr().out


def original(root, dataset, parts=("train", "val"), place="/home/kaiyang/data", protocol=4) -> None:
    """Keep a data set's split as the original does, who had his data elsewhere."""
    splits = {"train": dataset.train_x, "val": dataset.val}
    moved = {
        part: [Datum(item.impath.replace(str(root), place), item.label, 0, item.classname) for item in splits[part]]
        for part in parts
    }
    shutil.rmtree(root / "dtd/split_fewshot", ignore_errors=True)
    (root / "dtd/split_fewshot").mkdir()
    with open((root / STORED).with_suffix(".pkl"), "wb") as file:
        pickle.dump(moved, file, protocol=protocol)


@pytest.mark.parametrize(("place", "protocol"), [("/home/kaiyang/data", 2), ("C:\\data", 4), ("/data", 5)])
def test_a_split_of_the_original_is_used_and_kept_as_ours(textures, place, protocol, capsys):
    root, build = textures
    seed2 = config(root, "DescribableTextures", NUM_SHOTS=2)
    seed2.SEED = 2
    theirs = build_dataset(seed2)  # not what seed 1 draws
    assert drawn(theirs) != drawn(build())
    original(root, theirs, place=place, protocol=protocol)
    assert drawn(build()) == drawn(theirs)
    assert f"The original's few-shot split {(root / STORED).with_suffix('.pkl')} fits" in capsys.readouterr().out
    (root / STORED).write_text("{")
    assert drawn(build()) == drawn(theirs)  # the pickle is still there
    assert f"Note: {root / STORED} is not used: it is damaged" in capsys.readouterr().out
    (root / STORED).with_suffix(".pkl").unlink()
    assert drawn(build()) == drawn(theirs)


def test_a_split_of_the_original_without_validation_images(textures):
    root, build = textures
    expected = drawn(build())
    dataset = build()
    dataset._train_x = dataset.train_x[::-1]
    original(root, dataset, parts=("train",))
    assert drawn(build()) == [expected[0][::-1], expected[1]]
    assert set(json.loads((root / STORED).read_text())) >= {"train", "val"}
    assert not list((root / STORED).parent.glob("*.json-*"))  # the same split, with more in it


def test_a_stale_split_of_the_original_is_not_used(textures, capsys):
    root, build = textures
    expected = drawn(build())
    dataset = build()
    dataset._train_x = [Datum("/old/dtd/images/ant/gone.jpg", 0, 0, "ant"), *dataset.train_x[1:]]
    original(root, dataset)
    assert drawn(build()) == expected
    reason = '"/old/dtd/images/ant/gone.jpg" is not among the images'
    assert f"shot_2-seed_1.pkl is not used: {reason}" in capsys.readouterr().out
    for content in (b"\x80\x04", pickle.dumps([1]), pickle.dumps({"train": [1]}), pickle.dumps({"val": []})):
        (root / STORED).unlink()
        (root / STORED).with_suffix(".pkl").write_bytes(content)
        capsys.readouterr()
        assert drawn(build()) == expected
        assert "shot_2-seed_1.pkl is not used: it cannot be read" in capsys.readouterr().out
