"""The table of a few-shot study from the records of runs: tools/results_table.py."""

import json

import pytest
from PIL import Image

from dassl.engine.run_dir import rotate_file
from studies.tables.runs import write_trials
from tests.studies.records import SHA, TRAINED, build_record, read_csv, write_run
from tools.results_table import main

EFFICIENT = {"TRAINER.COOP.N_CTX": 4}


@pytest.fixture
def study(tmp_path):
    """The folder of a study with a run of zero-shot CLIP."""
    write_run(tmp_path / "imagenet/ZeroshotCLIP", 60, trainer="ZeroshotCLIP", shots=0)
    return tmp_path / "imagenet"


def make_page(folder, *options) -> str:
    """Write the table of a folder; return the page."""
    assert main([str(folder), *options]) == 0
    return (folder / "results.md").read_text()


def test_rows_and_columns_come_from_the_records_wherever_the_runs_are(study):
    for shots in (1, 32):
        write_run(study / f"a/{shots}", 70 + shots / 10, shots=shots)
    write_run(study / "b", 69, shots=1, config=EFFICIENT)
    write_run(study / "c", 71, shots=-1, trainer="MyMethod")
    write_run(study / "d", 72, shots=1, config={"TRAINER.COOP.CLASS_TOKEN_POSITION": "front"})
    write_run(study / "e", 73, shots=1, config={"TRAINER.COOP.CTX_INIT": "a photo of a"})
    page = make_page(study)
    assert read_csv(study) == {
        "accuracy (%)": ["0 shots", "1 shot", "32 shots", "all", "parameters"],
        "Zero-shot CLIP": ["60.00", "-", "-", "-", "0"],
        "CoOp (Standard)": ["-", "70.10", "73.20", "-", "2,048"],
        "CoOp (Efficient)": ["-", "69.00", "-", "-", "2,048"],
        'CoOp, "a photo of a"': ["-", "73.00", "-", "-", "2,048"],
        "CoOp (Standard), class name front": ["-", "72.00", "-", "-", "2,048"],
        "MyMethod": ["-", "-", "-", "71.00", "2,048"],
    }
    assert "75% fewer parameters" in page
    assert "Missing" not in page
    assert "†" not in page
    assert len({len(line) for line in page.splitlines() if line.startswith("|")}) == 1
    with Image.open(study / "results.png") as image:
        assert image.width > 500


def test_a_seed_is_that_of_the_record(study):
    for seed, accuracy in enumerate((70, 71, 75), start=1):
        write_run(study / f"run{seed}", accuracy, seed=seed)
    page = make_page(study)
    assert read_csv(study)["CoOp (Standard)"][1] == "72.00 ± 6.57"
    assert "Student's t" in page
    write_run(study / "run1-rerun", 70, seed=1)
    page = make_page(study)
    assert read_csv(study)["CoOp (Standard)"][1] == "72.00 ± 6.57"
    assert f"2 records of seed 1: {study}/run1 (70.00), {study}/run1-rerun (70.00); equal, so it counts once" in page
    write_run(study / "run1-rerun", 99, seed=1)
    page = make_page(study)
    assert read_csv(study)["CoOp (Standard)"][1] == "73.00 ± 25.41"
    assert f"{study}/run1-rerun (99.00); different, so the seed is left out" in page


def test_runs_inside_a_runs_folder_are_no_runs_of_the_table(study):
    run = write_run(study / "run", 70)
    write_run(run / "rerun", 99, seed=2)
    write_run(run / "eval-digits-test", 98, seed=3)
    (write_run(study / "unfinished/rerun", 97, seed=4).parent / "config.yaml").write_text("")
    page = make_page(study)
    assert read_csv(study)["CoOp (Standard)"][1] == "70.00"
    assert not any(figure in page for figure in ("99.00", "98.00", "97.00"))


def test_runs_that_differ_in_a_setting_have_a_row_for_each_and_are_not_averaged(study):
    write_run(study / "run1", 70, seed=1)
    write_run(study / "run2", 72, seed=2)
    write_run(study / "run3", 90, seed=3, config={"OPTIM.LR": 0.1, "OPTIM.MAX_EPOCH": 7})
    page = make_page(study)
    rows = read_csv(study)
    assert rows["CoOp (Standard), OPTIM.LR 0.0003"][1] == "71.00 ± 12.71"
    assert rows["CoOp (Standard), OPTIM.LR 0.1"][1] == "90.00"
    assert "CoOp (Standard) has several rows" in page
    assert "OPTIM.LR, OPTIM.MAX_EPOCH" in page


def test_seeds_paths_workers_and_devices_are_no_settings(study):
    other = {"OUTPUT_DIR": "x", "DATASET.ROOT": "y", "DATALOADER.NUM_WORKERS": 7, "USE_CUDA": False, "VERBOSE": False}
    other |= {"FEATURES.CACHE_DIR": "z", "MODEL.BACKBONE.WEIGHTS": "w.pt", "TEST.PER_CLASS_RESULT": True}
    write_run(study / "run1", 70, seed=1)
    write_run(study / "run2", 72, seed=2, config=other)
    record = build_record(71, seed=3)
    del record["config"]["FEATURES"]  # of an older version; it has the defaults
    for key in ("models", "machine", "train_images_per_class"):
        del record[key]
    write_run(study / "run3").joinpath("result.json").write_text(json.dumps(record))
    make_page(study)
    assert read_csv(study)["CoOp (Standard)"][1] == "71.00 ± 2.48"


def test_zero_shot_runs_do_not_differ_in_settings_of_training(study):
    training = {"OPTIM.LR": 0.1, "DATALOADER.TRAIN_X.BATCH_SIZE": 1, "INPUT.TRANSFORMS": ["random_flip"]}
    write_run(study / "again", 60, trainer="ZeroshotCLIP", seed=2, shots=16, config=training)
    make_page(study)
    assert read_csv(study)["Zero-shot CLIP"][0] == "60.00 ± 0.00"


def test_columns_with_other_epochs_are_named(study):
    write_run(study / "run1", 70, shots=1, config={"OPTIM.MAX_EPOCH": 50})
    write_run(study / "run8", 80, shots=8, config={"OPTIM.MAX_EPOCH": 200})
    note = "CoOp (Standard): OPTIM.MAX_EPOCH differs between the columns: 50 (1 shot); 200 (8 shots)."
    assert note in make_page(study)
    assert read_csv(study)["CoOp (Standard)"] == ["-", "70.00", "80.00", "2,048"]


@pytest.mark.parametrize(
    ("entries", "difference"),
    [
        ({"splits": {"test": {"images": 9, "sha256": SHA["b"]}}}, "test images"),
        ({"classnames": ["cat", "cow"]}, "class names"),
        ({"dataset": "ImageNet"}, "data set: ImageNet; in most of the table: Digits"),
        ({"weights": {"backbone": "ViT-B/32", "sha256": SHA["b"]}}, "weights: ViT-B/32, SHA-256 bbbb"),
        ({"machine": {"sums": "MKL AUTO, 2 threads"}}, "sums: MKL AUTO, 2 threads; in most of the table: not recorded"),
    ],
)
def test_a_cell_that_does_not_compare_with_the_others_is_marked_and_named(study, entries, difference):
    write_run(study / "run1", 70, shots=1)
    write_run(study / "run2", 71, shots=2, **entries)
    page = make_page(study)
    assert read_csv(study)["CoOp (Standard)"][1:3] == ["70.00", "71.00†"]
    line = next(line for line in page.splitlines() if line.startswith(f"† {difference}"))
    assert line.endswith(". In: CoOp (Standard), 2 shots.")


def test_seeds_of_one_cell_with_other_arithmetic_are_averaged_and_marked(study):
    for seed, sums in ((1, "MKL AVX2,STRICT"), (2, None)):
        write_run(study / f"run{seed}", 70, seed=seed, machine={"sums": sums})
    assert "† sums: MKL AVX2,STRICT and not recorded; in most of the table: not recorded. In: CoOp" in make_page(study)
    assert read_csv(study)["CoOp (Standard)"][1] == "70.00 ± 0.00†"


def test_in_the_strict_mode_methods_whose_sums_depend_on_the_threads_compare_with_the_others(study):
    for shots, threads in ((1, ""), (2, ", 8 threads"), (4, ", 1 thread")):
        write_run(study / f"run{shots}", 70, shots=shots, machine={"sums": f"MKL AVX512,STRICT{threads}"})
    make_page(study)
    assert read_csv(study)["CoOp (Standard)"][1:4] == ["70.00"] * 3


def test_a_cell_shows_the_shots_that_there_were(study):
    write_run(study / "run8", 70, shots=8, train_images_per_class=[5, 5])
    write_run(study / "run16", 70, shots=16, train_images_per_class=[3, 5])
    page = make_page(study)
    assert read_csv(study)["CoOp (Standard)"][1:3] == ["70.00 (5 shots)", "70.00 (3 to 5 shots)"]
    assert "a class had fewer training images than asked for. In: CoOp (Standard), 8 shots; CoOp (S" in page


def test_few_test_images_are_named_with_the_size_of_a_step(study):
    write_run(study / "ZeroshotCLIP", 60, trainer="ZeroshotCLIP", shots=0, total=15)
    write_run(study / "run", 80, total=15)
    assert "\n15 test images: one image is 6.67 points.\n" in make_page(study)
    write_run(study / "run", 80, total=100)
    assert "15 test images: one image is 6.67 points. In: Zero-shot CLIP, 0 shots." in make_page(study)


def test_runs_of_one_config_are_chosen_with_the_flag_config(study, capsys):
    write_run(study / "a", 70, config_file="rn50")
    write_run(study / "b", 80, config_file="vit_b16", config={"MODEL.BACKBONE.NAME": "ViT-B/16"})
    make_page(study, "--config", "vit_b16")
    assert read_csv(study)["CoOp (Standard)"][0] == "80.00"
    assert main([str(study), "--config", "vit_b1"]) == 2
    assert 'did you mean "vit_b16"' in capsys.readouterr().err


def test_evaluations_validation_results_and_runs_without_a_result_are_named(study):
    write_run(study / "run", 70)
    write_run(study / "tested", 99, command=["--trainer", "CoOp", "--eval-only", "--model-dir", "x"])
    write_run(study / "validated", 98, seed=2, split="val")
    write_run(study / "untested", seed=3).joinpath("result.json").write_text(
        json.dumps({**build_record(seed=3), "accuracy": None})
    )
    page = make_page(study)
    assert read_csv(study)["CoOp (Standard)"][1] == "70.00"
    for name, reason in (
        ("tested", "it evaluates a model that another run trained"),
        ("validated", "its accuracy is on the split val"),
        ("untested", "its record has no accuracy"),
    ):
        assert f"Not in the table: {study / name}: {reason}." in page


def test_only_runs_that_a_sweep_was_asked_for_or_that_have_not_ended_are_missing(study):
    write_run(study / "run", 70)
    assert "Missing" not in make_page(study)
    validation_log = "=> result\n* accuracy: 99.00%\nepoch [3/200]\n"
    write_run(study / "stopped").joinpath("log.txt").write_text(validation_log)
    rotate_file(study / "stopped/result.json")
    for name, seeds in (("b", (1, 2)), ("run", (1,))):  # two sweeps into one folder
        write_trials(study, (study / name / f"s{seed}" for seed in seeds))
    missing = make_page(study).partition("Missing:")[2].split("\n- ")[1:]
    assert [line.strip().removeprefix(f"{study}/") for line in missing] == [
        "b/s1: no log.txt",
        "b/s2: no log.txt",
        "run/s1: no log.txt",
        "stopped: the run has not ended (no result.json)",
    ]


def test_a_damaged_list_of_runs_is_an_error_with_its_path(study, capsys):
    (study / "trials.json").write_text('{"a": 1}')
    assert main([str(study)]) == 2
    assert f"{study}/trials.json is damaged" in capsys.readouterr().err


def test_cells_with_shortcuts_are_marked_and_explained(study):
    forced = "after epoch 50, other settings: OPTIM.MAX_EPOCH 50 -> 200"
    write_run(study / "run1", shots=1, config={"FEATURES.VIEWS": 16, "FEATURES.PREC": "bf16"})
    write_run(study / "run2", shots=2, bad_images={"test": ["a.jpg"]})
    write_run(study / "run4", shots=4, forced=[forced])
    write_run(study / "run8", shots=8)
    page = make_page(study)
    assert read_csv(study)["CoOp (Standard)"][1:5] == ["70.00*", "70.00*", "70.00*", "70.00"]
    assert "draws after 16 epochs. In: CoOp (Standard), 1 shot.\n" in page
    assert "\n\\* FEATURES.PREC bf16: image features in that precision. In: CoOp (Standard), 1 shot.\n" in page
    assert f"--force-resume: {forced}. In: CoOp (Standard), 4 shots." in page
    note = "images that could not be read were left out; result.json names them."
    assert f"\n\\* DATASET.SKIP_BAD_IMAGES: {note} In: CoOp (Standard), 2 shots.\n" in page


def test_cells_with_other_seeds_than_most_are_named(study):
    for shots, seeds in ((1, (1, 2)), (2, (1, 2)), (4, (1,))):
        for seed in seeds:
            write_run(study / f"run{shots}-{seed}", shots=shots, seed=seed)
    assert "Seeds: 1; in most cells: 1, 2. In: CoOp (Standard), 4 shots." in make_page(study)


@pytest.mark.parametrize("damage", [{"seed": "1"}, {"trainer": 3}, {"config": None}, {"accuracy": float("nan")}])
def test_a_damaged_record_is_an_error_with_its_path(study, capsys, damage):
    run = write_run(study / "run1")
    for damaged in ("{", "[]", json.dumps(build_record() | damage)):
        (run / "result.json").write_text(damaged)
        assert main([str(study)]) == 2
        assert "run1/result.json" in capsys.readouterr().err


def test_a_folder_without_finished_runs_is_an_error(tmp_path, capsys):
    assert main([str(tmp_path / "absent")]) == 2
    assert "no folder" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2
    assert "has a result for the table" in capsys.readouterr().err
    (tmp_path / "old").mkdir()
    (tmp_path / "old/log.txt").write_text(TRAINED.format(70))
    assert main([str(tmp_path)]) == 2
    assert "old: the run has not ended (no result.json)" in capsys.readouterr().err
