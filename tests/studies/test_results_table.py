"""The study's table from folders of logs."""

import csv
import json

import pytest
from PIL import Image

from tools.results_table import main

DONE = "Finish training\nFinished training\n=> result\n* accuracy: {}%\n"


@pytest.fixture
def study(tmp_path):
    """A function that writes a run's log into output/imagenet/<name>."""
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


def table(folder) -> list[list[str]]:
    return list(csv.reader((folder / "results.csv").open()))


def test_the_table_of_a_whole_study(study):
    for i, shots in enumerate((1, 2, 4, 8, 16)):
        study(f"CoOp/rn50_{shots}shots", f"{70 + i}.00")
        folder = study(f"CoOp/rn50_{shots}shots_ctx4", f"{69.5 + i:.2f}")
    assert main([str(folder)]) == 0
    assert table(folder) == [
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
def test_the_verdict_follows_the_gap(study, efficient, verdict):
    study("CoOp/rn50_4shots", "70.00")
    folder = study("CoOp/rn50_4shots_ctx4", efficient)
    main([str(folder)])
    assert f"{verdict} CoOp (Standard)'s: {float(efficient) - 70:+.2f} points" in (folder / "results.md").read_text()


def test_missing_cells_stay_open_and_are_listed(study):
    study("CoOp/rn50_1shots", "70.00")
    folder = study("CoOp/rn50_2shots", "99.00", "=> result\n* accuracy: {}%\nepoch [3/200]\n")  # a validation result
    main([str(folder)])
    assert table(folder)[2][1:5] == ["-", "70.00", "-", "-"]
    text = (folder / "results.md").read_text()
    assert "CoOp (Standard), 2 shots: " in text
    assert "rn50_2shots: the run has not ended" in text
    assert "rn50_1shots_ctx4: no log.txt" in text
    assert "cannot be compared yet" in text


def test_seeds_are_averaged_with_their_interval(study):
    for seed, accuracy in enumerate((70, 71, 75), start=1):
        folder = study(f"CoOp/rn50_4shots/seed{seed}", f"{accuracy}.00")
    main([str(folder)])
    assert table(folder)[2][4] == "72.00 ± 6.57"
    assert "Student's t" in (folder / "results.md").read_text()


def test_what_main_sh_writes_is_read(study):
    study("CoOp/rn50_4shots/nctx16_cscFalse_ctpend/seed1", "70.00")
    study("CoOp/rn50_4shots/nctx4_cscFalse_ctpend/seed1", "69.00")
    folder = study("CoOp/rn50_4shots/nctx16_cscTrue_ctpend/seed1", "10.00")
    main([str(folder)])
    assert (table(folder)[2][4], table(folder)[3][4]) == ("70.00", "69.00")


def test_several_configs_must_be_chosen_from(study, capsys):
    study("CoOp/rn50_4shots", "70.00")
    folder = study("CoOp/vit_b16_4shots", "80.00")
    assert main([str(folder)]) == 2
    assert "choose with --config: rn50, vit_b16" in capsys.readouterr().err
    assert main([str(folder), "--config", "vit_b16"]) == 0
    assert table(folder)[2][4] == "80.00"
    assert main([str(folder), "--config", "vit_b1"]) == 2
    assert 'did you mean "vit_b16"' in capsys.readouterr().err


def test_weights_are_named_and_mixing_them_is_too(study):
    study("CoOp/rn50_1shots", "70.00", sha256="a" * 64)
    folder = study("CoOp/rn50_2shots", "70.00", sha256="a" * 64)
    main([str(folder)])
    text = (folder / "results.md").read_text()
    assert f"Weights: RN50, SHA-256 {'a' * 16}…." in text
    assert "different weights" not in text
    study("CoOp/rn50_4shots", "70.00", sha256="b" * 64)
    main([str(folder)])
    assert "different weights" in (folder / "results.md").read_text()


def test_a_run_that_is_not_what_its_folder_says_is_left_out(study):
    folder = study("CoOp/rn50_4shots", "70.00")
    config = {
        "TEST": {"SPLIT": "test"},
        "DATASET": {"NUM_SHOTS": 4},
        "TRAINER": {"COOP": {"N_CTX": 16, "CTX_INIT": ""}},
    }
    record = folder / "CoOp/rn50_4shots/result.json"
    record.write_text(json.dumps({"config": config}))
    main([str(folder)])
    assert table(folder)[2][4] == "70.00"
    for section, key, value in (("TEST", "SPLIT", "val"), ("DATASET", "NUM_SHOTS", 16)):
        record.write_text(json.dumps({"config": {**config, section: {key: value}}}))
        main([str(folder)])
        assert table(folder)[2][4] == "-"
        assert f"its record says {section}.{key} {value}" in (folder / "results.md").read_text()


def record_features(folder, name, **features):
    (folder / name / "result.json").write_text(json.dumps({"config": {"FEATURES": features}}))


def test_cells_with_shortcuts_are_marked_and_named(study):
    for name in ("rn50_1shots", "rn50_2shots", "rn50_4shots/seed1", "rn50_4shots/seed2"):
        folder = study(f"CoOp/{name}", "70.00")
    record_features(folder, "CoOp/rn50_1shots", VIEWS=0, PREC="")
    main([str(folder)])
    assert "*" not in (folder / "results.csv").read_text()
    assert "\\*" not in (folder / "results.md").read_text()
    record_features(folder, "CoOp/rn50_1shots", VIEWS=16, PREC="bf16")
    record_features(folder, "CoOp/rn50_4shots/seed2", VIEWS=0, PREC="bf16")
    (folder / "CoOp/rn50_2shots/result.json").write_text(json.dumps({"bad_images": {"test": ["a.jpg"]}}))
    main([str(folder)])
    assert table(folder)[2] == ["CoOp (Standard)", "-", "70.00*", "70.00*", "70.00 ± 0.00*", "-", "-", "-"]
    text = (folder / "results.md").read_text()
    assert len({len(line) for line in text.splitlines() if line.startswith("|")}) == 1
    assert "draws after 16 epochs. In: CoOp (Standard), 1 shot.\n" in text
    both = "CoOp (Standard), 1 shot; CoOp (Standard), 4 shots"
    assert f"\n\\* FEATURES.PREC bf16: image features in that precision. In: {both}.\n" in text
    told = "images that could not be read were left out; result.json names them."
    assert f"\n\\* DATASET.SKIP_BAD_IMAGES: {told} In: CoOp (Standard), 2 shots.\n" in text


def test_an_empty_folder_of_main_sh_hides_nothing(study):
    folder = study("CoOp/rn50_4shots", "70.00")
    (folder / "CoOp/rn50_4shots/nctx16_cscFalse_ctpend").mkdir()
    main([str(folder)])
    assert table(folder)[2][4] == "70.00"


def test_a_damaged_record_is_named(study, capsys):
    folder = study("CoOp/rn50_1shots", "70.00")
    for damaged in ("{", "[]"):
        (folder / "CoOp/rn50_1shots/result.json").write_text(damaged)
        assert main([str(folder)]) == 2
        assert "rn50_1shots/result.json" in capsys.readouterr().err


def test_nothing_to_read(tmp_path, capsys):
    assert main([str(tmp_path / "absent")]) == 2
    assert "no folder" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2
    assert "no finished run" in capsys.readouterr().err
