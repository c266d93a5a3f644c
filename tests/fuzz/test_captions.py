"""Caption files and DATASET.CSV: every image has the captions or class of its rows, or the file is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dassl.data.datasets import build_dataset
from tests.datasets.shapes import config, write_images
from tests.fuzz.cases import Refusal, mutations, outcome, texts

IMAGES = ("a.jpg", "A.jpg", "sub/b c.png", "sub/ä.png", "🦊.png", "x" * 250 + ".png")
ROWS = [{"image": name, "caption": f"of {name}", "split": "train" if name == "a.jpg" else "test"} for name in IMAGES]
JSON = json.dumps(ROWS).encode()
CSV = b"image,caption,split\na.jpg,one,train\nA.jpg,two,test\nsub/b c.png,three,train\n"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with the images of ``IMAGES``."""
    root = tmp_path_factory.mktemp("captions")
    write_images(root, IMAGES)
    return root


def read(root, file: str, content: bytes) -> dict[str, list[str]] | Refusal:
    """Return the captions of each image, read from a caption file of this content."""
    (root / file).write_bytes(content)
    dataset = outcome(build_dataset, config(root, "Captions", CAPTIONS=file), naming=file)
    if isinstance(dataset, Refusal):
        return dataset
    return {item.name: list(item.captions) for split in (dataset.train_x, dataset.val, dataset.test) for item in split}


def with_extra_row(**values: object) -> bytes:
    """Return the JSON file with one more row, which has these values."""
    return json.dumps([*ROWS, {**ROWS[0], **values}]).encode()


@given(st.lists(st.tuples(st.sampled_from(ROWS), texts), max_size=8))
def test_an_image_has_all_its_captions_in_order(root, extra_rows):
    rows = [*ROWS, *({**row, "caption": caption} for row, caption in extra_rows)]
    captions_by_image = read(root, "captions.json", json.dumps(rows).encode())
    if all(caption.strip() for _, caption in extra_rows):
        assert captions_by_image == {name: [row["caption"] for row in rows if row["image"] == name] for name in IMAGES}
    else:
        assert isinstance(captions_by_image, Refusal)


@given(mutations(JSON))
@example(with_extra_row(split=["train"]))
@example(with_extra_row(split=0))
@example(with_extra_row(image="y" * 300))
@example(with_extra_row(image="a\0.jpg"))
@example(with_extra_row(image="\ud800.jpg"))
@example(with_extra_row(image=5))
@example(with_extra_row(caption=[]))
@example(b"[" * 100_000)
@example(b'{"images": ' * 50_000)
@example(JSON.replace(b'"of a.jpg"', b"9" * 5000))
@example(JSON.decode().encode("utf-16"))
def test_damaged_json_is_refused_or_all_its_rows_are_read(root, content):
    captions_by_image = read(root, "damaged.json", content)
    if not isinstance(captions_by_image, Refusal):
        for row in json.loads(content.decode("utf-8-sig")):
            assert row["caption"] in captions_by_image[row["image"].replace("\\", "/").removeprefix("./")]


@given(mutations(CSV))
@example(b'image,caption\na.jpg,one\nA.jpg,two\nsub/b c.png,"three\nb.jpg,four\n')  # the quotation mark is not closed
@example(CSV.replace(b"one", b'"one" they say'))
@example(CSV.replace(b"\n", b"\r"))
@example(b"")
def test_a_damaged_table_is_refused_or_all_its_rows_are_read(root, content):
    captions_by_image = read(root, "damaged.csv", content)
    if not isinstance(captions_by_image, Refusal):
        assert set(captions_by_image) <= set(IMAGES)
        rows = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n").split("\n")[1:]
        all_captions = [caption for captions in captions_by_image.values() for caption in captions]
        assert len(all_captions) + sum(caption.count("\n") for caption in all_captions) == len(
            [row for row in rows if row]
        )


COCO = {
    "images": [{"id": number, "file_name": name} for number, name in enumerate(IMAGES)],
    "annotations": [{"image_id": number, "caption": f"of {name}"} for number, name in enumerate(IMAGES)],
}
TSV = CSV.replace(b",", b"\t").replace(b"one", b'"one" they say')
LINES = "\n".join(map(json.dumps, ROWS)).encode()
TOKENS = b"a.jpg#0\tone\nA.jpg#0\ttwo\nsub/b c.png#0\tthree\n"


@pytest.mark.parametrize(
    ("file", "content"),
    [("coco.json", json.dumps(COCO).encode()), ("a.tsv", TSV), ("a.jsonl", LINES), ("token.txt", TOKENS)],
)
@given(data=st.data())
def test_a_damaged_file_of_another_format_is_refused_or_read(root, file, content, data):
    assert isinstance(read(root, file, content), dict)
    captions_by_image = read(root, file, data.draw(mutations(content)))
    if not isinstance(captions_by_image, Refusal):
        assert set(captions_by_image) <= set(IMAGES)


@pytest.mark.parametrize("value", [None, 0, [1], {}, "x", {"id": [1]}])
def test_wrong_values_in_cocos_json_are_refused(root, value):
    for key in COCO:
        content = {**COCO, key: [*COCO[key], value]}
        result = read(root, "coco.json", json.dumps(content).encode())
        assert isinstance(result, Refusal) or key == "images"  # images without captions are left out


def test_two_columns_of_one_name_are_refused(root):
    assert 'two columns "caption"' in read(root, "two.csv", b"image,caption,caption\na.jpg,one,two\nA.jpg,x,y\n")


CLASS_CSV = b"image,class,split\na.jpg,cat,train\nA.jpg,a dog,train\nsub/b c.png,cat,test\n"


@given(mutations(CLASS_CSV))
@example(CLASS_CSV.replace(b"cat", b" \xc2\x85"))
@example(CLASS_CSV.replace(b"a dog", b'"a\ndog"'))
@example(CLASS_CSV.replace(b"A.jpg", b"\0"))
def test_a_damaged_table_of_classes_is_refused_or_all_its_rows_are_read(root, content):
    (root / "classes.csv").write_bytes(content)
    dataset = outcome(build_dataset, config(root, "ImageFolder", CSV="classes.csv"))
    if not isinstance(dataset, Refusal):
        lines = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n").split("\n")[1:]
        images = [*dataset.train_x, *dataset.val, *dataset.test]
        assert len(images) == len({item.impath for item in images}) <= len([*filter(None, lines)])
        for item in images:
            assert item.impath.removeprefix(f"{root}/") in IMAGES
            assert dataset.classnames[item.label] == item.classname
            assert item.classname.split()[0] in content.decode()
