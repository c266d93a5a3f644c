"""The notebook docs/your_photos.ipynb, run from top to bottom as it is, with the tiny CLIP."""

from __future__ import annotations

import json
import shutil

import pytest

from dassl.utils import read_json
from tests.common import REPOSITORY

NOTEBOOK = REPOSITORY / "docs/your_photos.ipynb"
PARTS = ("configs", "dassl", "datasets", "inference", "studies", "tools", "trainers", "vlm")


def read_cells(kind: str) -> list[dict]:
    """Return the notebook's cells of a kind: code or markdown."""
    return [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


def test_the_notebook_has_no_outputs_and_both_languages():
    for cell in read_cells("code"):
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
    for cell in read_cells("markdown"):
        assert any("\u4e00" <= character <= "\u9fff" for character in "".join(cell["source"]))


def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    """In a copy of the repository, which it may write to."""
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel (requirements-dev.txt)")
    pytest.importorskip("ipykernel", reason="needs nbclient and ipykernel (requirements-dev.txt)")
    import nbformat

    for name in PARTS:
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "predict.py", "requirements.txt"):
        shutil.copy(REPOSITORY / name, tmp_path)
    (tmp_path / "docs").mkdir()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    # Relative to docs/, where Jupyter starts a notebook that is opened there.
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path / "docs")}}
    ).execute()

    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    tables = [o.data["text/markdown"] for o in outputs if "data" in o and "text/markdown" in o.data]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    shots = {number: tmp_path / f"output/my_photos/CoOp/{number}shots/seed1" for number in (1, 4, 16)}
    accuracies = {number: read_json(folder / "result.json")["accuracy"] for number, folder in shots.items()}
    zero_shot = read_json(tmp_path / "output/my_photos/ZeroshotCLIP/result.json")["accuracy"]
    (row,) = [line for line in tables[0].splitlines() if line.startswith("| CoOp")]
    assert all(f" {accuracy:.2f} |" in row for accuracy in accuracies.values())
    assert accuracies[16] > zero_shot > 50  # chance is 10
    assert "zero: 4" in printed  # the number of stand-ins
    assert "of 201 test photos are wrong" in printed
    assert "nearest words (distance)" in printed
    assert "error" not in printed.lower()
    assert "Traceback" not in printed
    assert sum("image/png" in output.data for output in outputs if "data" in output) == 2
    assert (tmp_path / "output/my_photos/report.html").stat().st_size > 10_000
