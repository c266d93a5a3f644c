"""Groups of methods, tables by PROTOCOL, and cells with one draw of shots."""

import numpy as np
import pytest

from studies.tables import pareto, study
from tests.studies.records import read_csv, write_predictions, write_run
from tools.results_table import main

NONE = {"PROTOCOL": "none"}


def write_method(folder, method, group, shots=16, **record):
    """Write a run of a method with its name and group in the record; its trainer is the name without signs."""
    trainer = "".join(filter(str.isalnum, method))
    return write_run(folder, trainer=trainer, method=method, group=group, shots=shots, **record)


def read_page(folder, *options, name="results.md") -> str:
    """Write the table of a folder; return the page."""
    assert main([str(folder), *options]) == 0
    return (folder / name).read_text(encoding="utf-8")


def test_rows_are_in_groups_what_trains_nothing_first_then_by_name(tmp_path):
    methods = [("PromptSRC", "towers"), ("LP++", "features"), ("CLAP", "features"), ("Mine", ""), ("Ours", "own")]
    methods += [("KgCoOp", "prompts"), ("APE", "training-free")]
    for method, group in methods:
        write_method(tmp_path / method, method, group)
    write_run(tmp_path / "CoOp", method="CoOp", group="prompts")
    zero_shot = {"trainer": "ZeroshotCLIP", "method": "Zero-shot CLIP", "group": "training-free"}
    write_run(tmp_path / "zero-shot", 60, shots=0, **zero_shot)
    page = read_page(tmp_path)
    heads = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("|")]
    assert heads[2:] == [
        *("**training-free**", "Zero-shot CLIP", "APE", "**features**", "CLAP", "LP++", "**prompts**"),
        *("CoOp (Standard)", "KgCoOp", "**towers**", "PromptSRC", "**own**", "Ours", "**other**", "Mine"),
    ]
    assert len({len(line) for line in page.splitlines() if line.startswith("|")}) == 1
    groups = {row: cells[-1] for row, cells in read_csv(tmp_path).items()}
    assert groups["LP++"] == "features"
    assert groups["Mine"] == "other"


def test_a_table_with_one_group_has_no_headers(tmp_path):
    write_method(tmp_path / "a", "TaskRes", "features")
    write_method(tmp_path / "b", "CLAP", "features")
    assert "**" not in read_page(tmp_path)


def test_old_records_share_the_row_of_the_new_records_of_their_trainer(tmp_path):
    write_method(tmp_path / "new", "Class scale", "features", seed=1)
    write_run(tmp_path / "old", 72, trainer="Classscale", seed=2)
    write_run(tmp_path / "probe1", 70, trainer="LinearProbe", seed=1)
    write_run(tmp_path / "probe2", 72, trainer="LinearProbe", seed=2, method="Linear probe", group="features")
    main([str(tmp_path)])
    rows = read_csv(tmp_path)
    assert list(rows) == ["accuracy (%)", "Class scale", "Linear probe"]
    assert {cells[0] for cells in list(rows.values())[1:]} == {"71.00 ± 12.71"}
    assert {cells[-1] for cells in list(rows.values())[1:]} == {"features"}


def test_runs_of_the_two_protocols_have_a_table_each(tmp_path):
    write_run(tmp_path / "zero-shot", 60, trainer="ZeroshotCLIP", shots=0)
    write_method(tmp_path / "chosen", "GDA", "training-free", accuracy=80)
    write_method(tmp_path / "fixed", "GDA", "training-free", accuracy=90, config=NONE)
    page = read_page(tmp_path)
    assert "PROTOCOL validation: what a method chooses" in page
    assert read_csv(tmp_path)["GDA"][:2] == ["-", "80.00"]
    assert read_csv(tmp_path)["Zero-shot CLIP"][0] == "60.00"
    assert read_csv(tmp_path, "results_protocol_none")["GDA"][:2] == ["-", "90.00"]
    assert read_csv(tmp_path, "results_protocol_none")["Zero-shot CLIP"][0] == "60.00"
    none = (tmp_path / "results_protocol_none.md").read_text(encoding="utf-8")
    assert none.startswith(f"# Few-shot accuracy on {tmp_path.name}, nothing chosen (PROTOCOL none)\n")
    assert "PROTOCOL validation" not in none
    assert (tmp_path / "results_protocol_none.png").is_file()
    assert (tmp_path / "parameters_protocol_none.png").is_file()
    assert "80.00" not in none
    assert "90.00" not in page


def test_runs_of_protocol_none_alone_have_the_table_with_its_title(tmp_path):
    write_method(tmp_path / "fixed", "GDA", "training-free", config=NONE)
    assert read_page(tmp_path).startswith(f"# Few-shot accuracy on {tmp_path.name}, nothing chosen (PROTOCOL none)\n")
    assert not [*tmp_path.glob("*_protocol_*")]


def test_cells_of_another_protocol_are_marked_in_other_tables(tmp_path):
    for method, setting in (("A", {}), ("B", NONE), ("C", {})):
        config = {"DATASET.SUBSAMPLE_CLASSES": "base", **setting}
        write_method(tmp_path / f"train_base/digits/shots_16/{method}/tiny/seed1", method, "features", config=config)
    page = read_page(tmp_path, name="base_to_new.md")
    assert "† protocol: none; in most of digits, base classes: validation. In: digits, B, tiny, 16 shots, base." in page


@pytest.mark.parametrize(("group", "final"), [("prompts", "last_step"), ("prompts", "best_val"), ("features", "")])
def test_the_protocol_is_named_where_a_method_chooses(tmp_path, group, final):
    write_method(tmp_path / "run", "A", group, config={"TEST.FINAL_MODEL": final})
    assert ("PROTOCOL validation" in read_page(tmp_path)) == (final != "last_step")


def test_cells_with_one_draw_of_shots_have_no_interval(tmp_path):
    for seed, accuracy in ((1, 70), (2, 71), (3, 75)):
        for shots in (8, 16):
            split = {"draws": 1} if shots == 16 else {}
            run = {"seed": seed, "accuracy": accuracy, "few_shot_split": split}
            write_method(tmp_path / f"{shots}/{seed}", "CLAP", "features", shots, **run)
        write_run(tmp_path / f"zero-shot/{seed}", 60, trainer="ZeroshotCLIP", seed=seed, few_shot_split={"draws": 1})
    page = read_page(tmp_path)
    assert read_csv(tmp_path)["CLAP"][:3] == ["-", "72.00 ± 6.57", "72.00"]
    assert "\nAll seeds share one draw of shots, not of validation images: no interval. In: CLAP, 16 shots.\n" in page
    (table,) = study.read_studies(tmp_path)
    assert table.table["CLAP"][16].spread == 0
    assert pareto.collect_points(table.table)[0] == 8  # of equally many methods, with an interval


@pytest.mark.parametrize("drawn", [(8, 16), (16,)])
def test_one_draw_counts_for_no_paired_comparison(tmp_path, drawn):
    for n_ctx, share in ((16, 0.9), (4, 0.5)):
        for seed in (1, 2, 3):
            for shots in (8, 16):
                correct = np.random.default_rng([n_ctx, seed, shots]).random(400) < share * (1 if shots == 8 else 0.5)
                record = {"correct": int(correct.sum()), "total": 400, "config": {"TRAINER.COOP.N_CTX": n_ctx}}
                record["few_shot_split"] = {"draws": 1} if shots in drawn else {}
                run = write_run(
                    tmp_path / f"{n_ctx}/{shots}/{seed}", 100 * correct.mean(), seed=seed, shots=shots, **record
                )
                write_predictions(run, correct)
    page = read_page(tmp_path)
    if drawn == (8, 16):
        assert "is more accurate cannot be told: all seeds share one draw of shots." in page
    else:
        both = study.read_studies(tmp_path)[0].table
        gap = both["CoOp (Efficient)"][8].mean - both["CoOp (Standard)"][8].mean  # of 8 shots alone
        assert f"is lower than that of CoOp (Standard): {gap:+.2f} ± " in page
