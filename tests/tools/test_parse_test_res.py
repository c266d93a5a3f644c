"""tools/parse_test_res.py: the same output as Dassl's parser, and a note for each folder without a result."""

import json
import re
from pathlib import Path

import pytest

from tests.fixtures.make_parity import FOLDER
from tests.studies.records import write_run
from tools.parse_test_res import main

PARITY = json.loads((FOLDER / "parity.json").read_text(encoding="utf-8"))


def write_log(run: str, lines: list[str]) -> None:
    """Write the log of a run into the folder ``run``."""
    Path(run).mkdir(parents=True)
    Path(run, "log.txt").write_text("\n".join([*lines, ""]), encoding="utf-8")


@pytest.fixture
def originals(tmp_path, monkeypatch) -> None:
    """Write the folders that the captured calls of Dassl's parser read, with logs of the original CoOp."""
    monkeypatch.chdir(tmp_path)
    logs = PARITY["logs"]
    for run, lines in logs.items():
        write_log(run, lines)
    for seed, accuracy in enumerate(("8.0", "10.0", "14.5"), start=1):  # with known accuracies
        lines = logs["out/multi/b/seed1"]
        write_log(
            f"out/multi/a/seed{seed}", [re.sub(r"accuracy: .*%", f"accuracy: {accuracy}%", line) for line in lines]
        )
        lines = logs[f"out/multi/b/seed{seed}"]
        write_log(f"out/evalm/seed{seed}", lines[lines.index("=> result") :])
    write_log("out/intr/seed1", logs["out/multi/b/seed1"])
    write_log("out/intr/seed2", logs["out/bvp/seed1"][:8])  # up to a result on validation images
    Path("out/miss/seed1").mkdir(parents=True)


# arguments of a call that ends in a traceback in Dassl -> fragment of our message
MESSAGES = {"out/evalm": "--test-log", "out/miss": "out/miss/seed1: no log.txt"}


@pytest.mark.parametrize("number", range(len(PARITY["parser"])))
def test_captured_calls_print_the_output_of_dassls_parser(originals, capsys, number):
    call = PARITY["parser"][number]
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


def test_the_last_result_in_a_log_is_read(originals, capsys):
    """Some trainers test a second time after training."""
    with open("out/bvp/seed1/log.txt", "a", encoding="utf-8") as log:
        log.write("=> result\n* total: 200\n* accuracy: 12.50%\n")
    assert main(["out/bvp"]) == 0
    assert "* accuracy: 12.50% +- 0.00%" in capsys.readouterr().out


def test_records_of_one_seed_or_of_other_settings_are_named_and_not_averaged(tmp_path, capsys):
    for seed, accuracy in ((1, 70), (2, 72)):
        write_run(tmp_path / f"seed{seed}", accuracy, seed=seed)
    write_run(tmp_path / "seed1/rerun", 99, seed=3)  # inside a run's folder, so it is not looked at
    assert main([str(tmp_path)]) == 0
    assert "* accuracy: 71.00% +- 1.00%" in capsys.readouterr().out
    write_run(tmp_path / "seed1-rerun", 70, seed=1)
    assert main([str(tmp_path)]) == 2
    printed, message = capsys.readouterr()
    assert f"file: {tmp_path}/seed2/log.txt. accuracy: 72.00%" in printed
    assert "Summary" not in printed
    assert f"a seed has several records: seed 1: {tmp_path}/seed1 (70.00), {tmp_path}/seed1-rerun (70.00)" in message
    write_run(tmp_path / "seed1-rerun", 70, seed=3, config={"OPTIM.MAX_EPOCH": 7})
    assert main([str(tmp_path)]) == 2
    assert f"OPTIM.MAX_EPOCH 7 ({tmp_path}/seed1-rerun)" in capsys.readouterr().err


def test_retrieval_results_of_other_definitions_are_not_averaged(tmp_path, capsys):
    """Records of earlier versions counted captions that images share as wrong; without such, nothing has changed."""
    config, metric = {"TEST.EVALUATOR": "Retrieval"}, ("--keyword", "recall@1")
    for seed in (1, 2):
        folder = write_run(tmp_path / f"seed{seed}", 0, seed=seed, config=config)
        (folder / "log.txt").write_text(f"Finish training\n=> result\n* recall@1: {10 * seed:.2f}%\n", "utf-8")
    assert main([str(tmp_path), *metric]) == 0
    assert "* recall@1: 15.00%" in capsys.readouterr().out
    record = json.loads((tmp_path / "seed2/result.json").read_text("utf-8")) | {"shared_captions": {"test": 12}}
    (tmp_path / "seed2/result.json").write_text(json.dumps(record), "utf-8")
    assert main([str(tmp_path), *metric]) == 2
    message = capsys.readouterr().err
    assert f"shared captions 12 ({tmp_path}/seed2)" in message
    assert f"shared captions none recorded ({tmp_path}/seed1)" in message


def test_evaluations_of_one_model_are_named_and_not_averaged(tmp_path, capsys):
    for seed in (1, 2):
        model = {"eval_only": True, "started_from": [{"file": "run/seed1/prompt_learner/model", "sha256": "a"}]}
        write_run(tmp_path / f"seed{seed}", 70, seed=seed, **model)
    assert main([str(tmp_path), "--test-log"]) == 2
    printed, message = capsys.readouterr()
    assert f"a model has several records: one model: {tmp_path}/seed1 (70.00), {tmp_path}/seed2 (70.00)" in message
    assert "Summary" not in printed


def test_differing_sums_are_named_and_averaged(tmp_path, capsys):
    for seed, sums in ((1, "MKL AVX2,STRICT"), (2, None)):
        write_run(tmp_path / f"seed{seed}", 70, seed=seed, machine={"sums": sums})
    assert main([str(tmp_path)]) == 0
    printed, message = capsys.readouterr()
    assert "* accuracy: 70.00% +- 0.00%" in printed
    expected = f"sums MKL AVX2,STRICT ({tmp_path}/seed1); sums not recorded ({tmp_path}/seed2)"
    assert message == f"note: sums differ: {expected}\n"


def test_an_absent_folder_is_named(tmp_path, capsys):
    assert main([str(tmp_path / "absent")]) == 2
    assert f"error: no folder {tmp_path / 'absent'}" in capsys.readouterr().err


def normalize_line(line: str) -> str:
    """Return a line of a log without its numbers, names and folders."""
    return re.sub(r"\(\D+\)|\S+/", "", re.sub(r"\d[\d,]*", "0", line))


def test_our_log_has_the_lines_of_the_original_in_its_order(run):
    """Figures that the original prints with one decimal have two."""
    trained = run("OPTIM.MAX_EPOCH", 1, "DATASET.NUM_SHOTS", 1)
    evaluated = run("--eval-only", "TEST.PER_CLASS_RESULT", True, trainer="ZeroshotCLIP", out="zero-shot")
    expected = PARITY["logs"]["out/multi/b/seed1"][3:]
    expected_evaluation = PARITY["logs"]["zero-shot, ensemble"][:-1]  # the last line is about the confusion matrix
    for log, lines in ((trained.log, expected), (evaluated.log, expected_evaluation)):
        log_lines = map(normalize_line, log.splitlines())
        for line in lines:
            assert normalize_line(line) in log_lines, line
