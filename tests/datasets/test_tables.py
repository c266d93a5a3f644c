"""Files with captions or classes as people have them: column names, separators, encodings, and what a refusal says."""

from __future__ import annotations

import codecs
import json

import pytest

from dassl.data.datasets import build_dataset
from dassl.utils import UserError
from tests.datasets.shapes import config, write_images

NAMES = ["a.jpg", "b.jpg", "c.jpg"]
CAPTIONS = {"a.jpg": ["one, or more"], "b.jpg": ["two", "zwei"], "c.jpg": ["猫"]}
PAIRS = [(name, caption) for name, captions in CAPTIONS.items() for caption in captions]
MAX_MESSAGE = 400  # characters beside the path of the file: a few lines of a terminal


@pytest.fixture
def root(tmp_path):
    """Return a folder with the images ``NAMES``."""
    write_images(tmp_path, NAMES)
    return tmp_path


def read(root, file: str, content: str | bytes, **values) -> dict[str, list[str]]:
    """Write a caption file; return the captions of each image that the data set reads from it."""
    (root / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    dataset = build_dataset(config(root, "Captions", CAPTIONS=file, **values))
    return {item.name: list(item.captions) for item in sorted([*dataset.train_x, *dataset.test], key=lambda i: i.name)}


def assert_refused(root, file: str, content: str | bytes, *fragments: str, **values) -> None:
    """Assert that a caption file is refused by a short message of one line that names it, with all ``fragments``."""
    with pytest.raises(UserError) as error:
        read(root, file, content, **values)
    message = str(error.value)
    assert message.startswith(str(root / file))
    assert "\n" not in message
    assert len(message.replace(str(root), "")) < MAX_MESSAGE
    for fragment in fragments:
        assert fragment in message


def table(header: str, row: str, pairs=PAIRS) -> str:
    """Return a table: the header, and ``row`` with ``{0}`` for the image and ``{1}`` for the caption of each pair."""
    return "".join(f"{line}\n" for line in (header, *(row.format(*pair) for pair in pairs)))


# ---- what is read ----


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("file_name,text", '{0},"{1}"'),
        ("image_path;title", "{0};{1}"),
        ("image_name| comment_number| comment", "{0}| 0| {1}"),  # Flickr30k's on Kaggle
        ("image,caption", '{0},"{1}"'),  # Flickr8k's on Kaggle
        ("image, caption", '{0}, "{1}"'),
        ("File Name\tSentence", "{0}\t{1}"),
        ('"img","description"', '"{0}","{1}"'),
        (",filename,raw,sentids", '0,{0},"{1}",7'),  # with the row numbers of pandas
        ("PATH|Captions", "{0}|{1}"),
        ("caption\timage", "{1}\t{0}"),
    ],
)
@pytest.mark.parametrize("start", [b"", codecs.BOM_UTF8])
def test_separator_quoting_and_columns_of_a_table_are_found_out(root, header, row, start):
    content = table(header, row)
    for line_end in ("\n", "\r\n"):
        assert read(root, "pairs.csv", start + content.replace("\n", line_end).encode()) == CAPTIONS


def test_columns_may_be_named_in_the_config(root, capsys):
    content = table("url,local,de,caption", 'http://x/y,{0},"{1}",in English')
    values = {"IMAGE_COLUMN": "local", "CAPTION_COLUMN": "DE"}
    assert read(root, "pairs.csv", content, **values) == CAPTIONS
    rows = [{"local": name, "de": caption, "image": 3, "caption": 4} for name, caption in PAIRS]
    assert read(root, "pairs.json", json.dumps(rows), **values) == CAPTIONS
    assert_refused(root, "pairs.csv", content, "line 1: the column image is missing; the columns are url, local, de",
                   "DATASET.IMAGE_COLUMN names it")  # fmt: skip
    assert_refused(
        root, "pairs.csv", content, "the column caption is missing", IMAGE_COLUMN="local", CAPTION_COLUMN="fr"
    )
    capsys.readouterr()
    read(root, "two.csv", table("path,title,text", '{0},x,"{1}"'))
    note = f'Note: {root}/two.csv: each caption comes from the column "title", not "text"; DATASET.CAPTION_COLUMN'
    assert note in capsys.readouterr().out


def test_cocos_json_json_lines_and_flickrs_token_file_are_read(root, capsys):
    ids = {name: 7 + number for number, name in enumerate(NAMES)}
    coco = {
        "info": {"year": 2014},
        "images": [{"id": ids[name], "file_name": name, "height": 8} for name in NAMES],
        "annotations": [{"id": 1, "image_id": ids[name], "caption": caption} for name, caption in PAIRS],
    }
    assert read(root, "captions_val2014.json", json.dumps(coco)) == CAPTIONS
    assert read(root, "bom.json", codecs.BOM_UTF8 + json.dumps(coco).encode()) == CAPTIONS
    lines = [json.dumps({"file_name": name, "text": caption}) for name, caption in PAIRS]
    assert read(root, "metadata.jsonl", "\n".join([*lines, ""])) == CAPTIONS
    token = [f"{name}#{number}\t{caption}\n" for number, (name, caption) in enumerate(PAIRS)]
    assert read(root, "Flickr8k.token.txt", codecs.BOM_UTF8 + "".join(token).encode()) == CAPTIONS
    assert "Note" not in capsys.readouterr().out
    coco["images"].append({"id": 99, "file_name": "d.jpg"})
    assert read(root, "coco.json", json.dumps(coco)) == CAPTIONS
    assert f"Note: {root}/coco.json: 1 of 4 images have no caption, and are left out" in capsys.readouterr().out
    coco["annotations"][1]["image_id"] = "8"
    assert_refused(root, "coco.json", json.dumps(coco), "row 2 of annotations: no image has its image_id '8'")
    assert_refused(root, "metadata.jsonl", lines[0] + "\n{\n", "row 2: it is not valid JSON")
    assert_refused(root, "token.txt", token[0] + "b.jpg\ttwo\n", 'row 2: "b.jpg\ttwo" is not')


def test_texts_that_look_like_numbers_or_missing_values_stay_texts(root):
    texts = ["NA", "null", "007", "1.50", "True", "nan", "-", " x "]
    pairs = [("a.jpg", text) for text in texts]
    assert read(root, "pairs.csv", table("image,caption", "{0},{1}", [*pairs, *PAIRS[1:]]))["a.jpg"] == texts


def test_split_names_of_other_libraries_are_known_in_any_case(root):
    content = "file_name,text,split\na.jpg,x,Training\n"
    assert_refused(root, "pairs.csv", content, 'row 2: the split "Training" is none of train, restval, val')
    for split in ("validation", "Dev", "valid", "VAL"):
        rows = f"a.jpg,cat,x,Train\nb.jpg,cat,y,{split}\nc.jpg,cat,z,TEST\n"
        (root / "pairs.csv").write_text(f"file_name,class,text,split\n{rows}")
        for values in ({"NAME": "Captions", "CAPTIONS": "pairs.csv"}, {"NAME": "ImageFolder", "CSV": "pairs.csv"}):
            dataset = build_dataset(config(root, values.pop("NAME"), **values))
            splits = (dataset.train_x, dataset.val, dataset.test)
            assert [[item.impath for item in items] for items in splits] == [[str(root / name)] for name in NAMES]


def test_quotation_marks_are_part_of_the_texts_of_an_unquoted_table(root, capsys):
    """As in files of tabs from databases, and in Flickr30k's table, in which a caption may begin with one."""
    pairs = [("a.jpg", '"hello" he says'), ("b.jpg", 'a 5" screen'), ("c.jpg", '"')]
    for header, row in (("image\tcaption", "{0}\t{1}"), ("image_name| comment", "{0}| {1}")):
        assert read(root, "pairs.tsv", table(header, row, pairs)) == {name: [caption] for name, caption in pairs}
    assert "pairs.tsv: quotation marks are part of its texts" in capsys.readouterr().out
    quoted = [("a.jpg", '"two\nlines\tand ""more"""'), *PAIRS[1:]]
    assert read(root, "pairs.tsv", table("image\tcaption", "{0}\t{1}", quoted))["a.jpg"] == ['two\nlines\tand "more"']
    assert "Note" not in capsys.readouterr().out


# ---- what a refusal says ----


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        (table("image,caption", '{0},"{1}和狗"').encode("gbk"), ["line 2: it is no text in UTF-8", "GBK: save it"]),
        (table("image,caption", "{0},{1}").encode("utf-16"), ["It seems to be in UTF-16: save it as UTF-8"]),
        (b"PK\x03\x04\x14\x00\x06\x00\xff", ['an Excel workbook or an archive: export it as "CSV UTF-8"']),
        ("image,caption\na.jpg,caf\xe9, creme\n".encode("latin-1"), ["line 2: it is no text in UTF-8: save it as"]),
        ("image,caption\na.jpg,one\n\nb.jpg,one,two\n", ["row 4: it has more columns than the header", "quotation"]),
        ('image,caption\na.jpg,"one\ntwo"\nb.jpg\n', ["row 4: columns in the row: 1, in the header: 2"]),
        ("image_name| comment_number| comment\na.jpg| 4   A dog runs .\n", ["row 2: columns in the row: 2", "3"]),
        ('image,caption\na.jpg,"one\nb.jpg,two\nc.jpg,three\n', ["row 2: a quotation mark has no partner"]),
        ('image,caption\na.jpg,one\nb.jpg,"two" or three\n', ["row 3: a quotation mark has no partner"]),
        ('image,caption\na.jpg,"one\nb.jpg,two\nc.jpg,"\n', ["row 2: a text in quotation marks holds further rows"]),
        ("image,caption\na.jpg, \n", ["row 2: a caption of a.jpg is empty"]),
        ('image,caption\n"data:image/png;base64,' + 17_000 * "A" + '",x\n', ["row 2: its image is not the path"]),
        ("image,caption\n" + 17_000 * "A" + ",one\n", ["row 2: its image is not the path of a file", " … "]),
        ("image,caption\n" + 170_000 * "A" + ",one\n", ["row 2: ", "field larger than field limit"]),
        ("image,caption\nhttps://x.org/a.jpg,one\n", ["row 2: its image is not the path of a file, but an address"]),
        ("image,caption,split\na.jpg,one," + 3_000 * "x" + "\n", ["row 2: the split", "is none of train"]),
        ("image,caption\n" + 300 * "A" + ".jpg,one\n", ["row 2: there is no image"]),
        (17_000 * "A" + "\n", ["line 1: the column image is missing; the columns are AAA"]),
        ("", ["line 1: the column image is missing"]),
        ("image,Image,caption\na.jpg,a.jpg,x\n", ['there are two columns "image"']),
    ],
)  # fmt: skip
def test_what_cannot_be_read_names_the_cause_and_the_row_in_a_short_line(root, content, fragments):
    assert_refused(root, "pairs.csv", content, *fragments)


def test_long_values_in_json_are_shortened_in_messages(root):
    rows = [{"image": "a.jpg", "caption": "x"}, {"image": 17_000 * "A", "caption": "x"}]
    assert_refused(root, "pairs.json", json.dumps(rows), "row 2: its image is not the path of a file")
    assert_refused(root, "pairs.json", json.dumps([{"b" * 17_000: 1}]), "row 1: there is no image or filepath or")
    assert_refused(root, "pairs.json", json.dumps(rows).replace("x", "一只狗").encode("gbk"), "GBK")
