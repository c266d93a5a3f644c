"""The study's rows beyond the three required ones, the trainable parameters, and the sweeps that fill them."""

import csv
import json

import pytest
from PIL import Image

import trainers  # noqa: F401  registers the methods
from dassl.config import get_cfg_default, merge_file
from dassl.engine import TRAINER_REGISTRY
from studies.grid import build_trials, read_sweep
from studies.tables.cells import Cell
from studies.tables.pareto import Point, collect_points, pareto_front
from studies.tables.study import format_parameters
from tests.common import REPOSITORY
from tools import sweep
from tools.results_table import main

TESTED = "=> result\n* accuracy: {:.2f}%\n"
TRAINED = "Finish training\nFinished training\n" + TESTED
SWEEPS = REPOSITORY / "configs/sweeps"


@pytest.fixture
def write_run(tmp_path):
    """A function that writes a run into digits/<name>: a log with its accuracy, and a record if it has parameters.

    It returns the folder ``digits``, which has a run of zero-shot CLIP already.
    """
    folder = tmp_path / "digits"

    def write(name, accuracy, parameters=None, **config):
        (folder / name).mkdir(parents=True)
        form = TESTED if name.startswith("Zeroshot") else TRAINED
        (folder / name / "log.txt").write_text(form.format(accuracy))
        if parameters is not None:
            record = {"trainable_parameters": parameters, "config": config}
            (folder / name / "result.json").write_text(json.dumps(record))
        return folder

    write("ZeroshotCLIP", 60, 0)
    return write


def read_csv(folder) -> dict[str, list[str]]:
    """Return the cells of results.csv by row."""
    return {row: cells for row, *cells in csv.reader((folder / "results.csv").open())}


def test_methods_with_runs_have_a_row_with_their_trainable_parameters(write_run):
    write_run("ZeroshotCLIP2", 61, 0)
    for shots in (1, 16):
        write_run(f"CoOp/tiny_{shots}shots/seed1", 70, 1024)
        write_run(f"TipAdapterF/tiny_{shots}shots/seed1", 75, 640 * shots)
    write_run("CoOp/tiny_16shots_ctx1", 69, 64)
    write_run("CoOp/tiny_16shots_ctx2_csc", 68, 1280)
    folder = write_run("LinearProbe/tiny_4shots", 74)
    assert main([str(folder)]) == 0
    assert read_csv(folder) == {
        "accuracy (%)": ["0 shots", "1 shot", "2 shots", "4 shots", "8 shots", "16 shots", "parameters"],
        "Zero-shot CLIP": ["60.00", *"-----", "0"],
        "Zero-shot ensemble": ["61.00", *"-----", "0"],
        "CoOp (Standard)": ["-", "70.00", *"---", "70.00", "1,024"],
        "CoOp (Efficient)": [*"------", "-"],
        "CoOp, 1 token": [*"-----", "69.00", "64"],
        "CoOp, 2 tokens, CSC": [*"-----", "68.00", "1,280"],
        "Tip-Adapter-F": ["-", "75.00", *"---", "75.00", "640 to 10,240"],
        "Linear probe": [*"---", "74.00", *"--", "-"],
    }
    text = (folder / "results.md").read_text()
    assert "CoOp (Efficient), 16 shots: " in text  # missing runs of a required row are listed
    assert "LinearProbe" not in text
    assert len({len(line) for line in text.splitlines() if line.startswith("|")}) == 1


def test_a_method_with_an_unfinished_run_has_an_empty_row_and_a_note(write_run):
    folder = write_run("TipAdapter/tiny_1shots", 70)
    (folder / "TipAdapter/tiny_1shots/log.txt").write_text("Cache: 10 keys\n")
    main([str(folder)])
    assert read_csv(folder)["Tip-Adapter"] == ["-"] * 7
    assert "tiny_1shots: the run has not ended" in (folder / "results.md").read_text()


def test_rows_are_those_of_the_config_of_coop(write_run, capsys):
    write_run("CoOp/rn50_4shots", 70)
    write_run("TipAdapter/rn50_4shots", 70)
    folder = write_run("LinearProbe/vit_b16_4shots", 80)
    assert main([str(folder)]) == 0  # the config of CoOp
    assert "Tip-Adapter" in read_csv(folder)
    assert "Linear probe" not in read_csv(folder)


def test_without_coop_the_config_is_that_of_the_other_methods(write_run, capsys):
    folder = write_run("LinearProbe/vit_b16_4shots", 80)
    assert main([str(folder)]) == 0
    assert read_csv(folder)["Linear probe"][3] == "80.00"
    write_run("TipAdapter/rn50_4shots", 70)
    assert main([str(folder)]) == 2
    assert "choose with --config: rn50, vit_b16" in capsys.readouterr().err


def test_a_run_with_class_specific_contexts_is_not_in_the_row_of_shared_contexts(write_run):
    folder = write_run("CoOp/tiny_4shots", 70, 64, TRAINER={"COOP": {"N_CTX": 16, "CSC": True}})
    main([str(folder)])
    assert read_csv(folder)["CoOp (Standard)"][3] == "-"
    assert "its record has TRAINER.COOP.CSC True" in (folder / "results.md").read_text()


def test_class_specific_contexts_of_main_sh_have_a_row(write_run):
    write_run("CoOp/rn50_4shots/nctx16_cscFalse_ctpend/seed1", 70)
    folder = write_run("CoOp/rn50_4shots/nctx16_cscTrue_ctpend/seed1", 65)
    main([str(folder)])
    assert read_csv(folder)["CoOp (Standard)"][3] == "70.00"
    assert read_csv(folder)["CoOp, 16 tokens, CSC"][3] == "65.00"


def test_parameters_that_vary_are_shown_as_a_range():
    assert format_parameters([Cell(), Cell()]) == "-"
    assert format_parameters([Cell(parameters={2048}), Cell(parameters={2048})]) == "2,048"
    assert format_parameters([Cell(parameters={640}), Cell(), Cell(parameters={10240, 1280})]) == "640 to 10,240"


def test_the_plot_shows_the_number_of_shots_that_most_methods_have():
    def cell(accuracy, parameters):
        """Return the cell of one run."""
        return Cell([accuracy], parameters={parameters})

    table = {"Zero-shot CLIP": {0: cell(60, 0)}, "A": {1: cell(70, 10), 4: cell(72, 10)}, "B": {1: cell(71, 20)}}
    shots, points = collect_points({**table, "no record": {1: Cell([99.0])}, "C": {16: cell(90, 5)}})
    assert shots == 1
    assert points == [Point("Zero-shot CLIP", 0, 60, 0), Point("A", 10, 70, 0), Point("B", 20, 71, 0)]
    del table["B"]
    assert collect_points(table)[0] == 4  # with as many methods at several numbers of shots, the largest
    assert collect_points({"Zero-shot CLIP": {0: cell(60, 0)}, "Zero-shot ensemble": {0: cell(61, 0)}})[1] == []


def test_the_pareto_front_has_the_points_that_no_other_point_beats():
    a, b, c, d, e = (
        Point(*values, 0) for values in [("a", 0, 60), ("b", 0, 65), ("c", 10, 64), ("d", 20, 70), ("e", 20, 70)]
    )
    assert pareto_front([e, d, c, b, a]) in ([b, d], [b, e])
    assert pareto_front([a, c]) == [a, c]
    assert pareto_front([a, b]) == pareto_front([b, a]) == [b]
    assert pareto_front([]) == []


def test_the_plot_is_drawn_for_two_methods_or_more(write_run, capsys):
    folder = write_run("CoOp/tiny_16shots/seed1", 70)  # without a record
    main([str(folder)])
    assert not (folder / "parameters.png").exists()
    assert "parameters.png" not in capsys.readouterr().out
    write_run("CoOp/tiny_16shots_ctx4/seed1", 71, 256)
    write_run("CoOp/tiny_16shots_ctx4/seed2", 75, 256)
    main([str(folder)])
    with Image.open(folder / "parameters.png") as image:
        assert image.width > 500


@pytest.mark.parametrize(
    ("study", "parameters"), [("digits", "digits_parameters"), ("imagenette", "imagenette_parameters")]
)
def test_runs_that_two_sweeps_share_have_the_same_command(study, parameters):
    """Hence the second sweep skips a run that the first one has finished."""
    study, parameters = (
        {trial.folder: trial for trial in build_trials(read_sweep(SWEEPS / f"{name}.yaml"), "", "", ["1", "2"], [])}
        for name in (study, parameters)
    )
    both = set(study) & set(parameters)
    assert len(both) == 1 + 2 + 2
    assert all(study[folder].command == parameters[folder].command for folder in both)
    assert len(parameters) == 2 + 2 * (1 + 4 + 1 + 4 * 5)


@pytest.mark.parametrize(
    "path",
    sorted(REPOSITORY.glob("configs/trainers/*Adapter*/*.yaml"))
    + sorted(REPOSITORY.glob("configs/trainers/LinearProbe/*.yaml")),
    ids=str,
)
def test_a_config_file_names_its_command_and_loads(path):
    method, name = path.parent.name, path.stem
    text = path.read_text()
    assert f"--trainer {method} " in text
    assert f"--config-file configs/trainers/{method}/{name}.yaml" in text
    cfg = get_cfg_default()
    TRAINER_REGISTRY.get(method).extend_cfg(cfg)
    merge_file(cfg, path)


def test_the_digits_parameters_sweep_fills_every_row(tmp_path, digits_root, capsys):
    """The sweep runs with one shot and one epoch."""
    text = (SWEEPS / "digits_parameters.yaml").read_text()
    smaller = (
        text.replace("[16, 8, 4, 2, 1]", "[1]")
        .replace("[8, 4, 2, 1]", "[1]")
        .replace("SHOTS 16", "SHOTS 1")
        .replace("16shots", "1shots")
    )
    (tmp_path / "sweep.yaml").write_text(smaller.replace("configs/", f"{REPOSITORY}/configs/"))
    options = ["--root", str(digits_root), "--output-dir", str(tmp_path / "digits"), "--jobs", "1"]
    assert sweep.main([str(tmp_path / "sweep.yaml"), *options, "OPTIM.MAX_EPOCH", "1"]) == 0
    assert main([str(tmp_path / "digits")]) == 0
    rows = read_csv(tmp_path / "digits")
    parameters = {row: cells[-1] for row, cells in rows.items()}
    width = int(parameters["CoOp, 1 token"])
    assert parameters == {
        "accuracy (%)": "parameters",
        "Zero-shot CLIP": "0",
        "Zero-shot ensemble": "0",
        "CoOp (Standard)": f"{16 * width:,}",
        "CoOp (Efficient)": "-",
        "CoOp, 1 token": f"{width:,}",
        "CoOp, 16 tokens, CSC": f"{160 * width:,}",
        "CLIP-Adapter": "2,048",
        "Tip-Adapter": "0",
        "Tip-Adapter-F": "640",
        "Linear probe": "650",
    }
    assert all(cells[1] != "-" for row, cells in rows.items() if row.startswith(("CLIP-A", "Tip", "Linear")))
    assert (tmp_path / "digits/parameters.png").is_file()
