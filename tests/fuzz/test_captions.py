"""Caption files: every picture has the captions that its rows give it, in their order, or the row is named."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from dassl.data.datasets import build_dataset
from tests.datasets.shapes import config
from tests.fuzz.cases import Refusal, mutations, outcome, texts

PICTURES = ("a.jpg", "A.jpg", "sub/b c.png", "sub/ä.png", "🦊.png", "x" * 250 + ".png")
SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}
STRANGE = ("", ".", "..", "../x.jpg", "/etc/passwd", "a\0.jpg", "y" * 300, "sub", "\ud800.jpg", "a\udcff.jpg", "b.jpg")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("captions")
    for name in PICTURES:
        (root / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (2, 2)).save(root / name)
    return root


def read(root, file: str, content: bytes):
    """What a caption file gives: name -> (split, captions), the test images' splits as they are read."""
    (root / file).write_bytes(content)
    dataset = outcome(build_dataset, config(root, "Captions", CAPTIONS=file), naming="")
    if isinstance(dataset, Refusal):
        assert file in dataset
        return dataset
    items = {"train": dataset.train_x, "val": dataset.val, "test": dataset.test}
    assert sorted(item.label for part in items.values() for item in part) == list(range(len(dataset.captions)))
    for item in (item for part in items.values() for item in part):
        assert dataset.captions[item.label] == item.captions
    return {item.name: (split, list(item.captions)) for split, part in items.items() for item in part}


def expected(rows: list) -> dict | None:
    """The same, of rows as they are documented; None where one is wrong."""
    found: dict = {}
    for row in rows:
        if not isinstance(row, dict):
            return None
        name, captions, split = row.get("image"), row.get("caption"), row.get("split")
        captions = captions if isinstance(captions, list) else [captions]
        name = name.replace("\\", "/").removeprefix("./") if isinstance(name, str) else None
        if name not in PICTURES or not captions:
            return None
        if not all(isinstance(caption, str) and caption.strip() for caption in captions):
            return None
        if split in (None, ""):
            split = None
        elif isinstance(split, str) and split in SPLITS:
            split = SPLITS[split]
        else:
            return None
        if found.setdefault(name, (split, []))[0] != split:
            return None
        found[name][1].extend(captions)
    parts = {split for split, _ in found.values()}
    if parts == {"train", "val"}:  # validation images alone are the test set
        found = {name: ("test" if split == "val" else split, captions) for name, (split, captions) in found.items()}
    if parts == {None}:
        return found if len(found) > 1 else None
    return found if {"train", "test"} <= {split for split, _ in found.values()} and None not in parts else None


wrong = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.just([]), st.just({}), st.just(["train"]))
images = st.sampled_from([*PICTURES, *PICTURES, "sub\\b c.png", ".\\A.jpg"])
captions = texts.filter(str.strip)
splits = st.sampled_from([None, "train", "restval", "val", "test"])


@st.composite
def lists_of_rows(draw: st.DrawFn) -> list:
    own = {name: draw(splits) for name in PICTURES} if draw(st.booleans()) else {}
    rows: list = []
    for _ in range(draw(st.integers(0, 8))):
        image = draw(images)
        row = {"image": image, "caption": draw(st.one_of(captions, st.lists(captions, min_size=1, max_size=3)))}
        if split := own.get(image.replace("\\", "/").removeprefix("./")):
            row["split"] = split
        rows.append(row)
    if rows and draw(st.booleans()):
        key = draw(st.sampled_from(["image", "caption", "split"]))
        rows[-1][key] = draw(st.one_of(wrong, texts, st.sampled_from(STRANGE), st.lists(wrong, max_size=2)))
    return rows


def agrees(found: dict | Refusal, rows: list) -> None:
    due = expected(rows)
    if due is None:
        assert isinstance(found, Refusal)
    else:
        assert {name: told for name, (_, told) in found.items()} == {name: told for name, (_, told) in due.items()}
        if {split for split, _ in due.values()} != {None}:
            assert found == due


PAIR = [{"image": "a.jpg", "caption": "one", "split": "train"}, {"image": "A.jpg", "caption": "two", "split": "test"}]


@given(lists_of_rows())
@example(PAIR)  # names that differ in case are two pictures
@example([*PAIR, {**PAIR[0], "split": ["train"]}])
@example([*PAIR, {**PAIR[0], "split": 0}])
@example([*PAIR, {**PAIR[0], "image": "y" * 300}])
@example([*PAIR, {**PAIR[0], "image": "a\0.jpg"}])
@example([*PAIR, {**PAIR[0], "image": 5}])
def test_a_list_is_read_as_it_says(root, rows):
    agrees(read(root, "captions.json", json.dumps(rows).encode()), rows)


sentences = st.one_of(wrong, texts, st.lists(st.one_of(st.fixed_dictionaries({"raw": captions}), wrong), max_size=3))


@given(
    st.lists(st.tuples(st.one_of(images, wrong), splits, sentences, st.sampled_from([None, "", "sub", 7])), max_size=5)
)
@example([("a.jpg", "train", 3, None), ("A.jpg", "test", [{"raw": "x"}], None)])
@example([("a.jpg", "train", "letters", None), ("A.jpg", "test", [{"raw": "x"}], None)])
@example([("a.jpg", "train", {"raw": "x", "tokens": []}, None), ("A.jpg", "test", [{"raw": "x"}], None)])
def test_karpathys_json_is_read_as_it_says(root, entries):
    rows, plain = [], []
    for name, split, told, folder in entries:
        row = {"filename": name, "filepath": folder, "split": split, "sentences": told}
        rows.append({key: value for key, value in row.items() if value is not None})
        told = told if isinstance(told, list) else [told]
        told = [one.get("raw") if isinstance(one, dict) else one for one in told]
        plain.append({"image": f"{folder}/{name}" if folder else name, "caption": told, "split": split})
    agrees(read(root, "karpathy.json", json.dumps({"images": rows}).encode()), plain)


@given(lists_of_rows(), st.sampled_from(["\t", ","]), st.booleans(), st.sampled_from(["\n", "\r\n"]))
def test_a_table_is_read_as_it_says(root, rows, delimiter, mark, end):
    rows = [{key: row.get(key) for key in ("image", "caption", "split")} for row in rows]
    flat = [
        {**row, "caption": one}
        for row in rows
        for one in (row["caption"] if isinstance(row["caption"], list) else [row["caption"]])
    ]
    flat = [
        {key: "" if value is None else str(value).encode(errors="ignore").decode() for key, value in row.items()}
        for row in flat
    ]
    table = io.StringIO()
    writer = csv.DictWriter(table, ["image", "caption", "split"], delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(flat)
    agrees(read(root, "table.csv", table.getvalue().encode("utf-8-sig" if mark else "utf-8")), flat)


JSON = json.dumps(PAIR * 2).encode()
CSV = b"image,caption,split\na.jpg,one,train\nA.jpg,two,test\nsub/b c.png,three,train\n"


@given(st.one_of(mutations(JSON), mutations(json.dumps({"images": PAIR}).encode())))
@example(b"[" * 100_000)
@example(b'{"images": ' * 50_000)
@example(b"\xef\xbb\xbf" + JSON)
@example(JSON + b"\xef\xbb\xbf")
@example(JSON.replace(b'"one"', b"NaN"))
@example(JSON.replace(b'"one"', b"9" * 5000))
@example(JSON.decode().encode("utf-16"))
def test_damaged_json_is_refused_or_understood(root, content):
    found = read(root, "damaged.json", content)
    if not isinstance(found, Refusal):
        agrees(found, json.loads(content.decode("utf-8-sig")))


@given(mutations(CSV))
@example(b'image,caption\na.jpg,one\nA.jpg,two\nsub/b c.png,"three\nb.jpg,four\n')  # nobody closes the quotation mark
@example(CSV.replace(b"one", b'"one" they say'))
@example(CSV.replace(b"\n", b"\r"))
@example(b"")
def test_of_a_damaged_table_no_row_is_lost(root, content):
    found = read(root, "damaged.csv", content)
    if not isinstance(found, Refusal):
        assert set(found) <= set(PICTURES)
        rows = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n").split("\n")[1:]
        told = [caption for _, captions in found.values() for caption in captions]
        assert len(told) + sum(caption.count("\n") for caption in told) == len([row for row in rows if row])


def test_two_columns_of_one_name(root):
    assert 'two columns "caption"' in read(root, "two.csv", b"image,caption,caption\na.jpg,one,two\nA.jpg,x,y\n")
