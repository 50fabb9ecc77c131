# Licensed under a 3-clause BSD style license - see LICENSE
"""The files around the package say the same things."""

import configparser
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def project():
    """Read the project table of pyproject.toml."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]


def tox_section(name):
    """Read a section of tox.ini."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "tox.ini", encoding="utf-8")
    return parser[name]


def test_oldest_dependencies_are_the_floors(project):
    """The factor "oldestdeps" installs what pyproject.toml calls sufficient."""
    floors = {}
    for line in project["dependencies"]:
        requirement = Requirement(line)
        (specifier,) = requirement.specifier
        assert specifier.operator == ">=", line
        floors[requirement.name] = specifier.version
    pins = dict(
        re.fullmatch(r"oldestdeps: (\S+)==(\S+)", line).groups()
        for line in tox_section("testenv")["deps"].splitlines()
        if line.startswith("oldestdeps:") and "==" in line
    )
    assert pins == floors


def test_extra_all_names_every_extra_for_users(project):
    """``pip install astrovae[all]`` leaves nothing out."""
    extras = project["optional-dependencies"]
    (requirement,) = map(Requirement, extras["all"])
    assert requirement.extras == set(extras) - {"all", "docs", "test"}


def test_parts_are_the_whole():
    """Each test runs in one of the parts, and the paths of all are there."""
    parts = [
        (ROOT / path).resolve()
        for paths in tox_section("tests").values()
        for path in paths.replace("\\", " ").split()
    ]
    assert [path for path in parts if not path.exists()] == []
    for file in (ROOT / "tests").rglob("test_*.py"):
        assert sum(part in (file, *file.parents) for part in parts) == 1, file


def test_ruff_is_the_same_everywhere():
    """Tox and pre-commit format with the same version."""
    tox = re.search(r"ruff==(\S+)", tox_section("testenv:codestyle")["deps"])
    text = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    hook = re.search(r"ruff-pre-commit\n\s+rev: v(\S+)", text)
    assert hook.group(1) == tox.group(1)
