"""Rules of the repository: imports between packages, and requirements. (.ci/run checks style, wheel and links.)"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dassl import __version__
from tests.common import REPOSITORY

# Packages from the lowest layer to the highest; a package imports only itself and packages of lower layers.
LAYERS = ("dassl", "vlm datasets", "trainers", "train predict inference", "studies", "tools", "benchmarks")
LAYER_NUMBERS = {name: number for number, layer in enumerate(LAYERS) for name in layer.split()}
PACKAGES = [name for name in LAYER_NUMBERS if (REPOSITORY / name).is_dir()]


def list_sources(package: str) -> list[Path]:
    """Return the Python files of a package."""
    return sorted((REPOSITORY / package).rglob("*.py"))


def list_imports(path: Path) -> set[str]:
    """Return the dotted names of all modules that a file imports absolutely, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_from_lower_layers(package):
    assert list_sources(package)
    for path in list_sources(package):
        used = {name.partition(".")[0] for name in list_imports(path)} & {*LAYER_NUMBERS}
        assert all(name == package or LAYER_NUMBERS[name] < LAYER_NUMBERS[package] for name in used), path


def test_vlm_does_not_mention_ray_and_dassl_does_not_mention_clip():
    for path in list_sources("vlm"):
        assert not re.search(r"\bray\b", path.read_text(encoding="utf-8"), re.IGNORECASE), path
    for path in list_sources("dassl"):
        if path.name not in ("defaults.py", "transforms.py", "env.py"):
            assert not re.search(r"clip\b(?!ping)", path.read_text(encoding="utf-8"), re.IGNORECASE), path


def test_requirements_txt_and_pyproject_list_the_same_dependencies():
    listed = [
        line.partition("#")[0].strip()
        for line in (REPOSITORY / "requirements.txt").read_text(encoding="utf-8").splitlines()
    ]
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[\n(.*?)^\]", project, re.MULTILINE | re.DOTALL)[1]
    assert [line for line in listed if line] == re.findall(r'^    "([^"]+)"', block, re.MULTILINE)


def test_every_imported_package_is_required():
    files = [REPOSITORY / name for name in ("requirements.txt", "requirements-dev.txt")]  # the second has the extras
    required = [
        name for file in files for name in re.findall(r"^[\w-]+", file.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    # Dependencies of yacs, open_clip_torch, scikit-learn and pylance.
    required += ["yaml", "huggingface_hub", "threadpoolctl", "pyarrow"]
    distributions = {"PIL": "pillow", "sklearn": "scikit-learn", "open_clip": "open_clip_torch", "lance": "pylance"}
    for package in PACKAGES:
        for path in list_sources(package):
            names = {name.partition(".")[0] for name in list_imports(path)}
            names -= {*LAYER_NUMBERS, *sys.stdlib_module_names, "tests"}  # the last: plain versions, for benchmarks
            assert all(distributions.get(name, name) in required for name in names), (path, names)


def test_requirements_dev_txt_has_every_optional_dependency():
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^\[project.optional-dependencies\]\n(.*?)\n\n", project, re.MULTILINE | re.DOTALL)[1]
    listed = (REPOSITORY / "requirements-dev.txt").read_text(encoding="utf-8").splitlines()
    assert set(re.findall(r'"([^"]+)"', block)) <= set(listed)


def test_both_readmes_show_the_same_figures():
    tables = [
        re.findall(r"^\|.*\|$", (REPOSITORY / name).read_text(encoding="utf-8"), re.MULTILINE)
        for name in ("README.md", "README.zh-CN.md")
    ]
    figures = [re.findall(r"\d+\.\d+", "\n".join(table)) for table in tables]
    assert figures[0]
    assert figures[0] == figures[1]


def test_the_citation_and_the_changelog_are_of_this_version():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # what the format requires
    assert citation["version"] == __version__
    names = [reference["notes"] for reference in citation["references"][:4]]
    assert names == ["CoOp", "CoCoOp", "CLIP", "Dassl"]
    for reference in citation["references"]:
        assert {"type", "title", "authors", "url"} <= reference.keys()
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(.*)\] - \d{4}-\d\d-\d\d$", changelog, re.MULTILINE)[0] == __version__


@pytest.mark.skipif(not (REPOSITORY / ".git").exists(), reason="needs a git checkout")
@pytest.mark.parametrize("name", ["scripts/quickstart.sh", "scripts/slurm/sweep.sbatch", ".ci/run", "train.py"])
def test_windows_checks_scripts_out_with_the_line_ends_that_bash_takes(name):
    command = ["git", "check-attr", "eol", name]
    attribute = subprocess.run(command, cwd=REPOSITORY, capture_output=True, encoding="utf-8", check=True).stdout
    assert attribute == f"{name}: eol: lf\n"
