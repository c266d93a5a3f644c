"""The repository keeps its own rules: who imports whom, what is installed. (.ci/run checks style, wheel and links.)"""

import ast
import re
import sys
from pathlib import Path

import pytest

from tests.common import REPOSITORY

LAYERS = ("dassl", "vlm datasets", "trainers", "train predict inference", "studies", "tools", "benchmarks")
LAYER_OF = {name: number for number, layer in enumerate(LAYERS) for name in layer.split()}
PACKAGES = [name for name in LAYER_OF if (REPOSITORY / name).is_dir()]


def sources(package: str) -> list[Path]:
    return sorted((REPOSITORY / package).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Absolute imports of a file, wherever in it they stand."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_run_one_way(package):
    assert sources(package)
    for path in sources(package):
        used = {name.partition(".")[0] for name in imported(path)} & {*LAYER_OF}
        assert all(name == package or LAYER_OF[name] < LAYER_OF[package] for name in used), path


def test_lower_layers_do_not_know_upper_ones():
    for path in sources("vlm"):
        assert not re.search(r"\bray\b", path.read_text(), re.IGNORECASE), path
    for path in sources("dassl"):
        if path.name not in ("defaults.py", "transforms.py", "env.py"):
            assert not re.search(r"clip\b(?!ping)", path.read_text(), re.IGNORECASE), path


def test_requirements_agree():
    listed = [line.partition("#")[0].strip() for line in (REPOSITORY / "requirements.txt").read_text().splitlines()]
    project = (REPOSITORY / "pyproject.toml").read_text()
    block = re.search(r"^dependencies = \[\n(.*?)^\]", project, re.MULTILINE | re.DOTALL)[1]
    assert [line for line in listed if line] == re.findall(r'^    "([^"]+)"', block, re.MULTILINE)


def test_what_is_imported_is_required():
    files = [REPOSITORY / name for name in ("requirements.txt", "requirements-dev.txt")]  # the latter for the extras
    required = [name for file in files for name in re.findall(r"^[\w-]+", file.read_text(), re.MULTILINE)]
    required += [
        "yaml",
        "huggingface_hub",
        "threadpoolctl",
        "pyarrow",
    ]  # with yacs, open_clip_torch, scikit-learn, pylance
    package_of = {"PIL": "pillow", "sklearn": "scikit-learn", "open_clip": "open_clip_torch", "lance": "pylance"}
    for package in PACKAGES:
        for path in sources(package):
            names = {name.partition(".")[0] for name in imported(path)} - {*LAYER_OF, *sys.stdlib_module_names}
            assert all(package_of.get(name, name) in required for name in names), (path, names)


def test_the_extras_are_tested():
    """What the project lists as optional, the tests' environment has."""
    project = (REPOSITORY / "pyproject.toml").read_text()
    block = re.search(r"^\[project.optional-dependencies\]\n(.*?)\n\n", project, re.MULTILINE | re.DOTALL)[1]
    listed = (REPOSITORY / "requirements-dev.txt").read_text().splitlines()
    assert set(re.findall(r'"([^"]+)"', block)) <= set(listed)


def test_the_readmes_show_the_same_figures():
    tables = [
        re.findall(r"^\|.*\|$", (REPOSITORY / name).read_text(encoding="utf-8"), re.MULTILINE)
        for name in ("README.md", "README.zh-CN.md")
    ]
    figures = [re.findall(r"\d+\.\d+", "\n".join(table)) for table in tables]
    assert figures[0]
    assert figures[0] == figures[1]
