"""The parser prints what Dassl's prints; what it leaves out, it names."""

import json
import re
import shutil
from pathlib import Path

import pytest

from dassl.log_format import END_OF_TRAINING
from tests.fixtures.make_parity import FOLDER
from tools.parse_test_res import main

FACTS = json.loads((FOLDER / "parity.json").read_text())

LOG = "epoch [1/1]\nFinish training\n=> result\n* total: 200\n* accuracy: {accuracy}%\n* error: {error}%\n"


@pytest.fixture
def seeds(tmp_path):
    def write(folder, accuracies):
        for seed, accuracy in enumerate(accuracies, start=1):
            run = tmp_path / folder / f"seed{seed}"
            run.mkdir(parents=True)
            (run / "log.txt").write_text(LOG.format(accuracy=accuracy, error=100 - accuracy))
        return tmp_path / folder

    return write


def test_mean_and_deviation(seeds, capsys):
    folder = seeds("b", [10.0, 9.5, 15.5])
    assert main([str(folder)]) == 0
    assert capsys.readouterr().out == (
        f"Parsing files in {folder}\n"
        f"file: {folder}/seed1/log.txt. accuracy: 10.00%. \n"
        f"file: {folder}/seed2/log.txt. accuracy: 9.50%. \n"
        f"file: {folder}/seed3/log.txt. accuracy: 15.50%. \n"
        f"===\nSummary of directory: {folder}\n* accuracy: 11.67% +- 2.72%\n===\n"
    )


def test_keyword_interval_and_several_experiments(seeds, capsys):
    seeds("all/a", [8.0, 10.0, 14.5])
    seeds("all/b", [10.0, 9.5, 15.5])
    folder = seeds("all/b", []).parent
    main([str(folder / "b"), "--keyword", "error"])
    assert "* error: 88.33% +- 2.72%" in capsys.readouterr().out
    main([str(folder / "b"), "--ci95"])
    assert "* accuracy: 11.67% +- 8.27%" in capsys.readouterr().out
    main([str(folder), "--multi-exp"])
    assert capsys.readouterr().out.endswith("Average performance\n* accuracy: 11.25%\n")


def test_what_is_missing_is_named(seeds, capsys, tmp_path):
    folder = seeds("b", [10.0])
    for name, text in {"seed2": "epoch [1/2]\n* accuracy: 99.00%\n", "seed3": None}.items():
        (folder / name).mkdir()
        if text:
            (folder / name / "log.txt").write_text(text)
    assert main([str(folder)]) == 0
    output = capsys.readouterr()
    assert "* accuracy: 10.00% +- 0.00%" in output.out
    assert f"{folder}/seed2: training has not ended" in output.err
    assert f"{folder}/seed3: no log.txt" in output.err
    shutil.rmtree(folder / "seed1")
    assert main([str(folder)]) == 2
    assert f"error: no results in {folder}" in capsys.readouterr().err
    assert main([str(tmp_path / "absent")]) == 2
    assert "no folder" in capsys.readouterr().err


def test_the_last_result_of_a_log_counts(seeds, capsys):
    """As with a trainer that tests twice after its training."""
    folder = seeds("b", [10.0])
    with open(folder / "seed1/log.txt", "a") as log:
        log.write("=> result\n* total: 200\n* accuracy: 12.50%\n")
    assert main([str(folder)]) == 0
    assert "* accuracy: 12.50% +- 0.00%" in capsys.readouterr().out


def test_eval_only_logs_need_their_flag(seeds, capsys):
    folder = seeds("e", [])
    (folder / "seed1").mkdir(parents=True)
    (folder / "seed1/log.txt").write_text("=> result\n* accuracy: 50.00%\n")
    assert main([str(folder)]) == 2
    assert "--test-log" in capsys.readouterr().err
    assert main([str(folder), "--test-log"]) == 0


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
    assert ("out/intr/seed2: training has not ended" in message) == (call["arguments"] == "out/intr")


def shape(line: str) -> str:
    """A line of a log without its numbers, names and folders."""
    return re.sub(r"\(\D+\)|\S+/", "", re.sub(r"\d[\d,]*", "0", line))


def test_our_log_has_the_originals_lines(run):
    """In the original's order; the figures that it prints with one decimal have two."""

    def shapes(*arguments, **flags):
        return map(shape, run(*arguments, "OPTIM.MAX_EPOCH", 1, "DATASET.NUM_SHOTS", 1, **flags).log.splitlines())

    training = shapes()
    for line in FACTS["logs"]["out/multi/b/seed1"][3:]:
        assert shape(line) in training, line
    evaluation = shapes("--eval-only", "TEST.PER_CLASS_RESULT", True, trainer="ZeroshotCLIP", out="zero-shot")
    for line in FACTS["logs"]["zero-shot, ensemble"][:-1]:  # the last is of the confusion matrix
        assert shape(line) in evaluation, line


def as_the_field(log: str, end: str) -> float:
    """As parsers of the field read a log: the last accuracy after a line that is exactly ``end``."""
    lines = [line.strip() for line in log.splitlines()]
    return float(re.findall(r"\* accuracy: ([\.\deE+-]+)%", "\n".join(lines[lines.index(end) :]))[-1])


def test_parsers_of_the_field_read_our_log_as_the_originals(run):
    assert as_the_field("\n".join(FACTS["logs"]["out/bvp/seed1"]), "Finish training") == 8.5
    result = run("OPTIM.MAX_EPOCH", 2, "DATASET.NUM_SHOTS", 1, "TEST.FINAL_MODEL", "best_val")
    for end in END_OF_TRAINING:
        assert as_the_field(result.log, end) == round(result.record["accuracy"], 2)
