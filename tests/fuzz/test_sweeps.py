"""Sweeps: every combination is one trial with its folder below the sweep's output, or the sweep is refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from studies.grid import build_trials, read_sweep
from studies.schedule import group_into_stages
from tests.fuzz.cases import Refusal, outcome, texts

axes = st.sampled_from(["seed", "SEED", "OPTIM.LR", "x", "output", "{", "a b"])
values = st.one_of(
    st.integers(0, 9), st.floats(), st.booleans(), st.none(), texts, st.dictionaries(texts, texts, max_size=1)
)
grids = st.dictionaries(axes, st.lists(values, max_size=4), max_size=3)
folders = st.one_of(st.lists(axes.map("{{{}}}".format), max_size=3).map("/".join), texts)


@given(st.lists(st.tuples(folders, texts, grids), max_size=3), st.lists(st.sampled_from(["1", "2"]), max_size=2))
@example([("{seed}", "", {"seed": []})], [])
@example([("{x}", "", {"x": ["../../elsewhere"]})], [])
@example([("/elsewhere", "", {})], [])
@example([("{x}", "", {name: list(range(1000)) for name in "abcdefgh"})], [])
@example([("a{x}", "--root {x}", {"x": ["a b", "{y}", "'"]})], [])
def test_every_combination_is_one_trial_with_its_folder(tmp_path_factory, runs, seeds):
    path = tmp_path_factory.getbasetemp() / "sweep.yaml"
    entries = [{"folder": folder, "arguments": arguments, "grid": grid} for folder, arguments, grid in runs]
    path.write_text(yaml.safe_dump({"output": "out", "runs": entries}))
    sweep = outcome(read_sweep, path, naming=path)
    if isinstance(sweep, Refusal):
        return
    trials = outcome(build_trials, sweep, "", "", seeds, [])
    if isinstance(trials, Refusal):
        return
    replaced = [
        {axis: seeds if seeds and axis in ("seed", "SEED") else values for axis, values in grid.items()}
        for *_, grid in runs
    ]
    assert len(trials) == sum(math.prod(map(len, grid.values())) for grid in replaced)
    assert len({trial.folder for trial in trials}) == len(trials)
    for trial in trials:
        assert (Path.cwd() / trial.folder).resolve().is_relative_to(Path.cwd() / "out")
        assert trial.command[:2] == ("--output-dir", str(trial.folder))
    stages = outcome(group_into_stages, trials)
    assert isinstance(stages, Refusal) or sum(map(len, stages)) == len(trials)


@pytest.mark.parametrize("keys", ["output: a\nthreads: -1", f"output: a\nthreads: {9**20}", "output: 0x" + "f" * 6000])
def test_an_invalid_number_of_threads_or_output_is_refused(tmp_path, keys):
    path = tmp_path / "sweep.yaml"
    path.write_text(f"{keys}\nruns: [{{folder: a}}]")
    assert isinstance(outcome(read_sweep, path, naming=path), Refusal)
