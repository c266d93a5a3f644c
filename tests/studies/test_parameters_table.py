"""The rows of a study's table, the trainable parameters, and the sweeps that fill them."""

from pathlib import Path

import pytest
from PIL import Image

import trainers  # noqa: F401  registers the methods
from dassl.config import get_cfg_default, merge_file
from dassl.engine import TRAINER_REGISTRY
from studies.grid import build_trials, read_sweep
from studies.tables.cells import Cell, build_cell
from studies.tables.pareto import Point, collect_points, pareto_front
from studies.tables.runs import Run
from studies.tables.study import format_parameters
from tests.common import REPOSITORY
from tests.studies.records import build_record, read_csv, write_run
from tools import sweep
from tools.results_table import main

SWEEPS = REPOSITORY / "configs/sweeps"


@pytest.fixture
def study(tmp_path):
    """The folder of a study with a run of zero-shot CLIP."""
    write_run(tmp_path / "digits/ZeroshotCLIP", 60, trainer="ZeroshotCLIP", shots=0)
    return tmp_path / "digits"


def test_methods_with_runs_have_a_row_with_their_trainable_parameters(study):
    write_run(study / "ZeroshotCLIP2", 61, trainer="ZeroshotCLIP2", shots=0)
    for shots in (1, 16):
        write_run(study / f"b{shots}", 70, shots=shots, trainable_parameters=1024)
        write_run(study / f"c{shots}", 75, trainer="TipAdapterF", shots=shots, trainable_parameters=640 * shots)
    write_run(study / "d", 69, config={"TRAINER.COOP.N_CTX": 1}, trainable_parameters=64)
    write_run(study / "e", 68, config={"TRAINER.COOP.N_CTX": 2, "TRAINER.COOP.CSC": True}, trainable_parameters=1280)
    write_run(study / "f", 74, trainer="LinearProbe", shots=4, trainable_parameters=None)
    assert main([str(study)]) == 0
    assert list(read_csv(study).items()) == [
        ("accuracy (%)", ["0 shots", "1 shot", "4 shots", "16 shots", "parameters", "group"]),
        ("Zero-shot CLIP", ["60.00", *"---", "0", "training-free"]),
        ("Zero-shot ensemble", ["61.00", *"---", "0", "training-free"]),
        ("Linear probe", ["-", "-", "74.00", "-", "-", "features"]),
        ("Tip-Adapter-F", ["-", "75.00", "-", "75.00", "640 to 10,240", "features"]),
        ("CoOp (Standard)", ["-", "70.00", "-", "70.00", "1,024", "prompts"]),
        ("CoOp, 1 token", [*"---", "69.00", "64", "prompts"]),
        ("CoOp, 2 tokens, CSC", [*"---", "68.00", "1,280", "prompts"]),
    ]
    text = (study / "results.md").read_text(encoding="utf-8")
    assert "fewer parameters" not in text  # without CoOp (Efficient) there is no comparison
    assert len({len(line) for line in text.splitlines() if line.startswith("|")}) == 1


def cell(accuracy, parameters) -> Cell:
    """Return the cell of one run."""
    return build_cell([Run(Path("run"), build_record(accuracy, trainable_parameters=parameters, group="towers"))])


def test_parameters_that_vary_are_shown_as_a_range():
    assert format_parameters([Cell(), Cell()]) == "-"
    assert format_parameters([cell(70, 2048), cell(70, 2048)]) == "2,048"
    assert format_parameters([cell(70, 640), Cell(), cell(70, 10240), cell(70, 1280)]) == "640 to 10,240"


def test_the_plot_shows_the_number_of_shots_that_most_methods_have():
    table = {"Zero-shot CLIP": {0: cell(60, 0)}, "A": {1: cell(70, 10), 4: cell(72, 10)}, "B": {1: cell(71, 20)}}
    shots, points = collect_points({**table, "unknown": {1: cell(99, None)}, "C": {32: cell(90, 5)}})
    assert shots == 1
    assert points == [Point(*a, "towers") for a in (("Zero-shot CLIP", 0, 60), ("A", 10, 70), ("B", 20, 71))]
    del table["B"]
    assert collect_points(table)[0] == 4  # with as many methods at several numbers of shots, the largest
    assert collect_points({"Zero-shot CLIP": {0: cell(60, 0)}, "Zero-shot ensemble": {0: cell(61, 0)}})[1] == []


def test_the_pareto_front_has_the_points_that_no_other_point_beats():
    a, b, c, d, e = (
        Point(*values) for values in [("a", 0, 60), ("b", 0, 65), ("c", 10, 64), ("d", 20, 70), ("e", 20, 70)]
    )
    assert pareto_front([e, d, c, b, a]) in ([b, d], [b, e])
    assert pareto_front([a, c]) == [a, c]
    assert pareto_front([a, b]) == pareto_front([b, a]) == [b]
    assert pareto_front([]) == []


def test_the_plot_is_drawn_for_two_methods_or_more(study, capsys):
    write_run(study / "run", 70, trainable_parameters=None)
    main([str(study)])
    assert not (study / "parameters.png").exists()
    assert "parameters.png" not in capsys.readouterr().out
    for seed, accuracy in ((1, 71), (2, 75)):
        write_run(study / f"run{seed}", accuracy, trainer="ClassScale", seed=seed, trainable_parameters=10)
    main([str(study)])
    with Image.open(study / "parameters.png") as image:
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
    text = path.read_text(encoding="utf-8")
    assert f"--trainer {method} " in text
    assert f"--config-file configs/trainers/{method}/{name}.yaml" in text
    cfg = get_cfg_default()
    TRAINER_REGISTRY.get(method).extend_cfg(cfg)
    merge_file(cfg, path)


def test_the_digits_parameters_sweep_fills_every_row(tmp_path, digits_root, capsys):
    """The sweep runs with one shot and one epoch."""
    text = (SWEEPS / "digits_parameters.yaml").read_text(encoding="utf-8")
    smaller = (
        text.replace("[16, 8, 4, 2, 1]", "[1]")
        .replace("[8, 4, 2, 1]", "[1]")
        .replace("SHOTS 16", "SHOTS 1")
        .replace("16shots", "1shots")
    )
    (tmp_path / "sweep.yaml").write_text(smaller.replace("configs/", f"{REPOSITORY}/configs/"), encoding="utf-8")
    options = ["--root", str(digits_root), "--output-dir", str(tmp_path / "digits"), "--jobs", "1"]
    assert sweep.main([str(tmp_path / "sweep.yaml"), *options, "OPTIM.MAX_EPOCH", "1"]) == 0
    assert main([str(tmp_path / "digits")]) == 0
    rows = read_csv(tmp_path / "digits")
    parameters = {row: cells[-2] for row, cells in rows.items()}
    width = int(parameters["CoOp, 1 token"])
    assert parameters == {
        "accuracy (%)": "parameters",
        "Zero-shot CLIP": "0",
        "Zero-shot ensemble": "0",
        "CoOp (Standard)": f"{16 * width:,}",
        "CoOp, 1 token": f"{width:,}",
        "CoOp, 16 tokens, CSC": f"{160 * width:,}",
        "CLIP-Adapter": "2,048",
        "Tip-Adapter": "0",
        "Tip-Adapter-F": "640",
        "Linear probe": "650",
    }
    assert all(cells[1] != "-" for row, cells in rows.items() if row.startswith(("CLIP-A", "Tip", "Linear")))
    assert (tmp_path / "digits/parameters.png").is_file()
