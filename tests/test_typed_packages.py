"""Packages say that they are typed where their types are checked, and nowhere else."""

import tomllib

from benchmarks.serving import ROOT


def test_what_is_typed_is_checked():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    typed = {package for package in packages if (ROOT / package / "py.typed").exists()}
    assert typed == set(packages) & set(project["tool"]["mypy"]["files"])
    assert "/mypy" in (ROOT / "Makefile").read_text()
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    assert all(f"`{package}`" in contributing for package in typed)
