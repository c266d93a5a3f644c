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
    return (folder / "results.md").read_text(encoding="utf-8")


def test_rows_and_columns_come_from_the_records_wherever_the_runs_are(study):
    for shots in (1, 32):
        write_run(study / f"a/{shots}", 70 + shots / 10, shots=shots)
    write_run(study / "b", 69, shots=1, config=EFFICIENT)
    write_run(study / "c", 71, shots=-1, trainer="MyMethod")
    write_run(study / "d", 72, shots=1, config={"TRAINER.COOP.CLASS_TOKEN_POSITION": "front"})
    write_run(study / "e", 73, shots=1, config={"TRAINER.COOP.CTX_INIT": "a photo of a"})
    page = make_page(study)
    assert read_csv(study) == {
        "accuracy (%)": ["0 shots", "1 shot", "32 shots", "all", "parameters", "group"],
        "Zero-shot CLIP": ["60.00", "-", "-", "-", "0", "training-free"],
        "CoOp (Standard)": ["-", "70.10", "73.20", "-", "2,048", "prompts"],
        "CoOp (Efficient)": ["-", "69.00", "-", "-", "2,048", "prompts"],
        'CoOp, "a photo of a"': ["-", "73.00", "-", "-", "2,048", "prompts"],
        "CoOp (Standard), class name front": ["-", "72.00", "-", "-", "2,048", "prompts"],
        "MyMethod": ["-", "-", "-", "71.00", "2,048", "other"],
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
    (write_run(study / "unfinished/rerun", 97, seed=4).parent / "config.yaml").write_text("", encoding="utf-8")
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
    write_run(study / "run3").joinpath("result.json").write_text(json.dumps(record), encoding="utf-8")
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
    assert read_csv(study)["CoOp (Standard)"][:-1] == ["-", "70.00", "80.00", "2,048"]


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


def drawn_from(name: str) -> dict:
    """Return the entry of a record on few shots from the images ``name``, a or b."""
    return {"file": "shots.json", "fingerprint": SHA[name]}


def test_seeds_trained_on_other_images_are_not_averaged(study):
    for seed, name in ((1, "a"), (2, "a"), (3, "b")):
        write_run(study / f"run{seed}", 70, seed=seed, few_shot_split=drawn_from(name))
        images = {"train_x": {"images": 900, "sha256": SHA["a"], "sizes": SHA[name]}}
        write_run(study / f"all{seed}", 80, seed=seed, shots=-1, trainer="LinearProbe", splits=images)
    page = make_page(study)
    assert [row[2] for row in read_csv(study).values()][2:4] == ["80.00 ± 0.00", "80.00†"]
    assert [row[1] for row in read_csv(study).values()][4:] == ["70.00 ± 0.00", "70.00†"]
    assert "CoOp (Standard) has several rows, as runs with the same shots differ in training images." in page
    assert "Linear probe, all training image sizes aaaaaaaa…" in read_csv(study)


def test_methods_trained_on_other_images_are_marked_and_not_compared(study):
    images = {"train_x": {"images": 900, "sha256": SHA["b"]}}
    write_run(study / "all", 80, shots=-1, splits=images)
    for seed in (1, 2):
        write_run(study / f"run{seed}", 70, seed=seed, few_shot_split=drawn_from("a"))
        write_run(study / f"tested{seed}", 60, seed=seed, trainer="ZeroshotCLIP", few_shot_split=drawn_from("b"))
        write_run(study / f"other{seed}", 70, seed=seed, few_shot_split=drawn_from("a"), config=EFFICIENT)
    assert "†" not in make_page(study)
    for seed in (1, 2):
        write_run(study / f"other{seed}", 70, seed=seed, few_shot_split=drawn_from("b"), config=EFFICIENT)
    page = make_page(study)
    assert "more accurate cannot be told: their training images differ." in page
    a, b = (f"raining images: SHA-256 {name * 16}…. In: CoOp" for name in "ab")
    assert f"† t{b} (Efficient), 16 shots. T{a} (Standard), 16 shots." in page


def test_the_shots_of_a_file_count_by_what_they_are(study):
    splits = {"train_x": {"images": 100, "sha256": SHA["a"]}}
    for seed, name, changed in ((1, "a", 0), (2, "b", 0), (3, "a", 20)):
        split = {"file": name, "fingerprint": SHA[name], "pool": SHA["a"], "changed_labels": changed}
        entries = {"few_shot_split": split, "splits": splits, "train_images_per_class": [1, 18]}
        config = {"DATASET.FEWSHOT_FILE": f"{seed}.json"}
        write_run(study / f"run{seed}", 70 + seed, seed=seed, shots=16, config=config, **entries)
    del entries["few_shot_split"]["changed_labels"]
    write_run(study / "earlier", 74, config={"DATASET.FEWSHOT_FILE": "a.json"}, **entries)
    write_run(study / "drawn", 60, shots=18, few_shot_split=drawn_from("a"))
    page, rows = make_page(study), read_csv(study)
    assert rows["accuracy (%)"] == ["0 shots", "18 shots", "parameters", "group"]
    row = "CoOp (Standard), DATASET.FEWSHOT_FILE 100 images, 1 to 18 a class, {} changed labels"
    assert rows[row.format(0)][1] == "71.50 ± 6.35 (1 to 18 shots)"
    assert rows[row.format(20)][1] == "73.00 (1 to 18 shots)*"
    assert rows[row.format("an unknown number of")][1] == "74.00 (1 to 18 shots)"
    assert rows["CoOp (Standard), DATASET.FEWSHOT_FILE none"][1] == "60.00"
    assert "\n\\* DATASET.FEWSHOT_FILE: 20 training images have another label than in the data set." in page


def test_descriptions_count_by_their_content_and_the_paths_of_class_lists_do_not(study):
    zero = {"trainer": "ZeroshotCLIP", "shots": 0}
    for seed, name in ((1, "a"), (2, "a"), (3, "b")):
        config = {f"DATASET.{key}": f"{seed}.txt" for key in ("DESCRIPTIONS", "BASE_CLASSES", "CLASSNAMES")}
        descriptions = {"file": f"{seed}.txt", "sha256": SHA[name]}
        write_run(study / f"run{seed}", 61, seed=seed, config=config, descriptions=descriptions, **zero)
    make_page(study)
    row = "Zero-shot CLIP, DATASET.DESCRIPTIONS {}"
    texts = [f"{name * 8}…" for name in "ab"]
    assert [read_csv(study)[row.format(text)][0] for text in (*texts, "none")] == ["61.00 ± 0.00", "61.00", "60.00"]


def test_records_of_one_seed_count_once_if_all_results_are_equal(study):
    write_run(study / "run", 70, macro_f1=65.0, machine={"sums": "MKL AVX2,STRICT"})
    write_run(study / "again", 70)
    note = f"2 records of seed 1: {study}/again (70.00, sums not recorded), {study}/run (70.00, sums MKL AVX2,STRICT)"
    assert f"{note}; equal, so it counts once" in make_page(study)
    assert read_csv(study)["CoOp (Standard)"][1] == "70.00"
    write_run(study / "again", 70, macro_f1=66.0)
    page = make_page(study)
    assert f"{study}/again (70.00, macro_f1 66.0, sums not recorded)" in page
    assert "different, so the seed is left out" in page


def test_rows_that_split_a_method_are_in_the_order_of_the_values(study):
    for name, rate in (("a", 0.02), ("b", 0.1), ("c", 0.003)):
        write_run(study / name, config={"OPTIM.LR": rate})
    make_page(study)
    rates = [row.rpartition(" ")[2] for row in read_csv(study) if "OPTIM.LR" in row]
    assert rates == ["0.003", "0.02", "0.1"]


def test_without_a_majority_the_groups_are_named(study):
    write_run(study / "run1", shots=1, seed=1)
    write_run(study / "run2", shots=2, seed=2, weights={"backbone": "A", "sha256": SHA["a"]})
    write_run(study / "run4", shots=4, seed=2, weights={"backbone": "A", "sha256": SHA["a"]})
    page = make_page(study)
    a, b = "CoOp (Standard), 2 shots; CoOp (Standard), 4 shots.", "Zero-shot CLIP, 0 shots; CoOp (Standard), 1 shot."
    text = f"SHA-256 {'a' * 16}…. In: "
    assert f"† weights: A, {text}{a} Weights: RN50, {text}{b}" in page
    assert "Seeds: 1; in most cells: 2. In: CoOp (Standard), 1 shot." in page
    (study / "run4/result.json").unlink()
    assert "Seeds: 2. In: CoOp (Standard), 2 shots. Seeds: 1. In: CoOp (Standard), 1 shot." in make_page(study)


def test_seeds_of_one_cell_with_other_arithmetic_are_averaged_and_marked(study):
    for seed, sums in ((1, "MKL AVX2,STRICT"), (2, None)):
        write_run(study / f"run{seed}", 70, seed=seed, machine={"sums": sums})
    page = make_page(study)
    assert (
        "† sums: MKL AVX2,STRICT and not recorded. In: CoOp (Standard), 16 shots. Sums: not recorded. In: Zero-" in page
    )
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
    assert "a class had fewer training images than the number of shots. In: CoOp (Standard), 8 shots; CoOp (S" in page


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
    write_run(study / "shortened", 97, command=["--trainer", "CoOp", "--e"], eval_only=True)
    write_run(study / "validated", 98, seed=2, split="val")
    write_run(study / "untested", seed=3).joinpath("result.json").write_text(
        json.dumps({**build_record(seed=3), "accuracy": None}), encoding="utf-8"
    )
    page = make_page(study)
    assert read_csv(study)["CoOp (Standard)"][1] == "70.00"
    for name, reason in (
        ("tested", "it evaluates a model that another run trained"),
        ("shortened", "it evaluates a model that another run trained"),
        ("validated", "its accuracy is on the split val"),
        ("untested", "its record has no accuracy"),
    ):
        assert f"Not in the table: {study / name}: {reason}." in page


def test_only_runs_that_a_sweep_was_asked_for_or_that_have_not_ended_are_missing(study):
    write_run(study / "run", 70)
    assert "Missing" not in make_page(study)
    validation_log = "=> result\n* accuracy: 99.00%\nepoch [3/200]\n"
    write_run(study / "stopped").joinpath("log.txt").write_text(validation_log, encoding="utf-8")
    rotate_file(study / "stopped/result.json")
    (study / "b/s2").mkdir(parents=True)
    for name, seeds in (("b", (1, 2)), ("run", (1,))):  # two sweeps into one folder
        write_trials(study, (study / name / f"s{seed}" for seed in seeds))
    missing = make_page(study).partition("Missing:")[2].split("\n- ")[1:]
    assert [line.strip().removeprefix(f"{study}/") for line in missing] == [
        "b/s1: not started",
        "b/s2: no log.txt",
        "run/s1: not started",
        "stopped: the run has not ended (no result.json)",
    ]


def test_a_damaged_list_of_runs_is_an_error_with_its_path(study, capsys):
    (study / "trials.json").write_text('{"a": 1}', encoding="utf-8")
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
        (run / "result.json").write_text(damaged, encoding="utf-8")
        assert main([str(study)]) == 2
        assert "run1/result.json" in capsys.readouterr().err


def test_a_folder_without_finished_runs_is_an_error(tmp_path, capsys):
    assert main([str(tmp_path / "absent")]) == 2
    assert "no folder" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2
    assert "has a result for the table" in capsys.readouterr().err
    (tmp_path / "old").mkdir()
    (tmp_path / "old/log.txt").write_text(TRAINED.format(70), encoding="utf-8")
    assert main([str(tmp_path)]) == 2
    assert "old: the run has not ended (no result.json)" in capsys.readouterr().err
