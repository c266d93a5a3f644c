"""Files of class names: each class folder gets the name on its line, or the file is refused with the line's number."""

from __future__ import annotations

import re
import unicodedata

from hypothesis import example, given
from hypothesis import strategies as st

from datasets.class_folders import match_classnames, read_classnames
from datasets.image_folder import folder_to_classname
from tests.fuzz.cases import Refusal, mutations, outcome, texts


def clean_for_line(text: str) -> str:
    """Return ``text`` without the characters that separate names and lines, in normal form C."""
    text = text.encode(errors="ignore").decode()
    return unicodedata.normalize("NFC", re.sub("[\n\r\t]", "", text).strip("\ufeff")).strip()


names = texts.map(clean_for_line).filter(bool)


def write(tmp_path_factory, content: bytes):
    """Write a file of class names and return its path."""
    path = tmp_path_factory.getbasetemp() / "classnames.txt"
    path.write_bytes(content)
    return path


@given(st.dictionaries(names, names, max_size=8), st.sampled_from(["\n", "\r\n", "\r", " \n\t"]), st.booleans())
@example({"n01": "fish\u2028with a line", "n02": "dog\x85", "n03": "\x1cx", "n04": "a\x0bb\x0cc"}, "\n", True)
def test_each_folder_has_the_name_of_its_line(tmp_path_factory, classnames_by_folder, end, has_byte_order_mark):
    lines = [f"{folder}\t{name}" for folder, name in classnames_by_folder.items()]
    path = write(tmp_path_factory, (end.join(lines) + end).encode("utf-8-sig" if has_byte_order_mark else "utf-8"))
    assert outcome(read_classnames, path) == {folder: name.strip() for folder, name in classnames_by_folder.items()}
    decomposed = [unicodedata.normalize("NFD", folder) for folder in classnames_by_folder]
    assert list(match_classnames(path, decomposed, "").values()) == [
        name.strip() for name in classnames_by_folder.values()
    ]


@given(names, names, names)
@example("café", "one", "two")
def test_two_names_for_one_folder_are_refused_with_both_lines(tmp_path_factory, folder, one, other):
    path = write(tmp_path_factory, f"{folder}\t{one}\n\n{unicodedata.normalize('NFD', folder)}\t{other}\n".encode())
    result = outcome(read_classnames, path, naming=path if one != other else "")
    if one == other:
        assert result == {folder: one}
    else:
        assert f"line 1 names {folder}" in result
        assert "line 3" in result


START = "".join(f"n{i:08} name {i}\n" for i in range(5)).encode()


@given(mutations(START))
@example(START.replace(b" name 3", b""))
@example(START.decode().encode("utf-16"))
@example(bytes(range(256)))
def test_a_damaged_file_is_refused_or_gives_whole_names(tmp_path_factory, content):
    path = write(tmp_path_factory, content)
    classnames = outcome(read_classnames, path, naming=path)
    if not isinstance(classnames, Refusal):
        lines = re.split("\r\n|\r|\n", content.decode("utf-8-sig"))
        assert len(classnames) <= len(list(filter(str.strip, lines)))
        for folder, name in classnames.items():
            assert folder.strip() == folder != ""
            assert name.strip() == name != ""
            assert any(name in line for line in lines)


@given(texts)
@example("_")
@example("a_\udcff")
@example("cat\n* accuracy: 99.00%")
def test_a_folder_name_gives_a_class_name_or_is_refused(folder):
    name = outcome(folder_to_classname, folder, naming="class folder")
    if isinstance(name, Refusal):
        assert not folder.replace("_", " ").strip() or not folder.isprintable()
    else:
        name.encode()
        assert name.strip()
        assert len(name.splitlines()) == 1
        assert name.split() == folder.replace("_", " ").split()
