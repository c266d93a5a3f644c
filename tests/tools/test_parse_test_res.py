"""The parser prints what Dassl's prints; what it leaves out, it names."""

import json
import re
from pathlib import Path

import pytest

from tests.fixtures.make_parity import FOLDER
from tools.parse_test_res import main

FACTS = json.loads((FOLDER / "parity.json").read_text())


def write(run: str, lines: list[str]) -> None:
    Path(run).mkdir(parents=True)
    Path(run, "log.txt").write_text("\n".join([*lines, ""]))


@pytest.fixture
def originals(tmp_path, monkeypatch) -> None:
    """The folders that the captured calls of the original's parser speak of, with logs of the original."""
    monkeypatch.chdir(tmp_path)
    logs = FACTS["logs"]
    for run, lines in logs.items():
        write(run, lines)
    for seed, accuracy in enumerate(("8.0", "10.0", "14.5"), start=1):  # of these, the accuracies are known
        lines = logs["out/multi/b/seed1"]
        write(f"out/multi/a/seed{seed}", [re.sub(r"accuracy: .*%", f"accuracy: {accuracy}%", line) for line in lines])
        lines = logs[f"out/multi/b/seed{seed}"]
        write(f"out/evalm/seed{seed}", lines[lines.index("=> result") :])
    write("out/intr/seed1", logs["out/multi/b/seed1"])
    write("out/intr/seed2", logs["out/bvp/seed1"][:8])  # up to a result on validation images
    Path("out/miss/seed1").mkdir(parents=True)


# What our message has where the original ends in a traceback.
MESSAGES = {"out/evalm": "--test-log", "out/miss": "out/miss/seed1: no log.txt"}


@pytest.mark.parametrize("number", range(len(FACTS["parser"])))
def test_captured_calls_print_what_they_printed(originals, capsys, number):
    call = FACTS["parser"][number]
    code = main(call["arguments"].split())
    printed, message = capsys.readouterr()
    if call["code"]:
        assert code == 2
        assert MESSAGES[call["arguments"]] in message
    elif "--ci95" in call["arguments"]:
        assert printed == call["printed"].replace("+- 3.08%", "+- 8.27%")  # Student's t for three seeds
    else:
        assert (printed, code) == (call["printed"], 0)
    assert ("left out out/intr/seed2: the log has no accuracy" in message) == (call["arguments"] == "out/intr")


def test_the_last_result_of_a_log_counts(originals, capsys):
    """As with a trainer that tests twice after its training."""
    with open("out/bvp/seed1/log.txt", "a") as log:
        log.write("=> result\n* total: 200\n* accuracy: 12.50%\n")
    assert main(["out/bvp"]) == 0
    assert "* accuracy: 12.50% +- 0.00%" in capsys.readouterr().out


def test_a_folder_that_is_not_there_is_named(tmp_path, capsys):
    assert main([str(tmp_path / "absent")]) == 2
    assert f"error: no folder {tmp_path / 'absent'}" in capsys.readouterr().err


def shape(line: str) -> str:
    """A line of a log without its numbers, names and folders."""
    return re.sub(r"\(\D+\)|\S+/", "", re.sub(r"\d[\d,]*", "0", line))


def test_our_log_has_the_originals_lines(run):
    """In the original's order; the figures that it prints with one decimal have two."""
    trained = run("OPTIM.MAX_EPOCH", 1, "DATASET.NUM_SHOTS", 1)
    evaluated = run("--eval-only", "TEST.PER_CLASS_RESULT", True, trainer="ZeroshotCLIP", out="zero-shot")
    expected = FACTS["logs"]["out/multi/b/seed1"][3:]
    expected_evaluation = FACTS["logs"]["zero-shot, ensemble"][:-1]  # the last is of the confusion matrix
    for log, lines in ((trained.log, expected), (evaluated.log, expected_evaluation)):
        shapes = map(shape, log.splitlines())
        for line in lines:
            assert shape(line) in shapes, line
