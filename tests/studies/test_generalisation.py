"""The tables from base to new classes and from ImageNet to other data sets, and the sweeps that fill them."""

import csv
import hashlib
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from studies.grid import build_trials, read_sweep
from studies.schedule import group_into_stages
from tests.common import REPOSITORY
from tests.studies.records import write_run
from tools import sweep
from tools.results_table import main

COOP, COCOOP, ZERO = "shots_16/CoOp/ep50", "shots_16/CoCoOp/c4", "shots_0/ZeroshotCLIP/tiny"
EVAL = ["--trainer", "CoOp", "--eval-only", "--model-dir", "elsewhere"]


@pytest.fixture
def write_runs(tmp_path):
    """A function that writes one run per accuracy, in ``<name>/seed<n>``; a single run, in ``<name>``.

    It returns the first folder of ``name``. ``record`` has entries of the records, and ``config`` values by key.
    """

    def write(name, *accuracies, **record):
        trainer, shots = re.search(r"(CoOp|CoCoOp|ZeroshotCLIP)/", name)[1], re.search(r"shots_(\d+)|(\d+)shots", name)
        record = {"trainer": trainer, "shots": int(shots[1] or shots[2]), **record}
        for seed, accuracy in enumerate(accuracies, start=1):
            folder = tmp_path / name / (f"seed{seed}" if len(accuracies) > 1 else "")
            write_run(folder, accuracy, **{"seed": seed, **record})
        return tmp_path / Path(name).parts[0]

    return write


@pytest.fixture
def write_base_to_new(write_runs):
    """A function that writes a method's runs with these accuracies on the base and the new classes of a data set."""

    def write(data, method, base, new, config=None, **record):
        stage = "test_base" if method == ZERO else "train_base"
        for half, name, accuracies in (("base", stage, base), ("new", "test_new", new)):
            classes = {"DATASET.SUBSAMPLE_CLASSES": half, **(config or {})}
            more = {"dataset": data, "splits": {"test": {"sha256": data + half}}, "classnames": [data, half], **record}
            more |= {"command": EVAL} if half == "new" else {}
            folder = write_runs(f"b2n/{name}/{data}/{method}", *accuracies, config=classes, **more)
        return folder

    return write


def unfinish(folder: Path) -> None:
    """Make a run one that has not ended."""
    (folder / "result.json").unlink()


def read_csv(folder, name="base_to_new") -> list[list[str]]:
    """Return the rows of a table's CSV file."""
    return list(csv.reader((folder / f"{name}.csv").open(encoding="utf-8")))


def read_page(folder, name="base_to_new") -> str:
    """Return the text of a table's Markdown file."""
    return (folder / f"{name}.md").read_text(encoding="utf-8")


def test_the_harmonic_mean_is_that_of_the_mean_accuracies(write_base_to_new, capsys):
    write_base_to_new("dtd", ZERO, [60], [60])
    write_base_to_new("eurosat", ZERO, [50], [100])
    write_base_to_new("dtd", COOP, [80, 81, 85], [60, 60, 60])
    folder = write_base_to_new("eurosat", COOP, [90, 90, 90], [40, 40, 40])
    assert main([str(folder)]) == 0
    zero, coop = "ZeroshotCLIP, tiny, 0 shots", "CoOp, ep50, 16 shots"
    assert read_csv(folder) == [
        ["data set", "method", "base", "new", "H"],
        ["dtd", zero, "60.00", "60.00", "60.00"],
        ["dtd", coop, "82.00 ± 6.57", "60.00 ± 0.00", "69.30"],
        ["eurosat", zero, "50.00", "100.00", "66.67"],
        ["eurosat", coop, "90.00 ± 0.00", "40.00 ± 0.00", "55.38"],
        ["average", zero, "55.00", "80.00", "65.19"],  # H of the averages, not the average of H
        ["average", coop, "86.00", "50.00", "63.24"],
    ]
    text = read_page(folder)
    assert text in capsys.readouterr().out
    assert "Student's t" in text
    assert "Missing" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in rows[2].strip("|").split("|")] == read_csv(folder)[1]
    assert len({len(row) for row in rows}) == 1


def test_methods_without_training_come_first_and_the_others_are_sorted_by_shots(write_base_to_new):
    for method in (COOP, "shots_4/CoOp/ep50", "shots_1/CoOp/ep50", COCOOP, ZERO):
        folder = write_base_to_new("dtd", method, [60], [60])
    main([str(folder)])
    names = ["ZeroshotCLIP, tiny, 0 shots", "CoCoOp, c4, 16 shots"]
    names += ["CoOp, ep50, 1 shot", "CoOp, ep50, 4 shots", "CoOp, ep50, 16 shots"]
    assert [row[1] for row in read_csv(folder)[1:]] == names  # a single data set has no average


def test_runs_that_have_not_ended_are_listed_and_an_average_needs_all_data_sets(write_base_to_new):
    write_base_to_new("dtd", COOP, [80, 80, 80], [60, 60, 60])
    write_base_to_new("eurosat", COOP, [80, 80, 80], [60, 60, 60])
    write_base_to_new("dtd", COCOOP, [99, 98], [97, 96])
    folder = write_base_to_new("eurosat", COCOOP, [80, 80], [70, 70])
    unfinished = [f"train_base/dtd/{COCOOP}/seed{n}" for n in (1, 2)] + [f"test_new/dtd/{COOP}/seed3"]
    for name in unfinished:
        unfinish(folder / name)
    main([str(folder)])
    rows = {tuple(row[:2]): row[2:] for row in read_csv(folder)}
    assert rows["dtd", "CoOp, ep50, 16 shots"] == ["80.00 ± 0.00", "60.00 ± 0.00", "68.57"]
    assert rows["dtd", "CoCoOp, c4, 16 shots"][::2] == ["-", "-"]
    assert rows["average", "CoCoOp, c4, 16 shots"][::2] == ["-", "-"]
    assert rows["average", "CoOp, ep50, 16 shots"] == ["80.00", "60.00", "68.57"]
    missing = read_page(folder).partition("Missing:")[2].split("\n- ")[1:]
    assert {line.partition(": ")[0] for line in missing} == {str(folder / name) for name in unfinished}
    assert "Seeds: 1, 2, 3; in most cells: 1, 2. In: dtd, CoOp, ep50, 16 shots, base; euro" in read_page(folder)


@pytest.mark.parametrize(
    ("stage", "config", "message"),
    [
        ("train_base", {"SUBSAMPLE_CLASSES": "all"}, "DATASET.SUBSAMPLE_CLASSES all"),
        ("train_base", {"SUBSAMPLE_CLASSES": "base", "NUM_SHOTS": 4}, "4 shots"),
        ("train_base", {"SUBSAMPLE_CLASSES": "base", "NUM_SHOTS": -1}, "all images"),
        ("test_new", {"SUBSAMPLE_CLASSES": "new", "NUM_SHOTS": 4}, "4 shots"),
        ("test_new", {"SUBSAMPLE_CLASSES": "base"}, "DATASET.SUBSAMPLE_CLASSES base"),
    ],
)
def test_a_run_on_other_classes_or_shots_than_its_folder_names_is_left_out(
    write_base_to_new, write_runs, stage, config, message
):
    folder = write_base_to_new("dtd", COOP, [80], [60])
    write_runs(f"b2n/{stage}/dtd/{COOP}", 90, config={f"DATASET.{key}": value for key, value in config.items()})
    main([str(folder)])
    expected = {"train_base": ["-", "60.00"], "test_new": ["80.00", "-"]}[stage]
    assert read_csv(folder)[1][2:] == [*expected, "-"]
    assert f"left out {folder}/{stage}/dtd/{COOP}, as its record has {message}" in read_page(folder)


def test_seeds_are_those_of_the_records_and_runs_that_differ_are_not_averaged(write_base_to_new, write_runs):
    folder = write_base_to_new("dtd", COOP, [80, 82], [60, 60])
    base = {"DATASET.SUBSAMPLE_CLASSES": "base"}
    again = {"dataset": "dtd", "splits": {"test": {"sha256": "dtdbase"}}, "classnames": ["dtd", "base"]}
    write_runs(f"b2n/train_base/dtd/{COOP}/seed1-rerun", 99, config=base, **again)
    main([str(folder)])
    assert read_csv(folder)[1][2] == "82.00"
    assert "seed1-rerun (99.00); different, so the seed is left out" in read_page(folder)
    write_runs(f"b2n/train_base/dtd/{COOP}/seed3", 99, config={**base, "OPTIM.MAX_EPOCH": 3}, **again)
    main([str(folder)])
    assert read_csv(folder)[1][2:] == ["-", "60.00 ± 0.00", "-"]
    assert f"OPTIM.MAX_EPOCH 3 ({folder}/train_base/dtd/{COOP}/seed3)" in read_page(folder)


def loaded(path, content: bytes = b"model") -> dict:
    """Return the entries of the record of an evaluation of the model in ``path``."""
    file = {"file": f"/elsewhere/{path}/prompt_learner/model.pth.tar-50", "sha256": hashlib.sha256(content).hexdigest()}
    return {"eval_only": True, "started_from": [file]}


def write_model(run: Path, content: bytes = b"model") -> None:
    """Write the checkpoint of a run."""
    (run / "prompt_learner").mkdir()
    (run / "prompt_learner/model.pth.tar-50").write_bytes(content)


NEW = {"DATASET.SUBSAMPLE_CLASSES": "new"}


@pytest.mark.parametrize(
    ("entries", "content", "reason"),
    [
        (loaded(f"train_base/dtd/{COOP}"), None, ""),
        (loaded(f"train_base/dtd/{COOP}"), b"model", ""),
        (loaded(f"../train_base/x/../dtd/{COOP}"), b"model", ""),
        (loaded(f"train_base/dtd/{COOP}"), b"other", "the model of {base} has changed since"),
        (loaded(f"train_base/eurosat/{COOP}"), None, f"it evaluates a model of /elsewhere/train_base/eurosat/{COOP}, "),
        ({"eval_only": False}, None, "it trained the model that it was tested with"),
    ],
)
def test_an_evaluation_on_new_classes_is_of_the_model_that_the_base_classes_trained(
    write_base_to_new, write_runs, entries, content, reason
):
    folder = write_base_to_new("dtd", COOP, [80], [60])
    base, new = (folder / f"{stage}/dtd/{COOP}" for stage in ("train_base", "test_new"))
    if content:
        write_model(base, content)
    write_runs(f"b2n/test_new/dtd/{COOP}", 61, config=NEW, **entries)
    main([str(folder)])
    assert read_csv(folder)[1][2:4] == ["80.00", "-" if reason else "61.00"]
    assert (f"left out {new}, as {reason.format(base=base)}" in read_page(folder)) == bool(reason)


def test_initial_weights_are_not_the_evaluated_model(write_base_to_new, write_runs):
    folder = write_base_to_new("dtd", COOP, [80], [60])
    entries = loaded(f"train_base/dtd/{COOP}")
    entries["started_from"].insert(0, {"file": "/weights/initial.pth", "sha256": "a"})
    write_runs(f"b2n/test_new/dtd/{COOP}", 61, config={**NEW, "MODEL.INIT_WEIGHTS": "/weights/initial.pth"}, **entries)
    main([str(folder)])
    assert read_csv(folder)[1][3] == "61.00"


def test_evaluations_on_both_halves_are_of_one_model(write_base_to_new, write_runs):
    folder = write_base_to_new("dtd", COOP, [80], [60])
    for model, new in (("a", "61.00"), ("b", "-")):
        for stage, half, name in (("train_base", "base", "a"), ("test_new", "new", model)):
            config = {"DATASET.SUBSAMPLE_CLASSES": half}
            write_runs(f"b2n/{stage}/dtd/{COOP}", 61, config=config, **loaded(f"trained/{name}", name.encode()))
        main([str(folder)])
        assert read_csv(folder)[1][2:4] == ["61.00", new]
    assert f"it evaluates another model than {folder}/train_base/dtd/{COOP}" in read_page(folder)


def test_two_evaluations_of_one_model_count_once(write_base_to_new, write_runs):
    folder = write_base_to_new("dtd", COOP, [80], [60])
    unfinish(folder / f"train_base/dtd/{COOP}")
    write_runs(f"b2n/test_new/dtd/{COOP}", 61, 61, config=NEW, **loaded(f"train_base/dtd/{COOP}/seed1"))
    (folder / f"test_new/dtd/{COOP}/result.json").unlink()
    main([str(folder)])
    assert read_csv(folder)[1][3] == "61.00"
    seeds = [f"{folder}/test_new/dtd/{COOP}/seed{seed} (61.00)" for seed in (1, 2)]
    assert f"2 records of one model: {', '.join(seeds)}; equal, so it counts once" in read_page(folder)


def test_methods_are_compared_with_the_others_of_the_same_data_set_and_half(write_base_to_new):
    for data in ("dtd", "eurosat"):
        for method in (ZERO, COOP):
            folder = write_base_to_new(data, method, [80], [60])
    main([str(folder)])
    assert "†" not in read_page(folder)
    write_base_to_new("dtd", COCOOP, [80], [60], weights={"backbone": "RN101", "sha256": "b"})
    main([str(folder)])
    rows = {tuple(row[:2]): row[2:] for row in read_csv(folder)}
    assert rows["dtd", "CoCoOp, c4, 16 shots"] == ["80.00†", "60.00†", "68.57†"]
    assert rows["dtd", "CoOp, ep50, 16 shots"] == ["80.00", "60.00", "68.57"]
    assert "† weights: RN101, SHA-256 b…; in most of dtd, base classes: RN50" in read_page(folder)


def test_shortcuts_are_marked(write_base_to_new):
    views = {"FEATURES.VIEWS": 16}
    write_base_to_new("dtd", COOP, [80], [60])
    write_base_to_new("eurosat", COOP, [80], [60], config=views)
    folder = write_base_to_new("eurosat", ZERO, [50], [50], config=views)  # it trains nothing, so has no shortcut
    main([str(folder)])
    rows = {tuple(row[:2]): row[2:] for row in read_csv(folder)}
    assert rows["dtd", "CoOp, ep50, 16 shots"] == ["80.00", "60.00", "68.57"]
    assert rows["eurosat", "CoOp, ep50, 16 shots"] == ["80.00*", "60.00*", "68.57*"]
    assert rows["average", "CoOp, ep50, 16 shots"] == ["80.00*", "60.00*", "68.57*"]
    assert rows["eurosat", "ZeroshotCLIP, tiny, 0 shots"] == ["50.00", "50.00", "50.00"]
    assert read_page(folder).count("\n\\* FEATURES.VIEWS 16: ") == 1


def test_a_shortcut_in_training_marks_the_accuracy_on_new_classes(write_base_to_new, write_runs):
    folder = write_base_to_new("dtd", COOP, [80], [60])
    views = {"DATASET.SUBSAMPLE_CLASSES": "base", "FEATURES.VIEWS": 16}
    write_runs(f"b2n/train_base/dtd/{COOP}", 80, config=views)
    main([str(folder)])
    assert read_csv(folder)[1][2:] == ["80.00*", "60.00*", "68.57*"]


def test_a_run_whose_folder_is_not_of_the_table_is_named(write_base_to_new, write_runs):
    folder = write_base_to_new("dtd", COOP, [80], [60])
    write_runs("b2n/mine/CoOp/shots_16", 99)
    main([str(folder)])
    assert f"Not in the table: {folder}/mine/CoOp/shots_16: its folder is not one of this table." in read_page(folder)


@pytest.fixture
def evaluation(write_runs):
    """The folder with results of CoOp on two variants of ImageNet and two other data sets, and of zero-shot CLIP on the
    variants. ``../imagenet`` has CoOp's training runs.
    """
    coop = "CoOp/ep50_16shots"
    write_runs(f"imagenet/{coop}", 70, 72)
    write_runs("imagenet/ZeroshotCLIP/vit_0shots", 60)
    for data, accuracies in {
        "imagenet_a": (40, 42),
        "imagenetv2": (60, 60),
        "dtd": (50, 52),
        "ucf101": (70, 70),
    }.items():
        folder = write_runs(f"evaluation/{coop}/{data}", *accuracies, dataset=data, command=EVAL)
    write_runs("evaluation/ZeroshotCLIP/vit_0shots/imagenet_a", 30, dataset="imagenet_a")
    write_runs("evaluation/ZeroshotCLIP/vit_0shots/imagenetv2", 50, dataset="imagenetv2")
    return folder


def test_transfer_has_columns_for_variants_and_for_other_data_sets(evaluation):
    assert main([str(evaluation)]) == 0
    columns = ["imagenet", "imagenet_a", "imagenetv2", "average of variants"]
    columns += ["dtd", "ucf101", "average of other data sets"]
    coop = ["71.00 ± 12.71", "41.00 ± 12.71", "60.00 ± 0.00", "50.50", "51.00 ± 12.71", "70.00 ± 0.00", "60.50"]
    assert read_csv(evaluation, "transfer") == [
        ["accuracy (%)", *columns],
        ["ZeroshotCLIP, vit, 0 shots", "60.00", "30.00", "50.00", "40.00", "-", "-", "-"],
        ["CoOp, ep50, 16 shots", *coop],
    ]
    variants, other_data_sets = read_page(evaluation, "transfer").split("# From imagenet to ")[1:]
    assert variants.startswith("variants")
    assert "ZeroshotCLIP" in variants
    assert "dtd" not in variants
    assert other_data_sets.startswith("other data sets")
    assert "ZeroshotCLIP" not in other_data_sets
    assert "imagenetv2" not in other_data_sets
    assert "Missing" not in other_data_sets


def test_runs_of_transfer_that_have_not_ended_are_listed(evaluation, write_runs):
    write_runs(
        "evaluation/CoCoOp/c4_16shots/dtd", 60, 60, dataset="dtd", command=EVAL
    )  # its training run is not in ../imagenet
    source = evaluation.parent / "imagenet/CoOp/ep50_16shots/seed2"
    for run in (evaluation / "CoOp/ep50_16shots/ucf101/seed2", source):
        unfinish(run)
    write_runs("imagenet/CoOp/other_16shots", 1)
    unfinish(evaluation.parent / "imagenet/CoOp/other_16shots")  # no method of the table
    main([str(evaluation)])
    rows = {row[0]: row[1:] for row in read_csv(evaluation, "transfer")}
    assert rows["CoCoOp, c4, 16 shots"] == ["-", "-", "-", "-", "60.00 ± 0.00", "-", "-"]
    assert rows["CoOp, ep50, 16 shots"][0] == "70.00"
    assert rows["CoOp, ep50, 16 shots"][-2:] == ["70.00", "60.50"]
    missing = read_page(evaluation, "transfer").partition("Missing:")[2]
    assert missing.count("\n- ") == 2
    assert f"- {evaluation}/CoOp/ep50_16shots/ucf101/seed2: the run has not ended" in missing
    assert f"- {source}: the run has not ended" in missing


def test_the_folders_of_eval_sh_are_read_as_transfer(write_runs, evaluation):
    variant = "CoOp/rn50_16shots/nctx4_cscFalse_ctpend"
    write_runs(f"evaluation/{variant}/dtd", 61, 61, dataset="dtd", command=EVAL)
    write_runs(f"imagenet/{variant}", 71, 71)
    main([str(evaluation)])
    row = next(row for row in read_csv(evaluation, "transfer") if row[0].startswith("CoOp, rn50"))
    assert row[:2] + row[5:6] == ["CoOp, rn50, nctx4_cscFalse_ctpend, 16 shots", "71.00 ± 0.00", "61.00 ± 0.00"]
    assert len(read_csv(evaluation, "transfer")) == 4


def test_transfer_is_of_the_model_that_imagenet_trained(write_runs, evaluation):
    name = "CoOp/ep50_16shots"
    for seed in (1, 2):
        write_model(evaluation.parent / f"imagenet/{name}/seed{seed}", str(seed).encode())
        entries = loaded(f"imagenet/{name}/seed1", b"1")
        write_runs(f"evaluation/{name}/dtd/seed{seed}", 61, dataset="dtd", **entries, seed=seed)
    main([str(evaluation)])
    assert read_csv(evaluation, "transfer")[2][5] == "61.00"
    message = f"a model of /elsewhere/imagenet/{name}/seed1, not of {evaluation.parent}/imagenet/{name}/seed2"
    assert message in read_page(evaluation, "transfer")


def test_shortcuts_of_a_training_run_mark_its_results_on_other_data_sets(write_runs, evaluation):
    write_runs("imagenet/CoOp/ep50_16shots", 70, 72, config={"FEATURES.VIEWS": 16})
    main([str(evaluation)])
    assert all(cell.endswith("*") for cell in read_csv(evaluation, "transfer")[2][1:])
    assert "*" not in "".join(read_csv(evaluation, "transfer")[1])


def test_the_runs_of_a_study_are_not_read_as_transfer(write_runs):
    for name in ("CoOp/rn50_4shots", "CoOp/rn50_8shots_ctx4", "CoOp/rn50_8shots/nctx16_cscFalse_ctpend"):
        folder = write_runs(f"imagenet/{name}", 70, 72)
    assert main([str(folder)]) == 0
    assert sorted(path.name for path in folder.glob("*.md")) == ["results.md"]


def test_runs_without_a_result_give_an_error_and_no_table(write_runs, capsys):
    folder = write_runs(f"b2n/train_base/dtd/{COOP}", 99)
    unfinish(folder / f"train_base/dtd/{COOP}")
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
def test_each_evaluation_in_a_sweep_matches_the_run_that_trains_its_model(name, runs, tests):
    """The two are in successive stages and have the same trainer, config, seed and context."""
    trials = build_trials(read_sweep(REPOSITORY / f"configs/sweeps/{name}.yaml"), "out", "", [], [])
    assert len(trials) == runs
    first, second = group_into_stages(trials)
    assert len(second) == tests
    trained = {trial.folder: trial for trial in first if "--eval-only" not in trial.command}
    assert {trial.model_dir for trial in second} == set(trained)
    for trial in trials:
        values = dict(pairwise(trial.command))
        assert (REPOSITORY / values["--config-file"]).is_file()
        assert (REPOSITORY / values["--dataset-config-file"]).is_file()
        if trial.model_dir:
            training_values = dict(pairwise(trained[trial.model_dir].command))
            for key in ("--trainer", "--config-file", "--seed", "TRAINER.COOP.N_CTX"):
                assert values.get(key) == training_values.get(key), (trial, key)


def test_the_two_transfer_sweeps_have_the_same_training_runs():
    trained = []
    for name in ("cross_dataset", "domain_generalisation"):
        trials = build_trials(read_sweep(REPOSITORY / f"configs/sweeps/{name}.yaml"), "", "", [], [])
        trained.append({trial for trial in trials if trial.folder.is_relative_to("output/imagenet")})
    assert trained[0] == trained[1]
    assert len(trained[0]) == 7


def test_the_digits_base_to_new_sweep_fills_its_table(digits_root, tmp_path):
    """The sweep runs with one seed and two epochs, without CoCoOp."""
    file = REPOSITORY / "configs/sweeps/digits_base_to_new.yaml"
    runs = [run for run in read_sweep(file)["runs"] if "CoCoOp" not in run["folder"]]
    path = tmp_path / "sweep.yaml"
    path.write_text(json.dumps({**read_sweep(file), "runs": runs}), encoding="utf-8")
    folder = tmp_path / "out"
    command = [str(path), "--root", str(digits_root), "--output-dir", str(folder), "--seeds", "1", "--jobs", "1"]
    assert sweep.main([*command, "OPTIM.MAX_EPOCH", "2"]) == 0
    assert main([str(folder)]) == 0
    rows = {row[1]: row[2:] for row in read_csv(folder)[1:]}
    assert set(rows) == {"ZeroshotCLIP, tiny, 0 shots", "CoOp, tiny_ctx4, 16 shots", "CoOp, tiny_ctx16, 16 shots"}
    assert "Missing" not in read_page(folder)
    for column, (stage, subsample) in enumerate((("train_base", "base"), ("test_new", "new"))):
        record = json.loads(
            (folder / stage / "digits/shots_16/CoOp/tiny_ctx4/seed1/result.json").read_text(encoding="utf-8")
        )
        assert record["config"]["DATASET"]["SUBSAMPLE_CLASSES"] == subsample
        assert f"{record['accuracy']:.2f}" == rows["CoOp, tiny_ctx4, 16 shots"][column]
