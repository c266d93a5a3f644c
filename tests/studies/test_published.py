"""Published figures beside those of a table: tools/results_table.py --published."""

import csv

import pytest

from studies.tables.published import SIZES, read_figures
from tests.common import REPOSITORY, SHARED, needs_shared
from tests.studies.records import read_csv, write_run
from tools.results_table import main

FILE = REPOSITORY / "docs/published.csv"
PETS = {"dataset": "OxfordPets", "classnames": [f"breed {number}" for number in range(37)], "total": 3669}
RN50 = {"weights": {"backbone": "RN50", "file": "", "sha256": "a"}}


def write_pets(folder, accuracy=86.0, trainer="TipAdapterF", shots=4, **record):
    """Write a run on all of OxfordPets with OpenAI's RN50."""
    return write_run(folder, accuracy, trainer=trainer, shots=shots, **{**PETS, **RN50, **record})


def compare(folder, *options) -> list[dict[str, str]]:
    """Return the rows of published.csv that the tool writes for a folder; [] if it writes none."""
    assert main([str(folder), "--published", *options]) == 0
    path = folder / "published.csv"
    page = (folder / "results.md").read_text(encoding="utf-8")
    assert ("## Published beside measured" in page) == path.is_file()
    return [*csv.DictReader(path.open(encoding="utf-8"))] if path.is_file() else []


def test_every_source_of_a_figure_stands_beside_the_measured_one(tmp_path):
    (tmp_path / "file.csv").write_text(
        "method,backbone,dataset,protocol,shots,accuracy,std,seeds,trainable_parameters,source\n"
        "Tip-Adapter-F,RN50,OxfordPets,few-shot,4,87.01,0.5,3,,one\n"
        "Tip-Adapter-F,RN50,OxfordPets,few-shot,4,85.5,,,,another\n"
        "Tip-Adapter-F,RN50,OxfordPets,base,4,99,,,,base classes\n"
        "Tip-Adapter-F,,OxfordPets,few-shot,4,98,,,,no backbone\n"
        "CLIP,RN50,OxfordPets,zero-shot,0,85.77,,,,one\n"
        "CoOp,RN50,OxfordPets,few-shot,16,87.01,,,,one\n",
        encoding="utf-8",
    )
    for seed, accuracy in ((1, 86), (2, 87)):
        write_pets(tmp_path / f"study/{seed}", accuracy, seed=seed)
    write_pets(tmp_path / "study/zero", 85, trainer="ZeroshotCLIP", shots=0)
    write_pets(tmp_path / "study/coop", 88, trainer="CoOp", shots=16)
    write_pets(tmp_path / "study/coop4", 88, trainer="CoOp", shots=16, config={"TRAINER.COOP.N_CTX": 4})
    rows = compare(tmp_path / "study", str(tmp_path / "file.csv"))
    keys = ("method", "shots", "published", "ours", "difference", "std", "seeds", "source")
    assert [[row[key] for key in keys] for row in rows] == [
        ["Zero-shot CLIP", "0", "85.77", "85.00", "-0.77", "", "", "one"],
        ["Tip-Adapter-F", "4", "87.01", "86.50 ± 6.35", "-0.51", "0.5", "3", "one"],
        ["Tip-Adapter-F", "4", "85.50", "86.50 ± 6.35", "+1.00", "", "", "another"],
        ["CoOp (Standard)", "16", "87.01", "88.00", "+0.99", "", "", "one"],
    ]
    assert {(row["backbone"], row["data set"]) for row in rows} == {("RN50", "OxfordPets")}


def test_the_default_is_the_file_in_the_docs(tmp_path):
    write_pets(tmp_path / "run")
    assert [row["source"] for row in compare(tmp_path)] == ["yangyangyang127/APE:APE_results.ipynb"]
    (tmp_path / "published.csv").unlink()
    assert main([str(tmp_path)]) == 0
    assert "Published" not in (tmp_path / "results.md").read_text(encoding="utf-8")
    assert read_csv(tmp_path)["Tip-Adapter-F"][0] == "86.00"


@pytest.mark.parametrize(
    "entries",
    [
        {"weights": {"backbone": "RN50", "file": "mine.pt", "sha256": "a"}},
        {"weights": {"backbone": "open_clip:RN50", "file": "", "sha256": "a"}},
        {"weights": None},
        {"classnames": PETS["classnames"][:24]},
        {"total": 3000},
        {"dataset": "ImageNet"},
        {"shots": 3},
        {"trainer": "MyAdapter"},
        {"config": {"PROTOCOL": "none"}},
        {"few_shot_split": {"changed_labels": 5}},
    ],
    ids=" ".join,
)
def test_what_does_not_compare_has_no_published_figure(tmp_path, entries):
    write_pets(tmp_path / "run", **entries)
    assert compare(tmp_path) == []


def test_a_cell_that_is_marked_has_no_published_figure(tmp_path):
    for shots in (1, 2):
        write_pets(tmp_path / f"run{shots}", shots=shots)
    write_pets(tmp_path / "run4", shots=4, classnames=[f"cat {number}" for number in range(37)])
    assert [row["shots"] for row in compare(tmp_path)] == ["1", "2"]


@pytest.mark.parametrize("content", ["a,b\n1,2\n", FILE.read_text(encoding="utf-8").replace("89.21", "x", 1)])
def test_a_file_that_holds_no_figures_is_an_error_with_its_path(tmp_path, capsys, content):
    write_pets(tmp_path / "run")
    (tmp_path / "file.csv").write_text(content, encoding="utf-8")
    assert main([str(tmp_path), "--published", str(tmp_path / "file.csv")]) == 2
    assert f"{tmp_path / 'file.csv'} is no file of published figures" in capsys.readouterr().err
    assert main([str(tmp_path), "--published", str(tmp_path / "none.csv")]) == 2


def test_the_sizes_of_the_data_sets_are_those_of_the_published_figures():
    """A mean over three seeds of shares of n test images, times 3 n, is a whole number; GDA's have four decimals."""
    checked = set()
    for (method, _, dataset, _), rows in read_figures(FILE).items():
        for row in rows if method == "GDA" and dataset in SIZES else ():
            correct = 3 * SIZES[dataset][1] * float(row["accuracy"]) / 100
            assert abs(correct - round(correct)) <= 3 * SIZES[dataset][1] / 100 * 0.6e-4, (dataset, row)
            checked.add(dataset)
    assert checked == set(SIZES)


@needs_shared
def test_the_file_in_the_docs_is_that_of_the_references():
    assert FILE.read_bytes() == (SHARED / "reference/published.csv").read_bytes()
