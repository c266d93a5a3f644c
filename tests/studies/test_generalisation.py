"""The tables from base to new classes and from ImageNet to other data sets; the sweeps that fill them."""

import csv
import json
from pathlib import Path

import pytest

from studies.grid import build_trials, read_sweep
from studies.schedule import group_into_stages
from tests.common import REPOSITORY
from tools import sweep
from tools.results_table import main

TESTED = "=> result\n* accuracy: {:.2f}%\n"
TRAINED = "Finish training\nFinished training\n" + TESTED
COOP, COCOOP, ZERO = "shots_16/CoOp/ep50", "shots_16/CoCoOp/c4", "shots_0/ZeroshotCLIP/tiny"


@pytest.fixture
def write(tmp_path):
    """A function that writes the logs of runs, ``<name>/seed<n>``; of a single run, ``<name>``."""

    def call(name, *accuracies, form=TESTED, **record):
        for seed, accuracy in enumerate(accuracies, start=1):
            run = tmp_path / name / (f"seed{seed}" if len(accuracies) > 1 else "")
            run.mkdir(parents=True, exist_ok=True)
            (run / "log.txt").write_text(form.format(accuracy))
            if record:
                (run / "result.json").write_text(json.dumps(record))
        return tmp_path / Path(name).parts[0]

    return call


@pytest.fixture
def base_to_new(write):
    """A function that writes a method's runs on the base and on the new classes of a data set."""

    def call(data, method, base, new, **record):
        trained = method != ZERO
        write(f"b2n/{'train' if trained else 'test'}_base/{data}/{method}", *base, form=TRAINED, **record)
        return write(f"b2n/test_new/{data}/{method}", *new, **record)

    return call


def table(folder, name="base_to_new") -> list[list[str]]:
    return list(csv.reader((folder / f"{name}.csv").open()))


def page(folder, name="base_to_new") -> str:
    return (folder / f"{name}.md").read_text()


def test_base_new_and_harmonic_mean(base_to_new, capsys):
    base_to_new("dtd", ZERO, [60], [60])
    base_to_new("eurosat", ZERO, [50], [100])
    base_to_new("dtd", COOP, [80, 81, 85], [60, 60, 60])
    folder = base_to_new("eurosat", COOP, [90, 90, 90], [40, 40, 40])
    assert main([str(folder)]) == 0
    zero, coop = "ZeroshotCLIP, tiny, 0 shots", "CoOp, ep50, 16 shots"
    assert table(folder) == [
        ["data set", "method", "base", "new", "H"],
        ["dtd", zero, "60.00", "60.00", "60.00"],
        ["dtd", coop, "82.00 ± 6.57", "60.00 ± 0.00", "69.30"],
        ["eurosat", zero, "50.00", "100.00", "66.67"],
        ["eurosat", coop, "90.00 ± 0.00", "40.00 ± 0.00", "55.38"],
        ["average", zero, "55.00", "80.00", "65.19"],  # H of the averages, not the average of H
        ["average", coop, "86.00", "50.00", "63.24"],
    ]
    text = page(folder)
    assert text in capsys.readouterr().out
    assert "Student's t" in text
    assert "Missing" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in rows[2].strip("|").split("|")] == table(folder)[1]
    assert len({len(row) for row in rows}) == 1


def test_methods_without_training_come_first_then_by_shots(base_to_new):
    for method in (COOP, "shots_4/CoOp/ep50", "shots_1/CoOp/ep50", COCOOP, ZERO):
        folder = base_to_new("dtd", method, [60], [60])
    main([str(folder)])
    names = ["ZeroshotCLIP, tiny, 0 shots", "CoCoOp, c4, 16 shots"]
    names += ["CoOp, ep50, 1 shot", "CoOp, ep50, 4 shots", "CoOp, ep50, 16 shots"]
    assert [row[1] for row in table(folder)[1:]] == names  # and of one data set there is no average


def test_base_to_new_says_what_is_missing(base_to_new, write):
    base_to_new("dtd", COOP, [80, 80, 80], [60, 60])
    base_to_new("eurosat", COOP, [80, 80, 80], [60, 60, 60])
    write(f"b2n/train_base/dtd/{COCOOP}", 99, 98)  # validation results of runs that did not end
    folder = base_to_new("eurosat", COCOOP, [80, 80], [70, 70])
    main([str(folder)])
    rows = {tuple(row[:2]): row[2:] for row in table(folder)}
    assert rows["dtd", "CoOp, ep50, 16 shots"] == ["80.00 ± 0.00", "60.00 ± 0.00", "68.57"]
    assert rows["dtd", "CoCoOp, c4, 16 shots"] == ["-", "-", "-"]
    assert rows["average", "CoCoOp, c4, 16 shots"] == ["-", "-", "-"]
    assert rows["average", "CoOp, ep50, 16 shots"] == ["80.00", "60.00", "68.57"]
    missing = page(folder).partition("Missing:")[2].splitlines()
    assert [line.partition(": ")[0] for line in missing if line] == [
        "- dtd, CoCoOp, c4, 16 shots, base",
        "- dtd, CoCoOp, c4, 16 shots, base",
        "- dtd, CoCoOp, c4, 16 shots, new",
        "- dtd, CoCoOp, c4, 16 shots, new",
        "- dtd, CoOp, ep50, 16 shots, new",
    ]
    assert f"train_base/dtd/{COCOOP}/seed2: the run has not ended" in page(folder)
    assert f"test_new/dtd/{COOP}/seed3: no log.txt" in page(folder)


@pytest.mark.parametrize(
    ("part", "dataset", "said"),
    [
        ("train_base", {"SUBSAMPLE_CLASSES": "all", "NUM_SHOTS": 16}, "SUBSAMPLE_CLASSES all"),
        ("train_base", {"SUBSAMPLE_CLASSES": "base", "NUM_SHOTS": 4}, "NUM_SHOTS 4"),
        ("test_new", {"SUBSAMPLE_CLASSES": "base", "NUM_SHOTS": 16}, "SUBSAMPLE_CLASSES base"),
    ],
)
def test_runs_on_other_classes_are_left_out(base_to_new, part, dataset, said):
    folder = base_to_new("dtd", COOP, [80], [60])
    for name, sub in (("train_base", "base"), ("test_new", "new")):
        config = {"DATASET": dataset if name == part else {"SUBSAMPLE_CLASSES": sub, "NUM_SHOTS": 16}}
        (folder / name / "dtd" / COOP / "result.json").write_text(json.dumps({"config": config}))
    main([str(folder)])
    expected = {"train_base": ["-", "60.00"], "test_new": ["80.00", "-"]}[part]
    assert table(folder)[1][2:] == [*expected, "-"]
    assert f"its record says DATASET.{said}" in page(folder)


def test_weights_and_shortcuts_of_generalisation(base_to_new, write):
    def record(**features):
        return {"weights": {"backbone": "RN50", "sha256": "a" * 64}, "config": {"FEATURES": features}}

    base_to_new("dtd", COOP, [80], [60], **record())
    base_to_new("eurosat", COOP, [80], [60], **record(VIEWS=16))
    folder = base_to_new("eurosat", ZERO, [50], [50], **record(VIEWS=16))  # trains nothing
    main([str(folder)])
    rows = {tuple(row[:2]): row[2:] for row in table(folder)}
    assert rows["dtd", "CoOp, ep50, 16 shots"] == ["80.00", "60.00", "68.57"]
    assert rows["eurosat", "CoOp, ep50, 16 shots"] == ["80.00*", "60.00*", "68.57*"]
    assert rows["average", "CoOp, ep50, 16 shots"] == ["80.00*", "60.00*", "68.57*"]
    assert rows["eurosat", "ZeroshotCLIP, tiny, 0 shots"] == ["50.00", "50.00", "50.00"]
    assert page(folder).count("\n\\* FEATURES.VIEWS 16: ") == 1
    assert "different weights" not in page(folder)
    base_to_new("dtd", COOP, [80], [60], weights={"backbone": "RN50", "sha256": "b" * 64})
    main([str(folder)])
    assert "different weights" in page(folder)


@pytest.fixture
def evaluation(write):
    """CoOp, trained on ImageNet and tested on two variants of it and two other data sets; zero-shot on the variants."""
    coop = "CoOp/ep50_16shots"
    write(f"imagenet/{coop}", 70, 72, form=TRAINED)
    write("imagenet/ZeroshotCLIP/vit_0shots", 60)
    for data, accuracies in {
        "imagenet_a": (40, 42),
        "imagenetv2": (60, 60),
        "dtd": (50, 52),
        "ucf101": (70, 70),
    }.items():
        folder = write(f"evaluation/{coop}/{data}", *accuracies)
    write("evaluation/ZeroshotCLIP/vit_0shots/imagenet_a", 30)
    write("evaluation/ZeroshotCLIP/vit_0shots/imagenetv2", 50)
    return folder


def test_transfer(evaluation):
    assert main([str(evaluation)]) == 0
    columns = ["imagenet", "imagenet_a", "imagenetv2", "average of variants"]
    columns += ["dtd", "ucf101", "average of other data sets"]
    coop = ["71.00 ± 12.71", "41.00 ± 12.71", "60.00 ± 0.00", "50.50", "51.00 ± 12.71", "70.00 ± 0.00", "60.50"]
    assert table(evaluation, "transfer") == [
        ["accuracy (%)", *columns],
        ["ZeroshotCLIP, vit, 0 shots", "60.00", "30.00", "50.00", "40.00", "-", "-", "-"],
        ["CoOp, ep50, 16 shots", *coop],
    ]
    variants, others = page(evaluation, "transfer").split("# From imagenet to ")[1:]
    assert variants.startswith("variants")
    assert "ZeroshotCLIP" in variants
    assert "dtd" not in variants
    assert others.startswith("other data sets")
    assert "ZeroshotCLIP" not in others
    assert "imagenetv2" not in others
    assert "Missing" not in others


def test_transfer_says_what_is_missing(evaluation, write):
    write("evaluation/CoCoOp/c4_16shots/dtd", 60, 60)  # it was trained elsewhere
    (evaluation / "CoOp/ep50_16shots/ucf101/seed2/log.txt").write_text("Traceback\n")
    main([str(evaluation)])
    rows = {row[0]: row[1:] for row in table(evaluation, "transfer")}
    assert rows["CoCoOp, c4, 16 shots"] == ["-", "-", "-", "-", "60.00 ± 0.00", "-", "-"]
    assert rows["CoOp, ep50, 16 shots"][-2:] == ["70.00", "60.50"]
    missing = page(evaluation, "transfer").partition("Missing:")[2]
    assert missing.count("\n- ") == 3
    assert "- ucf101, CoCoOp, c4, 16 shots: " in missing
    assert "CoOp/ep50_16shots/ucf101/seed2: no result in the log" in missing


def test_what_eval_sh_writes_is_transfer(write, evaluation):
    variant = "CoOp/rn50_16shots/nctx4_cscFalse_ctpend"
    write(f"evaluation/{variant}/dtd", 61, 61)
    write(f"imagenet/{variant}", 71, 71, form=TRAINED)
    main([str(evaluation)])
    row = next(row for row in table(evaluation, "transfer") if row[0].startswith("CoOp, rn50"))
    assert row[:2] + row[5:6] == ["CoOp, rn50, nctx4_cscFalse_ctpend, 16 shots", "71.00 ± 0.00", "61.00 ± 0.00"]
    assert len(table(evaluation, "transfer")) == 4


def test_shortcuts_of_the_training_mark_the_transfer(write, evaluation):
    write("imagenet/CoOp/ep50_16shots", 70, 72, form=TRAINED, config={"FEATURES": {"VIEWS": 16}})
    main([str(evaluation)])
    assert all(cell.endswith("*") for cell in table(evaluation, "transfer")[2][1:])
    assert "*" not in "".join(table(evaluation, "transfer")[1])


def test_studies_are_not_transfer(write):
    for name in ("CoOp/rn50_4shots", "CoOp/rn50_8shots_ctx4", "CoOp/rn50_8shots/nctx16_cscFalse_ctpend"):
        folder = write(f"imagenet/{name}", 70, 72, form=TRAINED)
    assert main([str(folder)]) == 0
    assert sorted(path.name for path in folder.glob("*.md")) == ["results.md"]


def test_no_generalisation_is_finished(write, capsys):
    folder = write(f"b2n/train_base/dtd/{COOP}", 99)
    assert main([str(folder)]) == 2
    assert f"train_base/dtd/{COOP}: the run has not ended" in capsys.readouterr().err
    assert not list(folder.glob("[!.]*.*"))


@pytest.mark.parametrize(
    ("name", "runs", "tests"),
    [
        ("base_to_new", 154, 66),
        ("cross_dataset", 77, 60),
        ("domain_generalisation", 35, 24),
        ("digits_base_to_new", 20, 9),
    ],
)
def test_the_sweeps_name_what_exists(name, runs, tests):
    """Each test of a model comes after the run that makes it, with the same trainer, config, seed and context."""
    cells = build_trials(read_sweep(REPOSITORY / f"configs/sweeps/{name}.yaml"), "out", "", [], [])
    assert len(cells) == runs
    first, second = group_into_stages(cells)
    assert len(second) == tests
    trained = {cell.folder: cell for cell in first if "--eval-only" not in cell.command}
    assert {cell.model for cell in second} == set(trained)
    for cell in cells:
        values = dict(zip(cell.command, cell.command[1:], strict=False))
        assert (REPOSITORY / values["--config-file"]).is_file()
        assert (REPOSITORY / values["--dataset-config-file"]).is_file()
        if cell.model:
            made = dict(zip(trained[cell.model].command, trained[cell.model].command[1:], strict=False))
            for key in ("--trainer", "--config-file", "--seed", "TRAINER.COOP.N_CTX"):
                assert values.get(key) == made.get(key), (cell, key)


def test_both_transfers_share_their_training():
    trained = []
    for name in ("cross_dataset", "domain_generalisation"):
        cells = build_trials(read_sweep(REPOSITORY / f"configs/sweeps/{name}.yaml"), "", "", [], [])
        trained.append({cell for cell in cells if cell.folder.is_relative_to("output/imagenet")})
    assert trained[0] == trained[1]
    assert len(trained[0]) == 7


def test_a_sweep_from_base_to_new(digits_root, tmp_path):
    """The digits' sweep with one seed and two epochs, and its table."""
    file = REPOSITORY / "configs/sweeps/digits_base_to_new.yaml"
    runs = [run for run in read_sweep(file)["runs"] if "CoCoOp" not in run["folder"]]
    path = tmp_path / "sweep.yaml"
    path.write_text(json.dumps({**read_sweep(file), "runs": runs}))
    folder = tmp_path / "out"
    command = [str(path), "--root", str(digits_root), "--output-dir", str(folder), "--seeds", "1", "--jobs", "1"]
    assert sweep.main([*command, "OPTIM.MAX_EPOCH", "2"]) == 0
    assert main([str(folder)]) == 0
    rows = {row[1]: row[2:] for row in table(folder)[1:]}
    assert set(rows) == {"ZeroshotCLIP, tiny, 0 shots", "CoOp, tiny_ctx4, 16 shots", "CoOp, tiny_ctx16, 16 shots"}
    assert "Missing" not in page(folder)
    for column, (part, subsample) in enumerate((("train_base", "base"), ("test_new", "new"))):
        record = json.loads((folder / part / "digits/shots_16/CoOp/tiny_ctx4/seed1/result.json").read_text())
        assert record["config"]["DATASET"]["SUBSAMPLE_CLASSES"] == subsample
        assert f"{record['accuracy']:.2f}" == rows["CoOp, tiny_ctx4, 16 shots"][column]
