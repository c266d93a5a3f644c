"""DATASET.FEWSHOT_FILE: a run trains on exactly the shots of a file, under the data set's classes."""

import json

import pytest

from dassl.data.datasets import build_dataset
from dassl.utils import UserError, file_digest
from tests.datasets.shapes import COUNTS, config, write_split_file

ANT, BEE = [["images/ant/train_0.jpg", 0, "ant"], ["images/bee/train_1.jpg", 1, "bee"]]
RELABELLED = ["images/ant/train_2.jpg", 1, "bee"]


@pytest.fixture
def build(tmp_path):
    """Return a function that writes a few-shot file and builds a data set of three classes with it."""
    write_split_file("dtd", tmp_path)

    def build_with_file(content, name="DescribableTextures", **values):
        path = tmp_path / "shots.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return build_dataset(config(tmp_path, name, FEWSHOT_FILE=str(path), **values))

    return build_with_file


def list_entries(items, folder) -> list[list]:
    """Return [path below ``folder``, label, class name] of images."""
    return [[item.impath.removeprefix(f"{folder}/dtd/"), item.label, item.classname] for item in items]


def test_a_run_trains_on_exactly_the_shots_of_a_file_with_the_labels_in_it(build, tmp_path, capsys):
    """One label is wrong, one image is repeated, and the class cow has no shots."""
    shots = [BEE, ANT, RELABELLED, BEE]
    dataset = build({"train": shots, "shots": 1, "seed": 1, "fingerprint": "0"})
    assert list_entries(dataset.train_x, tmp_path) == shots
    assert (dataset.classnames, dataset.num_classes) == (["ant", "bee", "cow"], 3)
    assert dataset.lab2cname == {0: "ant", 1: "bee", 2: "cow"}
    output = capsys.readouterr().out
    summary = "4 images (3 different), 1 to 3 a class, 1 label differs from the data set's"
    assert f"Few-shot file: {tmp_path / 'shots.json'}, {summary}\n" in output
    assert "Note: no training images for the class cow" in output
    assert not (tmp_path / "dtd/split_fewshot").exists()
    labels = [item.label for item in dataset.val]  # as many as the largest class has shots
    assert [labels.count(label) for label in range(3)] == [3, 3, 3]
    assert len(dataset.test) == 3 * COUNTS["test"]


def test_validation_images_are_those_of_the_file_or_drawn_from_the_other_images(build, tmp_path, imagenet_root):
    val = ["images/cow/val_3.jpg", 2, "cow"]
    assert list_entries(build({"train": [ANT], "val": [val]}).val, tmp_path) == [val]
    assert build({"train": [ANT], "val": []}).val == []
    folder = imagenet_root / "imagenet"
    images = sorted((folder / "images/train/n01440764").iterdir())
    entries = [[str(path.relative_to(folder)), 0, "tench"] for path in images[:3]]
    path = tmp_path / "tench.json"
    path.write_text(json.dumps({"train": entries}), encoding="utf-8")
    dataset = build_dataset(config(imagenet_root, "ImageNet", FEWSHOT_FILE=str(path)))
    assert {item.impath for item in dataset.val if item.label == 0} == {str(path) for path in images[3:]}
    assert [sum(item.label == label for item in dataset.val) for label in range(3)] == [2, 3, 3]
    test = build_dataset(config(imagenet_root, "ImageNet", FEWSHOT_FILE=str(path), VAL_IS_TEST=True))
    assert [item.impath for item in test.val] == [item.impath for item in test.test]


def test_an_edited_copy_of_a_stored_split_is_used_as_it_is(build, tmp_path, capsys):
    """The same edit in the stored file is set aside, and the note says how to train on it."""
    drawn = build_dataset(config(tmp_path, "DescribableTextures", NUM_SHOTS=2))
    stored = tmp_path / "dtd/split_fewshot/shot_2-seed_1.json"
    content = json.loads(stored.read_text(encoding="utf-8"))
    path, label, _ = content["train"][0]
    content["train"][0] = [path, (label + 1) % 3, ["ant", "bee", "cow"][(label + 1) % 3]]
    stored.write_text(json.dumps(content), encoding="utf-8")
    capsys.readouterr()
    edited = build(content, NUM_SHOTS=2)
    assert "1 label differs" in capsys.readouterr().out
    assert list_entries(edited.train_x, tmp_path) == content["train"]
    assert list_entries(edited.val, tmp_path) == content["val"]
    clean = build_dataset(config(tmp_path, "DescribableTextures", NUM_SHOTS=2))
    assert list_entries(clean.train_x, tmp_path) == list_entries(drawn.train_x, tmp_path)
    assert "To train on exactly its images, name it in DATASET.FEWSHOT_FILE" in capsys.readouterr().out


def test_shots_of_the_base_classes_alone_are_no_shots_of_the_new_ones(build, capsys):
    base = build({"train": [ANT, BEE]}, SUBSAMPLE_CLASSES="base")
    assert (base.classnames, len(base.train_x)) == (["ant", "bee"], 2)
    with pytest.raises(UserError, match="shots.json has no image of the new classes"):
        build({"train": [ANT, BEE]}, SUBSAMPLE_CLASSES="new")
    build({"train": [ANT, BEE]}, NUM_SHOTS=16)
    assert "Note: DATASET.NUM_SHOTS 16 does nothing" in capsys.readouterr().out
    with pytest.raises(UserError, match="FEWSHOT_FILE and SUBSAMPLE_CLASSES need classes"):
        build({"train": [ANT]}, name="Captions")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "shots.json is not valid JSON"),
        ([ANT], 'shots.json has no list "train"'),
        ({"train": []}, 'shots.json has no list "train"'),
        ({"train": "ant"}, "train must be a list"),
        ({"train": [ANT], "val": {}}, "val must be a list"),
        ({"train": [ANT, [*ANT, 1]]}, r"train\[1\] must be \[path, label, class name\]"),
        ({"train": [["images/ant/test_0.jpg", 0, "ant"]]}, r"train\[0\]: 'images/ant/test_0.jpg' is a test image"),
        ({"train": [ANT], "val": [["images/ant/test_1.jpg", 0, "ant"]]}, r"val\[0\]: .* is a test image"),
        (
            {"train": [["ant/train_0.jpg", 0, "ant"]]},
            "no training image of .* such as images/cow/train_0",
        ),
        ({"train": [["images/ant/../ant/train_0.jpg", 0, "ant"]]}, "is no training image"),
        ({"train": [["images/ant/train_0.jpg", 0, "bee"]]}, "is 0 'bee', but in the data set class 0 is 'ant'"),
        ({"train": [["images/ant/train_0.jpg", 3, "dog"]]}, "is 3 'dog', but in the data set there is no such label"),
        ({"train": [ANT], "val": [BEE, ANT]}, "images/ant/train_0.jpg is in train and in val"),
    ],
)
def test_a_wrong_file_is_refused_by_its_entry(build, content, message):
    with pytest.raises(UserError, match=message):
        build(content)


def test_the_record_names_the_file_and_a_resume_with_other_shots_is_refused(run, digits_root, tmp_path):
    entries = []
    for label, name in ((0, "zero"), (7, "seven")):
        images = sorted((digits_root / f"digits/images/train/{label}").iterdir())
        entries += [[f"images/train/{label}/{path.name}", label, name] for path in images[:3]]
    path = tmp_path / "shots.json"
    path.write_text(json.dumps({"train": entries[:5]}), encoding="utf-8")
    arguments = ("DATASET.FEWSHOT_FILE", path, "OPTIM.MAX_EPOCH", 1)
    result = run(*arguments)
    assert result.code == 0, result.error
    assert "5 images, 2 to 3 a class, 0 labels differ" in result.log
    assert "no training images for the classes one, two, three, four, five, six, eight, nine" in result.log
    assert "* total: 896" in result.log
    record = result.record
    assert len(record["classnames"]) == 10
    assert record["splits"]["train_x"]["images"] == 5
    split = record["few_shot_split"]
    assert (split["file"], split["fingerprint"], split["changed_labels"]) == (str(path), file_digest(path), 0)
    path.write_text(json.dumps({"train": entries}), encoding="utf-8")
    other = run(*arguments)
    assert other.code == 2
    assert "train_x images" in other.error
