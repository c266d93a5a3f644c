"""Logs and records of runs: the parsers return the last written result or None, never another number."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dassl.config import get_cfg_default, to_dict
from dassl.engine.record import find_staleness, read_record
from dassl.log_format import format_class_result, format_result, read_result
from inference.trained_run import load_classnames, load_run_cfg
from studies.tables import pareto
from studies.tables import study as tables
from tests.fuzz.cases import Refusal, mutations, outcome, texts

percents = st.integers(0, 10_000).map(lambda n: n / 100)
NOISE = (
    "epoch [1/50] batch [5/5] time 0.1 (0.1) data 0.0 (0.0) loss 1.2 (1.3) acc 96.8750 (95.1) lr 2e-3 eta 0:00:42",
    "* class: 3 (tench)\ttotal: 9\tcorrect: 9\tacc: 98.19%",
    format_class_result(0, "x\n* accuracy: 99.99%\u2028* accuracy: 99.98%", 9, 9),
    format_class_result(1, "* accuracy: 99.97%", 9, 9),
    "* macro_f1: 12.34%",
    "* accuracy: 77",
    "the accuracy: 88.88%",
    " Finish training, they say",
    "\x00\x01\ufffd",
    "Note: class Finish training * accuracy: 66.66%",
)
END, EVALUATED = "Finish training", "=> result"
line = st.one_of(st.sampled_from([*NOISE, END, "Finished training", EVALUATED]), percents)


def format_lines(entries: list) -> list[str]:
    """Return the lines of a log; an entry is a line or an accuracy in percent."""
    return [entry if isinstance(entry, str) else f"* accuracy: {entry:.2f}%" for entry in entries]


def expected(entries: list, test_log: bool) -> float | None:
    """Return the last accuracy after the line from which results count."""
    markers = {EVALUATED} if test_log else {END, "Finished training"}
    start = next((i for i, entry in enumerate(entries) if entry in markers), len(entries))
    return next((entry for entry in reversed(entries[start:]) if isinstance(entry, float)), None)


@given(st.lists(line, min_size=1, max_size=12), st.booleans(), st.sampled_from(["\n", "\r\n"]), st.data())
def test_the_last_result_counts_even_in_a_log_that_is_cut_off(tmp_path_factory, entries, test_log, end, data):
    path = tmp_path_factory.getbasetemp() / "log.txt"
    content = end.join(format_lines(entries)).encode()
    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    complete = [e for i, e in enumerate(entries) if len(end.join(format_lines(entries[: i + 1])).encode()) <= cut]
    tail = content[:cut].decode(errors="replace").split(end)[-1]
    if tail in (END, "Finished training", EVALUATED) and len(complete) < len(entries):
        complete.append(tail)  # a line such as "Finish training, they say" was cut after the marker
    assert outcome(read_result, path, "accuracy", test_log) == expected(complete, test_log)


LOG = f"start\n{END}\n{format_result(1000, 985, 98.1)}\n"


@given(mutations(LOG.encode()))
@example(LOG.replace("98.50", "nan").encode())
@example(LOG.replace("98.50", "1_0").encode())
@example((LOG + LOG.replace("98.50", "985.0")).encode())
@example((LOG + "x * accuracy: 12.00%\n").encode())
def test_a_damaged_log_is_refused_or_gives_a_number_in_it(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "damaged.txt"
    path.write_bytes(content)
    value = outcome(read_result, path, naming=path)
    if not isinstance(value, Refusal) and value is not None:
        assert 0 <= value <= 100
        written = re.findall(rb"\* accuracy: ([0-9.eE+-]+)%", content)
        assert value in [float(number) for number in written]


RECORD = {
    "accuracy": 98.5,
    "correct": 985,
    "total": 1000,
    "trainer": "CoOp",
    "seed": 1,
    "models": ["prompt_learner"],
    "train_images_per_class": [16, 16],
    "splits": {"test": {"images": 1000, "sha256": "b" * 64}},
    "machine": {"sums": "MKL AVX2,STRICT"},
    "trainable_parameters": 2048,
    "weights": {"backbone": "tiny", "file": "", "sha256": "a" * 64},
    "classnames": ["cat", "dog"],
    "command": ["--trainer", "CoOp"],
    "config": to_dict(get_cfg_default()),
}
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts, st.just(10**400))
lists = st.lists(scalars, max_size=3)
json_values = st.one_of(scalars, lists, st.dictionaries(texts, st.one_of(scalars, lists), max_size=3))
keys = st.sampled_from([*RECORD, "config.FEATURES", "config.FEATURES.PREC", "config.SEED"])


@st.composite
def records(draw: st.DrawFn) -> bytes:
    """Draw a record with some values replaced, or with damaged bytes."""
    record = json.loads(json.dumps(RECORD))
    for key, value in draw(st.dictionaries(keys, json_values, max_size=3)).items():
        node, *path = record, *key.split(".")
        for name in path[:-1]:
            node = node[name] if isinstance(node.get(name), dict) else {}
        node[path[-1]] = value
    content = json.dumps(record).encode()
    return draw(st.one_of(st.just(content), mutations(content)))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folder of a study of two runs; the record of one run is the case."""
    folder = tmp_path_factory.mktemp("study")
    for run in ("a", "b"):
        (folder / run).mkdir()
        (folder / run / "log.txt").write_text(LOG)
        (folder / run / "result.json").write_text(json.dumps({**RECORD, "trainer": "ZeroshotCLIP", "models": []}))
    return folder


@given(records())
@example(b"[1, 2]")
@example(b'{"config": {"FEATURES": {"PREC": ["bf16"]}}}')
@example(b'{"trainable_parameters": true, "weights": 3}')
@example(b'{"trainable_parameters": ' + b"9" * 400 + b"}")
@example(b'{"classnames": "cat"}')
@example(b"[" * 100_000)
@example(b'{"accuracy": NaN}')
@example(b'{"accuracy": 98.5, "seed": 1, "trainer": "CoOp", "config": {"TRAINER": {"COOP": {"N_CTX": []}}}}')
@example(b'{"accuracy": 98.5, "seed": 1, "trainer": "CoOp", "config": {"DATASET": {"NUM_SHOTS": 1e400}}}')
@example(b'{"accuracy": 98.5, "seed": 1, "trainer": "CoOp", "config": {"PROTOCOL": ["none"]}, "group": null}')
@example(
    b'{"accuracy": 98.5, "seed": 1, "trainer": "CoOp", "config": {"PROTOCOL": "x"}, "few_shot_split": {"draws": []}}'
)
@example(b'{"accuracy": 98.5, "seed": 1, "trainer": "CoOp", "config": {}, "split": ["test"], "total": true}')
@example(b'{"accuracy": 98.5, "seed": 1, "trainer": "CoOp", "config": {}, "train_images_per_class": [null, {}]}')
@example(
    b'{"accuracy": 98.5, "seed": 1, "trainer": "CoOp", "config": {"MODEL": {"INIT_WEIGHTS": "x"}}, "started_from": [3]}'
)
def test_a_damaged_record_is_refused_or_its_run_counts_with_the_accuracy_in_it(study, content):
    run = study / "b"
    (run / "result.json").write_bytes(content)
    record = outcome(read_record, run, naming=run)
    assert isinstance(find_staleness(run, ["--trainer", "CoOp"]), str)
    names = outcome(load_classnames, run)
    outcome(load_run_cfg, run)
    studies = outcome(tables.read_studies, study)
    if isinstance(record, Refusal):
        assert studies == names == record
        return
    assert names == [str(name) for name in record.get("classnames", [])]
    if not isinstance(studies, Refusal):
        page = "".join(tables.to_markdown(table, "a study") for table in studies)
        assert f" {record['accuracy']:.2f}" in page if record["accuracy"] is not None else "no accuracy" in page
        pareto.collect_points(studies[0].table)
