"""Files of class names: each folder gets the name that its line gives it, or the line is named."""

from __future__ import annotations

import re
import unicodedata

from hypothesis import example, given
from hypothesis import strategies as st

from datasets.class_folders import match_classnames, read_classnames
from datasets.image_folder import folder_to_classname
from tests.fuzz.cases import Refusal, mutations, outcome, texts


def in_a_line(text: str) -> str:
    """A text as it can stand in a file, between tabs and ends of lines."""
    text = text.encode(errors="ignore").decode()
    return unicodedata.normalize("NFC", re.sub("[\n\r\t]", "", text).strip("\ufeff")).strip()


names = texts.map(in_a_line).filter(bool)


def write(tmp_path_factory, content: bytes):
    path = tmp_path_factory.getbasetemp() / "classnames.txt"
    path.write_bytes(content)
    return path


@given(st.dictionaries(names, names, max_size=8), st.sampled_from(["\n", "\r\n", "\r", " \n\t"]), st.booleans())
@example({"n01": "fish\u2028with a line", "n02": "dog\x85", "n03": "\x1cx", "n04": "a\x0bb\x0cc"}, "\n", True)
def test_each_folder_has_the_name_of_its_line(tmp_path_factory, given_names, end, mark):
    lines = [f"{folder}\t{name}" for folder, name in given_names.items()]
    path = write(tmp_path_factory, (end.join(lines) + end).encode("utf-8-sig" if mark else "utf-8"))
    assert outcome(read_classnames, path) == {folder: name.strip() for folder, name in given_names.items()}
    decomposed = [unicodedata.normalize("NFD", folder) for folder in given_names]
    assert list(match_classnames(path, decomposed, "").values()) == [name.strip() for name in given_names.values()]


@given(names, names, names)
@example("café", "one", "two")
def test_two_names_of_a_folder_are_refused_with_both_lines(tmp_path_factory, folder, one, other):
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
def test_a_damaged_file_names_its_line_or_gives_whole_names(tmp_path_factory, content):
    path = write(tmp_path_factory, content)
    found = outcome(read_classnames, path, naming=path)
    if not isinstance(found, Refusal):
        given_lines = re.split("\r\n|\r|\n", content.decode("utf-8-sig"))
        assert len(found) <= len(list(filter(str.strip, given_lines)))
        for folder, name in found.items():
            assert folder.strip() == folder != ""
            assert name.strip() == name != ""
            assert any(name in line for line in given_lines)


@given(texts)
@example("_")
@example("a_\udcff")
@example("cat\n* accuracy: 99.00%")
def test_a_folder_names_its_class_or_is_refused(folder):
    name = outcome(folder_to_classname, folder, naming="class folder")
    if isinstance(name, Refusal):
        assert not folder.replace("_", " ").strip() or not folder.isprintable()
    else:
        name.encode()
        assert name.strip()
        assert len(name.splitlines()) == 1
        assert name.split() == folder.replace("_", " ").split()
