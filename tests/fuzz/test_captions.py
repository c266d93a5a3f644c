"""Caption files: every picture has the captions that its rows give it, in their order, or the row is named."""

from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dassl.data.datasets import build_dataset
from tests.datasets.shapes import config, write_images
from tests.fuzz.cases import Refusal, mutations, outcome, texts

PICTURES = ("a.jpg", "A.jpg", "sub/b c.png", "sub/ä.png", "🦊.png", "x" * 250 + ".png")
SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}
STRANGE = ("", ".", "..", "../x.jpg", "/etc/passwd", "a\0.jpg", "y" * 300, "sub", "\ud800.jpg", "a\udcff.jpg", "b.jpg")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("captions")
    write_images(root, PICTURES)
    return root


def read(root, file: str, content: bytes):
    """What a caption file gives: name -> (split, captions), the test images' splits as they are read."""
    (root / file).write_bytes(content)
    dataset = outcome(build_dataset, config(root, "Captions", CAPTIONS=file), naming=file)
    if isinstance(dataset, Refusal):
        return dataset
    items = {"train": dataset.train_x, "val": dataset.val, "test": dataset.test}
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
        if name not in PICTURES or not captions or split not in [None, "", *SPLITS]:
            return None
        if not all(isinstance(caption, str) and caption.strip() for caption in captions):
            return None
        if found.setdefault(name, (SPLITS.get(split), []))[0] != SPLITS.get(split):
            return None
        found[name][1].extend(captions)
    parts = {split for split, _ in found.values()}
    if parts == {"train", "val"}:  # validation images alone are the test set
        found = {name: ("test" if split == "val" else split, captions) for name, (split, captions) in found.items()}
    if parts == {None}:
        return found if len(found) > 1 else None
    return found if {"train", "test"} <= {split for split, _ in found.values()} and None not in parts else None


wrong = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.just([]), st.just({}), st.just(["train"]))
captions = texts.filter(str.strip)


@st.composite
def lists_of_rows(draw: st.DrawFn) -> list:
    splits = st.sampled_from([None, "train", "restval", "val", "test"])
    own = {name: draw(splits) for name in PICTURES} if draw(st.booleans()) else {}
    rows: list = []
    for _ in range(draw(st.integers(0, 8))):
        image = draw(st.sampled_from([*PICTURES, "sub\\b c.png", ".\\A.jpg"]))
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
def test_a_list_is_read_as_it_says(root, rows):
    agrees(read(root, "captions.json", json.dumps(rows).encode()), rows)


@given(st.lists(st.one_of(st.fixed_dictionaries({"raw": captions}), wrong), max_size=3))
@example(3)
@example("letters")
@example({"raw": "x", "tokens": []})
def test_karpathys_sentences_are_read_as_they_say(root, sentences):
    rows = [{"filename": "a.jpg", "split": "train", "sentences": sentences}]
    rows.append({"filename": "b c.png", "filepath": "sub", "split": "test", "sentences": [{"raw": "x"}]})
    told = sentences if isinstance(sentences, list) else [sentences]
    told = [one.get("raw") if isinstance(one, dict) else one for one in told]
    plain = [{**PAIR[0], "caption": told}, {**PAIR[1], "image": "sub/b c.png", "caption": "x"}]
    agrees(read(root, "karpathy.json", json.dumps({"images": rows}).encode()), plain)


@given(lists_of_rows(), st.sampled_from(["\t", ","]), st.booleans(), st.sampled_from(["\n", "\r\n"]))
def test_a_table_is_read_as_it_says(root, rows, delimiter, mark, end):
    flat = []
    for row in rows:
        for caption in row["caption"] if isinstance(row["caption"], list) else [row["caption"]]:
            cells = {"image": row["image"], "caption": caption, "split": row.get("split")}
            flat.append({k: "" if v is None else str(v).encode(errors="ignore").decode() for k, v in cells.items()})
    table = io.StringIO()
    writer = csv.DictWriter(table, ["image", "caption", "split"], delimiter=delimiter, lineterminator=end)
    writer.writeheader()
    writer.writerows(flat)
    agrees(read(root, "table.csv", table.getvalue().encode("utf-8-sig" if mark else "utf-8")), flat)


JSON = json.dumps(PAIR * 2).encode()
CSV = b"image,caption,split\na.jpg,one,train\nA.jpg,two,test\nsub/b c.png,three,train\n"


@given(mutations(JSON))
@example(b"[" * 100_000)
@example(b'{"images": ' * 50_000)
@example(b"\xef\xbb\xbf" + JSON)
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
