"""Captions: the formats they come in, their splits, and what is wrong with a row."""

import json

import pytest

from dassl.data.datasets import build_dataset
from dassl.utils import UserError, derive_seed
from tests.datasets.shapes import config, write_images

NAMES = [f"flickr/{i}_a.jpg" for i in range(10)]


@pytest.fixture
def root(tmp_path):
    write_images(tmp_path / "photos", NAMES)
    return tmp_path


def build(root, content=None, file="captions.json", **values):
    if content is not None:
        text = content if isinstance(content, str) else json.dumps(content)
        (root / "photos" / file).write_text(text, encoding="utf-8")
    return build_dataset(config(root, "Captions", FOLDER="photos", CAPTIONS=file, **values))


def described(items) -> dict:
    return {item.name: item.captions for item in items}


def entries(names=NAMES, **more) -> list[dict]:
    return [{"image": name, "caption": f"picture {name}", **more} for name in names]


def test_the_common_list_with_either_slash(root):
    content = [
        {"image": "flickr\\0_a.jpg", "caption": ["one", "two"], "split": "train"},
        {"image": "flickr/1_a.jpg", "caption": "three", "split": "test"},
        {"image": ".\\flickr\\0_a.jpg", "caption": ["four"], "split": "train"},
    ]
    dataset = build(root, content)
    assert described(dataset.train_x) == {"flickr/0_a.jpg": ("one", "two", "four")}
    assert described(dataset.test) == {"flickr/1_a.jpg": ("three",)}
    assert dataset.train_x[0].impath == str(root / "photos/flickr/0_a.jpg")
    assert dataset.classnames == []


def test_karpathys_json_and_its_splits(root):
    splits = ["train", "restval", "val", "test", "test"]
    images = [
        {"filename": f"{i}_a.jpg", "filepath": "flickr", "split": split, "sentences": [{"raw": f"a {i}"}, {"raw": "b"}]}
        for i, split in enumerate(splits)
    ]
    dataset = build(root, {"images": images, "dataset": "flickr30k"})
    assert described(dataset.train_x) == {NAMES[0]: ("a 0", "b"), NAMES[1]: ("a 1", "b")}
    assert [list(described(split)) for split in (dataset.val, dataset.test)] == [[NAMES[2]], NAMES[3:5]]


def test_a_table_of_other_columns(root):
    """The usual ones: tests/fuzz/test_captions.py."""
    rows = (f"{name}\tschön, {name}\t{split}\n" for name, split in zip(NAMES, ["train", "val", "test"], strict=False))
    dataset = build(root, "filepath\ttitle\tsplit\n" + "".join(rows), file="pairs.csv")
    assert described(dataset.train_x) == {NAMES[0]: (f"schön, {NAMES[0]}",)}
    assert [list(described(split)) for split in (dataset.val, dataset.test)] == [NAMES[1:2], NAMES[2:3]]


def test_a_file_for_each_split(root):
    (root / "photos/test.json").write_text(json.dumps(entries(NAMES[5:7])))
    (root / "val.json").write_text(json.dumps(entries(NAMES[7:])))
    values = {"CAPTIONS_TEST": "test.json", "CAPTIONS_VAL": str(root / "val.json")}
    dataset = build(root, entries(NAMES[:5], split="test"), **values)  # the files tell, not the rows
    splits = (dataset.train_x, dataset.val, dataset.test)
    assert [list(described(split)) for split in splits] == [NAMES[:5], NAMES[7:], NAMES[5:7]]
    with pytest.raises(UserError, match=r"test.json, row 1: flickr/5_a.jpg is in two splits, train and test"):
        build(root, entries(NAMES[:6]), **values)
    with pytest.raises(UserError, match="CAPTIONS_VAL goes with CAPTIONS_TEST"):
        build(root, entries(), CAPTIONS_VAL="val.json")


def test_validation_images_alone_are_for_testing(root):
    dataset = build(root, entries(NAMES[:8], split="train") + entries(NAMES[8:], split="val"))
    assert list(described(dataset.test)) == NAMES[8:]
    assert not dataset.val


def test_without_splits_the_names_tell(root):
    one = build(root, entries(), TEST_PERCENT=0.3)
    other = build(root, entries(NAMES[::-1]), TEST_PERCENT=0.3)
    assert len(one.test) == 3
    assert len(one.train_x) == 7
    assert described(one.test) == described(other.test)
    assert described(one.test).keys() == set(sorted(NAMES, key=derive_seed)[:3]) != set(NAMES[:3])
    assert not described(one.test).keys() & described(one.train_x).keys()
    with pytest.raises(UserError, match="TEST_PERCENT"):
        build(root, entries(), TEST_PERCENT=1.0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "flickr/99.jpg", "caption": "a"}, r"no picture .*photos/flickr/99.jpg"),
        ({"image": "../secret.jpg", "caption": "a"}, r"\.\./secret.jpg is not in the folder .*photos"),
        ({"image": "..\\secret.jpg", "caption": "a"}, "is not in the folder"),
        ({"image": NAMES[1], "caption": " "}, "caption of flickr/1_a.jpg is empty"),
        ({"image": NAMES[1], "caption": ["a", 3]}, "no text"),
        ({"image": NAMES[1], "captions": ["a"]}, "no caption or title or text; it has image, captions"),
        ({"image": NAMES[1], "caption": "a", "split": "dev"}, 'split "dev" is none of train, restval, val, test'),
        ("flickr/1_a.jpg", "not an object"),
    ],
)
def test_a_wrong_row_is_named(root, row, message):
    write_images(root, ["secret.jpg"])
    with pytest.raises(UserError, match=f"captions.json, row 2: .*{message}"):
        build(root, [*entries(NAMES[:1]), row])


def test_a_wrong_row_of_a_table_is_named_by_its_line(root):
    table = f'image,caption\n{NAMES[0]},"two\nlines"\n'
    with pytest.raises(UserError, match=r"pairs.csv, row 4: there is no picture"):
        build(root, table + "flickr/none.jpg,x\n", file="pairs.csv")
    with pytest.raises(UserError, match=r"pairs.csv, row 4: .*quotation marks"):
        build(root, table + f"{NAMES[1]},one, two\n", file="pairs.csv")


def test_wrong_files(root):
    with pytest.raises(UserError, match=r"there is no file .*captions.json; DATASET.CAPTIONS"):
        build(root)
    with pytest.raises(UserError, match=r"there is no file .*none.csv; DATASET.CAPTIONS"):
        build(root, file="none.csv")
    with pytest.raises(UserError, match="not valid JSON"):
        build(root, "[{")
    with pytest.raises(UserError, match="neither a list"):
        build(root, {"a": 1})
    with pytest.raises(UserError, match=f"{NAMES[0]} has no split, but others have"):
        build(root, [*entries(NAMES[:1]), *entries(NAMES[1:], split="train")])
    with pytest.raises(UserError, match="no picture is for test"):
        build(root, entries(split="train"))
    with pytest.raises(UserError, match="NUM_SHOTS"):
        build(root, entries(), NUM_SHOTS=4)
