"""The list of slips fits the code, and its program tells what is noticed from what is not."""

import ast

import pytest
import yaml

from tests.common import REPOSITORY
from tests.mutants.__main__ import main, read_slips

SLIPS = read_slips()


def test_no_slip_is_there_twice():
    assert len({slip.slip for slip in SLIPS}) == len({(s.file, s.old, s.new) for s in SLIPS}) == len(SLIPS) > 70


@pytest.mark.parametrize("slip", SLIPS, ids=lambda slip: slip.slip)
def test_a_slip_fits_the_code_and_its_tests_are_there(slip):
    text = (REPOSITORY / slip.file).read_text()
    assert text.count(slip.old) == 1
    ast.parse(text.replace(slip.old, slip.new))
    for test in slip.tests.split():
        file, _, name = test.partition("::")
        assert (REPOSITORY / file).exists()
        assert f"def {name}" in (REPOSITORY / file).read_text() if name else True


def test_what_is_noticed_and_what_is_not(tmp_path, capsys):
    test = "tests/dassl/test_evaluator.py::test_accuracy_among_the_first_k"
    common = {"file": "dassl/metrics/__init__.py", "tests": test}
    slips = [
        {"slip": "half of it", "old": "100.0 / len(target)", "new": "50.0 / len(target)", **common},
        {"slip": "the same", "old": "100.0 / len(target)", "new": "1e2 / len(target)", **common},
    ]
    path = tmp_path / "slips.yaml"
    path.write_text(yaml.safe_dump(slips))
    assert main(["--slips", str(path), "--jobs", "2"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"noticed by {test}, ")
    assert lines[1].startswith("NOT NOTICED, ")
    assert lines[2] == "1 of 2 slips noticed"
