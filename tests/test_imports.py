"""Imports run one way, commands -> training -> runtime -> agent, envs -> config, errors, and make no circle."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pixel_ddpg"
BELOW = {  # the parts of the package that each part may import, beside itself; none names a later one, so no circle
    "errors": set(),
    "container": set(),
    "files": {"errors"},
    "config": {"errors"},
    "command": {"errors", "config"},
    "agent": {"config"},
    "envs": {"errors", "container", "files", "config"},
    "presets": {"errors", "config", "envs"},
    "gym": {"errors", "config", "envs", "presets"},
    "planning": {"errors", "container", "envs"},
    "runtime": {"errors", "container", "config", "agent", "envs"},
    "training": {"errors", "files", "config", "agent", "envs", "runtime"},
}


def imported(path: Path) -> set[str]:
    """The parts of pixel_ddpg that a file imports, at its top or inside a function."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "pixel_ddpg":
            parts.update(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pixel_ddpg."):
            parts.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            parts.update(name.name.split(".")[1] for name in node.names if name.name.startswith("pixel_ddpg."))
    return parts


@pytest.mark.parametrize("part", BELOW)
def test_a_part_imports_only_what_lies_below_it(part):
    files = [PACKAGE / f"{part}.py"] if (PACKAGE / f"{part}.py").exists() else sorted((PACKAGE / part).rglob("*.py"))
    assert files
    for path in files:
        assert imported(path) - {part, "__version__"} <= BELOW[part], path.relative_to(PACKAGE)


def test_no_part_may_import_a_later_one():
    parts = list(BELOW)
    for number, part in enumerate(parts):
        assert BELOW[part] <= set(parts[:number]), part


def test_the_package_never_imports_the_experiments():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] != "experiments", path
            elif isinstance(node, ast.Import):
                assert all(name.name.split(".")[0] != "experiments" for name in node.names), path
