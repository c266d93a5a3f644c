"""The table of a few-shot study from run folders: tools/results_table.py."""

import csv
import json

import pytest
from PIL import Image

from tools.results_table import main

DONE = "Finish training\nFinished training\n=> result\n* accuracy: {}%\n"


@pytest.fixture
def write_run(tmp_path):
    """A function that writes a run's log, and a record if ``sha256`` is given, into imagenet/<name>.

    It returns the folder ``imagenet``, which has a run of zero-shot CLIP already.
    """
    folder = tmp_path / "imagenet"

    def write(name, accuracy, form=DONE, sha256=None):
        run = folder / name
        run.mkdir(parents=True)
        (run / "log.txt").write_text(form.format(accuracy))
        if sha256:
            (run / "result.json").write_text(json.dumps({"weights": {"backbone": "RN50", "sha256": sha256}}))
        return folder

    write("ZeroshotCLIP", "60.00", "=> result\n* accuracy: {}%\n")
    return write


def read_csv(folder) -> list[list[str]]:
    """Return the rows of results.csv."""
    return list(csv.reader((folder / "results.csv").open()))


def test_a_complete_study_fills_the_table_and_the_plot(write_run):
    for i, shots in enumerate((1, 2, 4, 8, 16)):
        write_run(f"CoOp/rn50_{shots}shots", f"{70 + i}.00")
        folder = write_run(f"CoOp/rn50_{shots}shots_ctx4", f"{69.5 + i:.2f}")
    assert main([str(folder)]) == 0
    assert read_csv(folder) == [
        ["accuracy (%)", "0 shots", "1 shot", "2 shots", "4 shots", "8 shots", "16 shots", "parameters"],
        ["Zero-shot CLIP", "60.00", "-", "-", "-", "-", "-", "-"],
        ["CoOp (Standard)", "-", "70.00", "71.00", "72.00", "73.00", "74.00", "-"],
        ["CoOp (Efficient)", "-", "69.50", "70.50", "71.50", "72.50", "73.50", "-"],
    ]
    text = (folder / "results.md").read_text()
    assert "| CoOp (Standard)" in text
    assert "75% fewer parameters" in text
    assert "on a par with CoOp (Standard)'s: -0.50 points on average" in text
    assert "Missing" not in text
    with Image.open(folder / "results.png") as image:
        assert image.format == "PNG"
        assert image.width > 500


@pytest.mark.parametrize(("efficient", "verdict"), [("60.00", "lower than"), ("80.00", "higher than")])
def test_the_comparison_states_which_setting_is_more_accurate(write_run, efficient, verdict):
    write_run("CoOp/rn50_4shots", "70.00")
    folder = write_run("CoOp/rn50_4shots_ctx4", efficient)
    main([str(folder)])
    assert f"{verdict} CoOp (Standard)'s: {float(efficient) - 70:+.2f} points" in (folder / "results.md").read_text()


def test_cells_without_a_finished_run_are_empty_and_listed(write_run):
    write_run("CoOp/rn50_1shots", "70.00")
    validation_log = "=> result\n* accuracy: {}%\nepoch [3/200]\n"
    folder = write_run("CoOp/rn50_2shots", "99.00", validation_log)
    main([str(folder)])
    assert read_csv(folder)[2][1:5] == ["-", "70.00", "-", "-"]
    text = (folder / "results.md").read_text()
    assert "CoOp (Standard), 2 shots: " in text
    assert "rn50_2shots: the run has not ended" in text
    assert "rn50_1shots_ctx4: no log.txt" in text
    assert "cannot be compared yet" in text


def test_seeds_are_averaged_with_a_confidence_interval(write_run):
    for seed, accuracy in enumerate((70, 71, 75), start=1):
        folder = write_run(f"CoOp/rn50_4shots/seed{seed}", f"{accuracy}.00")
    main([str(folder)])
    assert read_csv(folder)[2][4] == "72.00 ± 6.57"
    assert "Student's t" in (folder / "results.md").read_text()


def test_the_folders_of_main_sh_are_read(write_run):
    write_run("CoOp/rn50_4shots/nctx16_cscFalse_ctpend/seed1", "70.00")
    write_run("CoOp/rn50_4shots/nctx4_cscFalse_ctpend/seed1", "69.00")
    folder = write_run("CoOp/rn50_4shots/nctx16_cscTrue_ctpend/seed1", "10.00")
    main([str(folder)])
    assert (read_csv(folder)[2][4], read_csv(folder)[3][4]) == ("70.00", "69.00")


def test_several_configs_require_the_flag_config(write_run, capsys):
    write_run("CoOp/rn50_4shots", "70.00")
    folder = write_run("CoOp/vit_b16_4shots", "80.00")
    assert main([str(folder)]) == 2
    assert "choose with --config: rn50, vit_b16" in capsys.readouterr().err
    assert main([str(folder), "--config", "vit_b16"]) == 0
    assert read_csv(folder)[2][4] == "80.00"
    assert main([str(folder), "--config", "vit_b1"]) == 2
    assert 'did you mean "vit_b16"' in capsys.readouterr().err


def test_weights_are_listed_with_a_warning_if_they_differ(write_run):
    write_run("CoOp/rn50_1shots", "70.00", sha256="a" * 64)
    folder = write_run("CoOp/rn50_2shots", "70.00", sha256="a" * 64)
    main([str(folder)])
    text = (folder / "results.md").read_text()
    assert f"Weights: RN50, SHA-256 {'a' * 16}…." in text
    assert "different weights" not in text
    write_run("CoOp/rn50_4shots", "70.00", sha256="b" * 64)
    main([str(folder)])
    assert "different weights" in (folder / "results.md").read_text()


def test_a_run_whose_record_contradicts_its_folder_is_missing(write_run):
    folder = write_run("CoOp/rn50_4shots", "70.00")
    config = {
        "TEST": {"SPLIT": "test"},
        "DATASET": {"NUM_SHOTS": 4},
        "TRAINER": {"COOP": {"N_CTX": 16, "CTX_INIT": ""}},
    }
    record = folder / "CoOp/rn50_4shots/result.json"
    record.write_text(json.dumps({"config": config}))
    main([str(folder)])
    assert read_csv(folder)[2][4] == "70.00"
    for section, key, value in (("TEST", "SPLIT", "val"), ("DATASET", "NUM_SHOTS", 16)):
        record.write_text(json.dumps({"config": {**config, section: {key: value}}}))
        main([str(folder)])
        assert read_csv(folder)[2][4] == "-"
        assert f"its record has {section}.{key} {value}" in (folder / "results.md").read_text()


def write_record(folder, name, **features):
    """Write a record whose config has these FEATURES."""
    (folder / name / "result.json").write_text(json.dumps({"config": {"FEATURES": features}}))


def test_cells_with_shortcuts_are_marked_and_explained(write_run):
    for name in ("rn50_1shots", "rn50_2shots", "rn50_4shots/seed1", "rn50_4shots/seed2"):
        folder = write_run(f"CoOp/{name}", "70.00")
    write_record(folder, "CoOp/rn50_1shots", VIEWS=0, PREC="")
    main([str(folder)])
    assert "*" not in (folder / "results.csv").read_text()
    assert "\\*" not in (folder / "results.md").read_text()
    write_record(folder, "CoOp/rn50_1shots", VIEWS=16, PREC="bf16")
    write_record(folder, "CoOp/rn50_4shots/seed2", VIEWS=0, PREC="bf16")
    (folder / "CoOp/rn50_2shots/result.json").write_text(json.dumps({"bad_images": {"test": ["a.jpg"]}}))
    main([str(folder)])
    assert read_csv(folder)[2] == ["CoOp (Standard)", "-", "70.00*", "70.00*", "70.00 ± 0.00*", "-", "-", "-"]
    text = (folder / "results.md").read_text()
    assert len({len(line) for line in text.splitlines() if line.startswith("|")}) == 1
    assert "draws after 16 epochs. In: CoOp (Standard), 1 shot.\n" in text
    both = "CoOp (Standard), 1 shot; CoOp (Standard), 4 shots"
    assert f"\n\\* FEATURES.PREC bf16: image features in that precision. In: {both}.\n" in text
    note = "images that could not be read were left out; result.json names them."
    assert f"\n\\* DATASET.SKIP_BAD_IMAGES: {note} In: CoOp (Standard), 2 shots.\n" in text


def test_an_empty_folder_of_main_sh_does_not_hide_a_run(write_run):
    folder = write_run("CoOp/rn50_4shots", "70.00")
    (folder / "CoOp/rn50_4shots/nctx16_cscFalse_ctpend").mkdir()
    main([str(folder)])
    assert read_csv(folder)[2][4] == "70.00"


def test_a_damaged_record_is_an_error_with_its_path(write_run, capsys):
    folder = write_run("CoOp/rn50_1shots", "70.00")
    for damaged in ("{", "[]"):
        (folder / "CoOp/rn50_1shots/result.json").write_text(damaged)
        assert main([str(folder)]) == 2
        assert "rn50_1shots/result.json" in capsys.readouterr().err


def test_a_folder_without_finished_runs_is_an_error(tmp_path, capsys):
    assert main([str(tmp_path / "absent")]) == 2
    assert "no folder" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2
    assert "no finished run" in capsys.readouterr().err
