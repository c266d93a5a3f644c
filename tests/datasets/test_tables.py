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
    assert_refused(root, "metadata.jsonl", lines[0] + "\n{\n", "line 2: it is not valid JSON")
    assert_refused(root, "token.txt", token[0] + "b.jpg\ttwo\n", 'line 2: "b.jpg\ttwo" is not')


def test_the_columns_in_the_config_hold_for_cocos_and_karpathys_json_and_not_for_token_files(root):
    values = {"IMAGE_COLUMN": "path", "CAPTION_COLUMN": "caption_zh"}
    coco = {
        "images": [{"id": name, "file_name": "none.jpg", "path": name} for name in NAMES],
        "annotations": [{"image_id": name, "caption": "in English", "caption_zh": text} for name, text in PAIRS],
    }
    assert read(root, "coco.json", json.dumps(coco), **values) == CAPTIONS
    images = [{"filename": "none.jpg", "path": name, "sentences": [{"raw": "x"}], "caption_zh": CAPTIONS[name]}
              for name in NAMES]  # fmt: skip
    assert read(root, "karpathy.json", json.dumps({"images": images}), **values) == CAPTIONS
    content = "a.jpg#0\tone\n"
    for key in values:
        assert_refused(root, "token.txt", content, "has no columns", **{key: "path"})


def test_messages_on_json_name_the_keys_in_the_file(root):
    instances = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 8}],
        "annotations": [{"id": 5, "image_id": 1, "bbox": [0, 0, 1, 1]}],
    }
    keys = "there is no caption or captions or title; it has id, image_id, bbox, file_name"
    assert_refused(root, "instances.json", json.dumps(instances), f"row 1 of annotations: {keys}")
    del instances["annotations"]
    assert_refused(
        root, "image_info.json", json.dumps(instances), "no caption or captions or title; it has id, file_name"
    )


def test_a_cell_with_a_list_of_texts_holds_several_captions(root):
    """As in nlphuji/flickr30k's table; pandas writes lists as Python does."""
    lists = {"a.jpg": ["Two guys .", 'A "b", c '], "b.jpg": ["it's", "猫"], "c.jpg": ["[1, 2]"]}
    cells = [json.dumps(lists["a.jpg"]), repr(lists["b.jpg"]), "[1, 2]"]
    rows = [f'"{cell.replace(chr(34), 2 * chr(34))}",{name}\n' for cell, name in zip(cells, NAMES, strict=True)]
    assert read(root, "flickr_annotations_30k.csv", "raw,filename\n" + "".join(rows)) == lists


def test_what_stands_before_a_header_is_passed_over_and_lines_of_json_may_be_named_json(root):
    table_ = table("image;caption", "{0};{1}")
    for start in ("sep=;\n", "\n \n", "sep=;\r\n\r\n"):
        assert read(root, "pairs.csv", start + table_) == CAPTIONS
    lines = [json.dumps({"file_name": name, "text": caption}) for name, caption in PAIRS]
    assert read(root, "lines.json", "\n".join(lines)) == CAPTIONS
    assert_refused(root, "lines.json", "\n".join([*lines, "{"]), "line 5: it is not valid JSON")


def test_flickrs_broken_row_and_image_that_does_not_exist_are_noted(root, capsys):
    rows = "".join(f"{name}| 0| {caption}\n" for name, caption in PAIRS[:3])
    content = f"image_name| comment_number| comment\n{rows}c.jpg| 4   A dog runs .\n"
    assert read(root, "results.csv", content) == {**CAPTIONS, "c.jpg": ["A dog runs ."]}
    note = 'results.csv, line 5: a separator is missing behind 4; the next column is "A dog runs ."'
    assert f"Note: {root}/{note}" in capsys.readouterr().out
    tokens = "".join(f"{name}#0\t{caption}\n" for name, caption in PAIRS)
    assert read(root, "token.txt", tokens + "d.jpg.1#0\tx\nd.jpg.1#1\ty\n") == CAPTIONS
    note = "token.txt: 2 lines do not name an image file, such as d.jpg.1, and are left out"
    assert f"Note: {root}/{note}" in capsys.readouterr().out


def test_a_column_of_splits_under_another_name_is_noted(root, capsys):
    content = "image,caption,Set,kind\na.jpg,x,train,train\nb.jpg,y,Validation,3\nc.jpg,z,test,4\n"
    read(root, "pairs.csv", content)
    note = f'Note: {root}/pairs.csv: the column "Set" is ignored; name it "split" if it holds splits'
    output = capsys.readouterr().out
    assert output.count("is ignored") == 1
    assert note in output
    read(root, "pairs.csv", content.replace("kind", "split").replace("3", "val").replace("4", "test"))
    assert "is ignored" not in capsys.readouterr().out


def test_texts_that_look_like_numbers_or_missing_values_stay_texts(root):
    texts = ["NA", "null", "007", "1.50", "True", "nan", "-", " x "]
    pairs = [("a.jpg", text) for text in texts]
    assert read(root, "pairs.csv", table("image,caption", "{0},{1}", [*pairs, *PAIRS[1:]]))["a.jpg"] == texts


def test_split_names_of_other_libraries_are_known_in_any_case(root):
    content = "file_name,text,split\na.jpg,x,Holdout\n"
    assert_refused(root, "pairs.csv", content, 'line 2: the split "Holdout" is none of train, restval, val')
    names = [("Train", "validation", "TEST"), ("Training", "Dev", "testing"), ("restval", "VAL", "test")]
    for train, split, test in [*names, ("train", "valid", "Test")]:
        rows = f"a.jpg,cat,x,{train}\nb.jpg,cat,y,{split}\nc.jpg,cat,z,{test}\n"
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
        ("image,caption\na.jpg,one\n\nb.jpg,one,two\n", ["line 4: it has more columns than the header", "quotation"]),
        ('image,caption\na.jpg,"one\ntwo"\nb.jpg\n', ["line 4: columns in the row: 1, in the header: 2"]),
        ("image_name| comment_number| comment\na.jpg| four   A dog .\n", ["line 2: columns in the row: 2", "3"]),
        ("image| comment| number\na.jpg| 4 dogs run .\n", ["line 2: columns in the row: 2"]),
        ("sep=;\n\nimage;caption\na.jpg;one\nb.jpg\n", ["line 5: columns in the row: 1"]),
        ("sep=;\nimage;caption\na.jpg;one\nb.jpg;two;three\n", ["line 4: it has more columns than the header"]),
        ("image,caption\na.jpg,one\n".encode("utf-16-le"), ["line 1: ", "It seems to be in UTF-16: save it as UTF-8"]),
        ("图片,描述\na.jpg,one\n".encode("utf-16-be"), ["line 1: ", "It seems to be in UTF-16: save it as UTF-8"]),
        ("a.jpg,one\n", ["A header such as image,caption is missing, or the separator is none of , tab ; |"]),
        ("image:caption\na.jpg:one\n", ["or the separator is none of , tab ; |"]),
        ('image,caption\na.jpg,"one\nb.jpg,two\nc.jpg,three\n', ["line 2: a quotation mark has no partner"]),
        ('image,caption\na.jpg,one\nb.jpg,"two" or three\n', ["line 3: a quotation mark has no partner"]),
        ('image,caption\na.jpg,"one\nb.jpg,two\nc.jpg,"\n', ["line 2: a text in quotation marks holds further rows"]),
        ("image,caption\na.jpg, \n", ["line 2: a caption of a.jpg is empty"]),
        ('image,caption\n"data:image/png;base64,' + 17_000 * "A" + '",x\n', ["line 2: its image is not the path"]),
        ("image,caption\n" + 17_000 * "A" + ",one\n", ["line 2: its image is not the path of a file", " … "]),
        ("image,caption\n" + 170_000 * "A" + ",one\n", ["line 2: ", "field larger than field limit"]),
        ("image,caption\nhttps://x.org/a.jpg,one\n", ["line 2: its image is not the path of a file, but an address"]),
        ("image,caption,split\na.jpg,one," + 3_000 * "x" + "\n", ["line 2: the split", "is none of train"]),
        ("image,caption\n" + 300 * "A" + ".jpg,one\n", ["line 2: there is no image"]),
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
