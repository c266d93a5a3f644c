"""Config overrides and YAML files: a value is set exactly, or refused by the name of its key or file."""

from __future__ import annotations

import ast
import contextlib
import json

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

import train
from dassl.config import merge_file, merge_options, to_dict
from dassl.config.merge import flatten
from dassl.engine.build import default_cfg
from tests.common import REPOSITORY
from tests.fuzz.cases import Refusal, mutations, outcome, texts, valid_text

train.setup_cfg(
    train.parse_args(["--trainer", "CoOp", "DATASET.NAME", "Digits", "SEED", "1"])
)  # registers trainers and data sets
KEYS = dict(flatten(default_cfg()))
numbers = st.one_of(st.integers(), st.floats(), st.sampled_from([2**63, 10**400, -(10**30), 1e308, -0.0]))
plain = st.one_of(numbers, st.booleans(), st.none(), valid_text)
nested = st.recursive(plain, lambda leaf: st.one_of(st.lists(leaf, max_size=4), st.tuples(leaf, leaf)), max_leaves=6)
odd = st.sampled_from(["0x10", "1_000", "+5", "(5)", "1e-5", "1e999", "(1e999,)", "1+2j", "{1}", "[b'a']", "...", "{}"])
values = st.one_of(nested.map(repr), numbers.map(str), odd, texts).filter(lambda text: not text.startswith("--"))


def literal(text: str) -> object:
    """Return the Python literal that ``text`` is, or ``text`` itself."""
    with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
        return ast.literal_eval(text)
    return text


def expected(old: object, text: str) -> object:
    """Return the value that an accepted override ``text`` sets in place of the value ``old``."""
    value = literal(text)
    if isinstance(old, str):
        return value if isinstance(value, str) else text
    return type(old)(value)


def assert_survives_files(cfg) -> None:
    """Assert that a config is the same after it was written to ``config.yaml`` and ``result.json``."""
    plain = json.loads(json.dumps(to_dict(cfg), allow_nan=False))
    assert yaml.safe_load(cfg.dump()) == plain
    json.dumps(plain, ensure_ascii=False).encode()


@given(st.sampled_from(sorted(KEYS)), values)
@example("OPTIM.LR", "0x10")  # float("0x10") is an error
@example("OPTIM.LR", "1e999")
@example("FEATURES.MAX_GB", "-1e999")
@example("SEED", "0x" + "f" * 6000)  # Python refuses to print so long a number
@example("INPUT.PIXEL_MEAN", "[{1}, 1j]")  # result.json cannot hold it
@example("DATASET.TEMPLATE", "(" * 5000)
@example("OPTIM.MAX_EPOCH", "+" * 100_000 + "1")
@example("DATASET.ROOT", "'\\ud800'")
@example("DATASET.FOLDER", "'a\\0b'")
def test_an_override_is_set_exactly_or_refused(key, value):
    cfg = default_cfg()
    result = outcome(merge_options, cfg, [key, value], naming=key)
    current = dict(flatten(cfg))[key]
    if isinstance(result, Refusal):
        assert current == KEYS[key]
    else:
        assert type(current) is type(KEYS[key])
        assert current == expected(KEYS[key], value)
        assert_survives_files(cfg)
    assert {**dict(flatten(cfg)), key: None} == {**KEYS, key: None}


@given(st.one_of(texts, valid_text))
@example("007")
@example("'quoted'")
@example("None")
def test_the_text_of_a_flag_is_set_unchanged_or_refused(text):
    args = train.parse_args(["--trainer", "CoOp", "--seed", "1", f"--root={text}", "DATASET.NAME", "Digits"])
    cfg = outcome(train.setup_cfg, args)
    if isinstance(cfg, Refusal):
        assert "DATASET.ROOT" in cfg
        assert not text.isprintable() or not text.isascii()
    else:
        assert (text or KEYS["DATASET.ROOT"]) == cfg.DATASET.ROOT
        assert_survives_files(cfg)


@pytest.mark.parametrize("written", ["007", "1_000", "12:30:45", "yes", "2020-01-01", "0x10", "1e3", "schön"])
def test_a_text_key_takes_a_yaml_value_as_it_is_written(tmp_path, written):
    path = tmp_path / "text.yaml"
    path.write_text(f"DATASET:\n  FOLDER: {written}\n", encoding="utf-8-sig")
    cfg = default_cfg()
    merge_file(cfg, path)
    assert written == cfg.DATASET.FOLDER


FILES = sorted((REPOSITORY / "configs").glob("[dt]*/**/*.yaml"))


@given(st.data(), st.sampled_from(FILES))
def test_a_damaged_file_is_refused_by_name_or_sets_values_of_the_right_types(tmp_path_factory, data, file):
    path = tmp_path_factory.getbasetemp() / "damaged.yaml"
    path.write_bytes(data.draw(mutations(file.read_bytes())))
    cfg = default_cfg()
    if not isinstance(outcome(merge_file, cfg, path, naming=path), Refusal):
        assert_survives_files(cfg)
    assert {key: type(value) for key, value in flatten(cfg)} == {key: type(value) for key, value in KEYS.items()}


BILLION_LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefghijk", "bcdefghijkl", strict=True)
)


@pytest.mark.parametrize(
    "content",
    [
        BILLION_LAUGHS,
        "OPTIM: &a\n  LR: *a\n",
        "OPTIM:\n  LR: 0.1\nOPTIM:\n  MAX_EPOCH: 5\n",  # YAML would take the second entry
        "OPTIM: {LR: !!bool maybe}\n",
        "OPTIM: {MAX_EPOCH: 0x" + "f" * 6000 + "}\n",
        "OPTIM: {LR: .nan}\n",
        "OPTIM: {LR: 2020-01-01}\n",
        "INPUT: {TRANSFORMS: {a: 1}}\n",
        "DATASET: {FOLDER: [a, b]}\n",
        'DATASET: {FOLDER: "a\\0b"}\n',
        'DATASET: {FOLDER: "\\ud800"}\n',
        "OPTIM:\n\tLR: 1\n",
        "{1: {2: 3}}",
        "? [a, b]\n: c\n",
        "[" * 1_000,
        "x" * 2_000_000,
        "DATASET: {FOLDER: schön}".encode("latin-1"),
    ],
    ids=range(17),
)
def test_a_hostile_yaml_file_is_refused_by_name(tmp_path, content):
    path = tmp_path / "hostile.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    message = outcome(merge_file, default_cfg(), path, naming=path)
    assert isinstance(message, Refusal)
    assert len(message) < 2000


def test_a_yaml_file_may_use_anchors(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("DATALOADER:\n  TRAIN_X: &batch {BATCH_SIZE: 8}\n  TEST:\n    <<: *batch\n")
    cfg = default_cfg()
    merge_file(cfg, path)
    assert (cfg.DATALOADER.TRAIN_X.BATCH_SIZE, cfg.DATALOADER.TEST.BATCH_SIZE) == (8, 8)
