"""What an installation holds, and that it is found from any folder."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from hatchling.build import build_editable, build_sdist, build_wheel

REPOSITORY = Path(__file__).parents[1]


def run(program: str, folder: Path, site: Path) -> str:
    """What a program prints that is started in a folder; it sees these packages, and after them what detkit needs."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    needed = f"sys.path.append({sysconfig.get_path('purelib')!r})"  # without its .pth files: detkit may be one
    command = [sys.executable, "-S", "-c", f"import site, sys; site.addsitedir({str(site)!r}); {needed}; {program}"]
    return subprocess.run(command, cwd=folder, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of packages; hatchling builds from the repository."""
    monkeypatch.chdir(REPOSITORY)
    return tmp_path / "site"


def test_a_wheel_holds_the_configs_the_templates_and_the_types(site: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / build_wheel(str(tmp_path))) as wheel:
        wheel.extractall(site)
    tops = {path.name.partition("-")[0] for path in site.iterdir()}
    assert tops == {"detkit"}
    for folder, packed in (("configs", "detkit/configs"), ("detkit", "detkit")):
        files = [path.relative_to(REPOSITORY / folder) for path in (REPOSITORY / folder).rglob("*") if path.is_file()]
        wanted = [path for path in files if "__pycache__" not in path.parts]
        assert len(wanted) > 10 and all((site / packed / path).is_file() for path in wanted)
    program = "from detkit.config_files import find_config; path = find_config('shapes/faster_rcnn'); print(path)"
    found = Path(run(program, tmp_path, site))
    assert found == site / "detkit/configs/shapes/faster_rcnn.yaml"
    assert found.read_text() == (REPOSITORY / "configs/shapes/faster_rcnn.yaml").read_text()


def test_a_source_distribution_holds_no_pictures_and_no_notebooks(site: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / build_sdist(str(tmp_path))) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert "detkit/__init__.py" in names and "README.md" in names
    assert [name for name in names if name.endswith((".jpg", ".png", ".ipynb"))] == []


def test_an_editable_install_is_found_beside_a_folder_called_detkit(site: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / build_editable(str(tmp_path))) as wheel:
        wheel.extractall(site)
    above = tmp_path / "above"
    (above / "detkit" / "detkit").mkdir(parents=True)  # as a clone looks from the folder above it
    assert run("import detkit; print(detkit.__file__)", above, site) == str(REPOSITORY / "detkit" / "__init__.py")


def test_what_is_imported_is_declared_and_what_is_declared_is_needed() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[^\w.-]", line)[0].lower() for line in project["dependencies"]}
    imported: set[str] = set()
    for path in (REPOSITORY / "detkit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    providers = packages_distributions()
    asked_for = {"pandas", "supervision"}  # by a method of their name, which tells where they are missing
    imported -= sys.stdlib_module_names | asked_for | {"detkit"}
    names = [{each.lower() for each in providers[name]} for name in imported]
    optional = [line for name, lines in project["optional-dependencies"].items() if name != "dev" for line in lines]
    extras = {re.split(r"[^\w.-]", line)[0].lower() for line in optional}
    assert [each for each in names if not each & (declared | extras)] == []
    # tensorboard is Lightning's logger; pycocotools reads outlines.
    assert declared - set().union(*names) <= {"tensorboard", "pycocotools"}


def test_every_dependency_has_a_lowest_version() -> None:
    """`make test-lowest` tests these; without one it would install the first version that was ever released."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lines = sum(project["optional-dependencies"].values(), project["dependencies"])
    lines.remove("detkit[export]")  # what that extra asks for, asked for by another one
    assert [line for line in lines if ">=" not in line and "==" not in line] == []
