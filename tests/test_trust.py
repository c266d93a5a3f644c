"""docs/trust.md names a test for each error that looked like a result: each is there."""

import re

from tests.common import REPOSITORY


def test_each_row_of_the_page_names_tests_that_are_there():
    page = (REPOSITORY / "docs/trust.md").read_text(encoding="utf-8")
    heading, rows = "## Errors that looked like results", re.compile(r"^\| (?!case |:--)(.*) \|$", re.MULTILINE)
    named = [re.findall(r"`(test_\w+)`", row) for row in rows.findall(page[page.index(heading) :])]
    files = [path.read_text(encoding="utf-8") for path in (REPOSITORY / "tests").rglob("test_*.py")]
    defined = set(re.findall(r"^ *def (test_\w+)", "\n".join(files), re.MULTILINE))
    assert len(named) > 50
    assert [names for names in named if not names or not defined.issuperset(names)] == []
