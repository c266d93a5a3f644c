"""The sweeps over all methods: their runs, and the configs that they name."""

from collections import Counter
from itertools import pairwise

import pytest

import trainers  # noqa: F401  registers the methods
from dassl.config import merge_file
from dassl.engine import TRAINER_REGISTRY, default_cfg
from studies.grid import build_trials, read_sweep
from tests.common import REPOSITORY

SHOTS = {"1", "2", "4", "8", "16"}
UNTRAINED = {"ZeroshotCLIP", "ZeroshotCLIP2"}
FEATURES = {"TipAdapter", "GDA", "ProKeR", "APE"}
FEATURES |= {"LinearProbe", "TipAdapterF", "CLIPAdapter", "LPPlusPlus", "CLAP", "TaskRes"}
TOWERS = {"CoOp", "CoCoOp", "KgCoOp", "ProGrad", "CLIPLoRA", "MaPLe", "PromptSRC"}


def read_commands(name: str) -> list[dict[str, str]]:
    """Return the flags and keys with their values, and the folder, of each run of a sweep over all methods."""
    trials = build_trials(read_sweep(REPOSITORY / f"configs/sweeps/methods_{name}.yaml"), "", "", [], [])
    return [{**dict(pairwise(trial.command)), "folder": trial.folder.as_posix()} for trial in trials]


NAMES = ("digits", "features", "imagenette", "11")
CONFIGS = {(run["--trainer"], run["--config-file"]) for name in NAMES for run in read_commands(name)}
DATASETS = {run["--dataset-config-file"] for name in NAMES for run in read_commands(name)}


@pytest.mark.parametrize(
    ("name", "runs", "methods", "first_shots_of_gda"),
    [
        ("digits", 269, UNTRAINED | FEATURES | TOWERS, "2"),
        ("features", 148, {"ZeroshotCLIP"} | FEATURES, "2"),
        ("imagenette", 272, UNTRAINED | FEATURES | TOWERS, "1"),
        ("11", 11 * 272, UNTRAINED | FEATURES | TOWERS, "1"),
    ],
)
def test_a_sweep_has_every_method_with_all_shots_and_seeds(name, runs, methods, first_shots_of_gda):
    commands = read_commands(name)
    assert len(commands) == runs
    assert {run["--trainer"] for run in commands} == methods
    counts = Counter(
        (run["--dataset-config-file"], run["--trainer"], run.get("TRAINER.COOP.N_CTX"), run["DATASET.NUM_SHOTS"])
        for run in commands
    )
    for method in methods - UNTRAINED:
        shots = SHOTS - ({"1"} if method == "GDA" and first_shots_of_gda == "2" else set())
        for dataset in {run["--dataset-config-file"] for run in commands}:
            for n_ctx in ("16", "4") if method == "CoOp" else (None,):
                assert {count for count in shots if counts[dataset, method, n_ctx, count] == 3} == shots
    for run in commands:
        shots, place = run["DATASET.NUM_SHOTS"], run["folder"].split("/")
        assert run["--trainer"] in place
        assert run["--trainer"] in UNTRAINED or (f"_{shots}shots" in place[-2] and place[-1] == f"seed{run['--seed']}")


def test_the_eleven_data_sets_are_those_of_the_papers():
    names = (
        "imagenet caltech101 oxford_pets stanford_cars oxford_flowers food101 fgvc_aircraft sun397 dtd eurosat ucf101"
    )
    assert {run["folder"].split("/")[2] for run in read_commands("11")} == {*names.split()}


@pytest.mark.parametrize("path", sorted(DATASETS))
def test_the_config_of_a_data_set_is_there(path):
    assert (REPOSITORY / path).is_file()


@pytest.mark.parametrize(("method", "path"), sorted(CONFIGS))
def test_the_config_of_a_method_loads(method, path):
    assert method in TRAINER_REGISTRY.registered_names()
    merge_file(default_cfg(), REPOSITORY / path)
