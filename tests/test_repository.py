"""The repository keeps its own rules: who imports whom, what is installed, what the README promises."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.common import REPOSITORY

OURS = {"dassl", "vlm", "trainers", "datasets", "tools", "commands", "train", "predict", "tests", "benchmarks"}
ALLOWED = {  # who may import whom, beside itself
    "dassl": set(),
    "vlm": {"dassl"},
    "datasets": {"dassl"},
    "trainers": {"dassl", "vlm"},
}


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


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_run_one_way(package):
    assert sources(package)
    for path in sources(package):
        used = {name.partition(".")[0] for name in imported(path)} & OURS
        assert used <= ALLOWED[package] | {package}, path


def test_of_dassl_the_vlm_imports_utils_and_processes_alone():
    for path in sources("vlm"):
        names = [name for name in imported(path) if name.partition(".")[0] == "dassl"]
        assert all(name.startswith(("dassl.utils", "dassl.distributed")) for name in names), path


def test_the_layers_do_not_speak_of_what_is_above_them():
    for path in sources("dassl"):
        assert not re.search(r"clip\b(?!ping)", path.read_text(), re.IGNORECASE) or path.name in (
            "defaults.py",
            "transforms.py",
            "env.py",
        ), path
    for path in sources("datasets"):
        assert "CLIP" not in path.read_text(), path


def test_style():
    for command in (["check"], ["format", "--check"]):
        subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=REPOSITORY, check=True)


def test_requirements_agree():
    listed = [line.partition("#")[0].strip() for line in (REPOSITORY / "requirements.txt").read_text().splitlines()]
    project = (REPOSITORY / "pyproject.toml").read_text()
    block = re.search(r"^dependencies = \[\n(.*?)^\]", project, re.MULTILINE | re.DOTALL)[1]
    assert [line for line in listed if line] == re.findall(r'^    "([^"]+)"', block, re.MULTILINE)


def test_what_is_imported_is_required():
    files = [REPOSITORY / name for name in ("requirements.txt", "requirements-dev.txt")]  # the latter for the extras
    required = [name for file in files for name in re.findall(r"^[\w-]+", file.read_text(), re.MULTILINE)]
    required += ["yaml", "huggingface_hub", "threadpoolctl"]  # with yacs, open_clip_torch, scikit-learn
    package_of = {"PIL": "pillow", "sklearn": "scikit-learn", "open_clip": "open_clip_torch"}
    for package in (*ALLOWED, "tools", "commands"):
        for path in sources(package):
            for name in {name.partition(".")[0] for name in imported(path)} - OURS - set(sys.stdlib_module_names):
                assert package_of.get(name, name) in required, f"{path} imports {name}"


def test_the_extras_are_tested():
    """What the project lists as optional, the tests' environment has."""
    project = (REPOSITORY / "pyproject.toml").read_text()
    block = re.search(r"^\[project.optional-dependencies\]\n(.*?)\n\n", project, re.MULTILINE | re.DOTALL)[1]
    listed = (REPOSITORY / "requirements-dev.txt").read_text().splitlines()
    assert set(re.findall(r'"([^"]+)"', block)) <= set(listed)


def test_a_wheel_holds_dassl_and_vlm_and_shadows_nothing(tmp_path):
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        ".",
    ]
    source = tmp_path / "source"
    files = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for name in files.splitlines():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((REPOSITORY / name).read_bytes())
    subprocess.run(command, cwd=source, check=True)
    import zipfile

    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"dassl", "vlm"}
    assert "vlm/tiny/tiny.safetensors" in names


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_what_a_readme_names_exists(readme):
    text = (REPOSITORY / readme).read_text(encoding="utf-8")
    paths = set(re.findall(r"(?:scripts|tools|configs|docs|vlm|trainers|datasets|dassl)/[\w./-]*\w", text))
    assert {"scripts/quickstart.sh", "scripts/test.sh"} <= paths
    for path in paths:
        assert (REPOSITORY / path).exists(), path


def test_the_readmes_show_the_same_figures():
    tables = [
        re.findall(r"^\|.*\|$", (REPOSITORY / name).read_text(encoding="utf-8"), re.MULTILINE)
        for name in ("README.md", "README.zh-CN.md")
    ]
    figures = [re.findall(r"\d+\.\d+", "\n".join(table)) for table in tables]
    assert figures[0]
    assert figures[0] == figures[1]
