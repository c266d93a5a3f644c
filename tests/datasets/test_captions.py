"""The data set Captions: file formats, splits, and refused files and rows."""

import json

import pytest

from dassl.data.datasets import build_dataset
from dassl.utils import UserError, derive_seed
from tests.datasets.shapes import config, write_images

NAMES = [f"flickr/{i}_a.jpg" for i in range(10)]


@pytest.fixture
def root(tmp_path):
    """Return a data root with the images ``NAMES`` in the folder photos."""
    write_images(tmp_path / "photos", NAMES)
    return tmp_path


def build(root, content=None, file="captions.json", **values):
    """Write the caption file ``content`` and build the data set from it, with these ``values`` of DATASET."""
    if content is not None:
        text = content if isinstance(content, str) else json.dumps(content)
        (root / "photos" / file).write_text(text, encoding="utf-8")
    return build_dataset(config(root, "Captions", FOLDER="photos", CAPTIONS=file, **values))


def captions_by_name(items) -> dict:
    """Return the captions of each image, by its path below the folder."""
    return {item.name: item.captions for item in items}


def make_rows(names=NAMES, **fields) -> list[dict]:
    """Return a row with one caption and these ``fields`` for each image."""
    return [{"image": name, "caption": f"picture {name}", **fields} for name in names]


def test_a_list_in_json_may_use_either_slash_and_several_rows_for_an_image(root):
    content = [
        {"image": "flickr\\0_a.jpg", "caption": ["one", "two"], "split": "train"},
        {"image": "flickr/1_a.jpg", "caption": "three", "split": "test"},
        {"image": ".\\flickr\\0_a.jpg", "caption": ["four"], "split": "train"},
    ]
    dataset = build(root, content)
    assert captions_by_name(dataset.train_x) == {"flickr/0_a.jpg": ("one", "two", "four")}
    assert captions_by_name(dataset.test) == {"flickr/1_a.jpg": ("three",)}
    assert dataset.train_x[0].impath == str(root / "photos/flickr/0_a.jpg")
    assert dataset.classnames == []


def test_karpathys_json_is_read_with_its_splits_and_restval_counts_as_train(root):
    splits = ["train", "restval", "val", "test", "test"]
    images = [
        {"filename": f"{i}_a.jpg", "filepath": "flickr", "split": split, "sentences": [{"raw": f"a {i}"}, {"raw": "b"}]}
        for i, split in enumerate(splits)
    ]
    dataset = build(root, {"images": images, "dataset": "flickr30k"})
    assert captions_by_name(dataset.train_x) == {NAMES[0]: ("a 0", "b"), NAMES[1]: ("a 1", "b")}
    assert [list(captions_by_name(split)) for split in (dataset.val, dataset.test)] == [[NAMES[2]], NAMES[3:5]]


def test_a_table_with_the_columns_filepath_title_and_split_is_read(root):
    """tests/fuzz/test_captions.py has the usual columns."""
    rows = (f"{name}\tschön, {name}\t{split}\n" for name, split in zip(NAMES, ["train", "val", "test"], strict=False))
    dataset = build(root, "filepath\ttitle\tsplit\n" + "".join(rows), file="pairs.csv")
    assert captions_by_name(dataset.train_x) == {NAMES[0]: (f"schön, {NAMES[0]}",)}
    assert [list(captions_by_name(split)) for split in (dataset.val, dataset.test)] == [NAMES[1:2], NAMES[2:3]]


def test_each_of_several_files_is_a_split_whatever_its_rows_name(root):
    (root / "photos/test.json").write_text(json.dumps(make_rows(NAMES[5:7])))
    (root / "val.json").write_text(json.dumps(make_rows(NAMES[7:])))
    values = {"CAPTIONS_TEST": "test.json", "CAPTIONS_VAL": str(root / "val.json")}
    dataset = build(root, make_rows(NAMES[:5], split="test"), **values)
    splits = (dataset.train_x, dataset.val, dataset.test)
    assert [list(captions_by_name(split)) for split in splits] == [NAMES[:5], NAMES[7:], NAMES[5:7]]
    with pytest.raises(UserError, match=r"test.json, row 1: flickr/5_a.jpg is in two splits, train and test"):
        build(root, make_rows(NAMES[:6]), **values)
    with pytest.raises(UserError, match="CAPTIONS_VAL goes with CAPTIONS_TEST"):
        build(root, make_rows(), CAPTIONS_VAL="val.json")


def test_validation_images_become_the_test_images_if_there_are_none(root):
    dataset = build(root, make_rows(NAMES[:8], split="train") + make_rows(NAMES[8:], split="val"))
    assert list(captions_by_name(dataset.test)) == NAMES[8:]
    assert not dataset.val


def test_without_splits_the_test_images_are_drawn_by_their_names_alone(root):
    dataset = build(root, make_rows(), TEST_PERCENT=0.3)
    reversed_dataset = build(root, make_rows(NAMES[::-1]), TEST_PERCENT=0.3)
    assert len(dataset.test) == 3
    assert len(dataset.train_x) == 7
    test = captions_by_name(dataset.test)
    assert test == captions_by_name(reversed_dataset.test)
    assert test.keys() == set(sorted(NAMES, key=derive_seed)[:3]) != set(NAMES[:3])
    assert not test.keys() & captions_by_name(dataset.train_x).keys()
    with pytest.raises(UserError, match="TEST_PERCENT"):
        build(root, make_rows(), TEST_PERCENT=1.0)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "flickr/99.jpg", "caption": "a"}, r"no image .*photos/flickr/99.jpg"),
        ({"image": "../secret.jpg", "caption": "a"}, r"\.\./secret.jpg is not in the folder .*photos"),
        ({"image": "..\\secret.jpg", "caption": "a"}, "is not in the folder"),
        ({"image": NAMES[1], "caption": " "}, "caption of flickr/1_a.jpg is empty"),
        ({"image": NAMES[1], "caption": ["a", 3]}, "no text"),
        ({"image": NAMES[1], "legend": ["a"]}, "no caption or captions or title; it has image, legend"),
        (
            {"image": NAMES[1], "caption": "a", "split": "holdout"},
            'split "holdout" is none of train, restval, val, .*dev',
        ),
        ("flickr/1_a.jpg", "not an object"),
    ],
)
def test_a_wrong_row_of_a_list_is_refused_by_its_number(root, row, message):
    write_images(root, ["secret.jpg"])
    with pytest.raises(UserError, match=f"captions.json, row 2: .*{message}"):
        build(root, [*make_rows(NAMES[:1]), row])


def test_a_wrong_row_of_a_table_is_refused_by_its_line_number(root):
    table = f'image,caption\n{NAMES[0]},"two\nlines"\n'
    with pytest.raises(UserError, match=r"pairs.csv, line 4: there is no image"):
        build(root, table + "flickr/none.jpg,x\n", file="pairs.csv")
    with pytest.raises(UserError, match=r"pairs.csv, line 4: .*quotation marks"):
        build(root, table + f"{NAMES[1]},one, two\n", file="pairs.csv")


def test_a_missing_or_unusable_caption_file_is_refused(root):
    with pytest.raises(UserError, match=r"there is no file .*captions.json; DATASET.CAPTIONS"):
        build(root)
    with pytest.raises(UserError, match=r"there is no file .*none.csv; DATASET.CAPTIONS"):
        build(root, file="none.csv")
    with pytest.raises(UserError, match="not valid JSON"):
        build(root, "[{")
    with pytest.raises(UserError, match="neither a list"):
        build(root, {"a": 1})
    with pytest.raises(UserError, match=f"{NAMES[0]} has no split, but others have"):
        build(root, [*make_rows(NAMES[:1]), *make_rows(NAMES[1:], split="train")])
    with pytest.raises(UserError, match="no image is for test"):
        build(root, make_rows(split="train"))
    with pytest.raises(UserError, match="NUM_SHOTS"):
        build(root, make_rows(), NUM_SHOTS=4)
