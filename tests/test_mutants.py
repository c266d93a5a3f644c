"""The list of slips fits the code, and ``python -m tests.mutants`` reports which slips the tests notice."""

import ast
import re
import sys

import pytest
import yaml

from tests.common import REPOSITORY
from tests.mutants import __main__ as mutants

SLIPS = mutants.read_slips()


def test_no_slip_is_listed_twice():
    assert len({slip.slip for slip in SLIPS}) == len({(s.file, s.old, s.new) for s in SLIPS}) == len(SLIPS) > 70


@pytest.mark.parametrize("slip", SLIPS, ids=lambda slip: slip.slip)
def test_a_slip_changes_the_code_and_its_tests_exist(slip):
    text = (REPOSITORY / slip.file).read_text(encoding="utf-8")
    assert text.count(slip.old) == 1
    if slip.file.endswith(".py"):
        ast.parse(text.replace(slip.old, slip.new))
    for test in slip.tests.split():
        file, _, name = test.partition("::")
        assert (f"def {name}(" if name else "") in (REPOSITORY / file).read_text(encoding="utf-8")


def test_noticed_slips_are_distinguished_from_unnoticed_ones(tmp_path, capsys, monkeypatch):
    """A mock of pytest fails if the code contains 50."""
    (tmp_path / "pytest.py").write_text(
        "from pathlib import Path\n"
        "if '50.0 / len' in Path('dassl/metrics/__init__.py').read_text():\n"
        "    print('FAILED tests/test_a.py::test_b[1] - AssertionError')\n"
        "    raise SystemExit(1)\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(mutants, "PYTEST", (sys.executable, str(tmp_path / "pytest.py")))
    common = {"file": "dassl/metrics/__init__.py", "old": "100.0 / len(target)", "tests": "tests/test_a.py"}
    slips = [{"slip": f"{percent} %", "new": f"{percent}.0 / len(target)", **common} for percent in (50, 60)]
    (tmp_path / "slips.yaml").write_text(yaml.safe_dump(slips), encoding="utf-8")
    assert mutants.main(["--slips", str(tmp_path / "slips.yaml"), "--jobs", "1"]) == 1
    lines = re.sub(r", \d+ s:", ":", capsys.readouterr().out).splitlines()
    assert lines == ["noticed by tests/test_a.py::test_b[1]: 50 %", "NOT NOTICED: 60 %", "1 of 2 slips noticed"]
    assert "100.0 / len(target)" in (REPOSITORY / "dassl/metrics/__init__.py").read_text(encoding="utf-8")
