"""Caption files: every picture has the captions that its rows give it, in their order, or the file is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dassl.data.datasets import build_dataset
from tests.datasets.shapes import config, write_images
from tests.fuzz.cases import Refusal, mutations, outcome, texts

PICTURES = ("a.jpg", "A.jpg", "sub/b c.png", "sub/ä.png", "🦊.png", "x" * 250 + ".png")
ROWS = [{"image": name, "caption": f"of {name}", "split": "train" if name == "a.jpg" else "test"} for name in PICTURES]
JSON = json.dumps(ROWS).encode()
CSV = b"image,caption,split\na.jpg,one,train\nA.jpg,two,test\nsub/b c.png,three,train\n"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("captions")
    write_images(root, PICTURES)
    return root


def read(root, file: str, content: bytes) -> dict[str, list[str]] | Refusal:
    """The captions of each picture."""
    (root / file).write_bytes(content)
    dataset = outcome(build_dataset, config(root, "Captions", CAPTIONS=file), naming=file)
    if isinstance(dataset, Refusal):
        return dataset
    return {item.name: list(item.captions) for part in (dataset.train_x, dataset.val, dataset.test) for item in part}


def with_another(**values: object) -> bytes:
    return json.dumps([*ROWS, {**ROWS[0], **values}]).encode()


@given(st.lists(st.tuples(st.sampled_from(ROWS), texts), max_size=8))
def test_a_picture_has_all_its_captions_in_order(root, more):
    rows = [*ROWS, *({**row, "caption": caption} for row, caption in more)]
    found = read(root, "captions.json", json.dumps(rows).encode())
    if all(caption.strip() for _, caption in more):
        assert found == {name: [row["caption"] for row in rows if row["image"] == name] for name in PICTURES}
    else:
        assert isinstance(found, Refusal)


@given(mutations(JSON))
@example(with_another(split=["train"]))
@example(with_another(split=0))
@example(with_another(image="y" * 300))
@example(with_another(image="a\0.jpg"))
@example(with_another(image="\ud800.jpg"))
@example(with_another(image=5))
@example(with_another(caption=[]))
@example(b"[" * 100_000)
@example(b'{"images": ' * 50_000)
@example(JSON.replace(b'"of a.jpg"', b"9" * 5000))
@example(JSON.decode().encode("utf-16"))
def test_damaged_json_is_refused_or_understood(root, content):
    found = read(root, "damaged.json", content)
    if not isinstance(found, Refusal):
        for row in json.loads(content.decode("utf-8-sig")):
            assert row["caption"] in found[row["image"].replace("\\", "/").removeprefix("./")]


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
        told = [caption for captions in found.values() for caption in captions]
        assert len(told) + sum(caption.count("\n") for caption in told) == len([row for row in rows if row])


def test_two_columns_of_one_name(root):
    assert 'two columns "caption"' in read(root, "two.csv", b"image,caption,caption\na.jpg,one,two\nA.jpg,x,y\n")
