"""Imports point down only, and nothing grows too long: every module is read, none is run."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "grpo_jax").rglob("*.py"))}

FLOORS = {
    "types": 0,
    "settings": 0,
    "errors": 0,
    "lazy": 0,
    "core": 1,
    "mesh": 1,
    "rewards": 1,
    "data": 2,
    "models": 3,
    "rollout": 4,
    "learn": 5,
    "run": 6,
    "config": 7,
    "cli": 8,
}
"""Where a part stands; a module imports from its own part and from lower floors. `testing` stands outside."""

FUNCTION, FILE = 60, 400
"""Lines at most, of a function without its docstring and of a file."""


def part_of(file):
    """types, core, ...; None for `grpo_jax/__init__.py`, which only names what the parts export."""
    below = Path(file).with_suffix("").parts[1:]
    return None if below == ("__init__",) else below[0]


def imports(source):
    """The modules that a source imports anywhere, absolute and as fully named as the statement says."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def misplaced(file, source):
    """The imports of a file that do not point down."""
    own = part_of(file)
    for name in imports(source):
        package, _, rest = name.partition(".")
        if package != "grpo_jax" or own == "testing":
            continue
        other = rest.split(".")[0]
        if other not in FLOORS or (other != own and own is not None and FLOORS[other] >= FLOORS[own]):
            yield name


def body_lines(function):
    """Lines of a function, decorators and docstring left out."""
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is not None:
        lines -= first.end_lineno - first.lineno + 1
    return lines


def test_every_part_has_a_floor():
    parts = {part_of(file) for file in FILES}
    assert parts == {None, "testing", *FLOORS}


@pytest.mark.parametrize("file", FILES)
def test_imports_point_down(file):
    assert list(misplaced(file, FILES[file].read_text())) == []


@pytest.mark.parametrize("file", FILES)
def test_a_file_stays_short(file):
    assert len(FILES[file].read_text().splitlines()) <= FILE


@pytest.mark.parametrize("file", FILES)
def test_functions_stay_short(file):
    functions = [n for n in ast.walk(ast.parse(FILES[file].read_text())) if isinstance(n, ast.FunctionDef)]
    assert {f.name: body_lines(f) for f in functions if body_lines(f) > FUNCTION} == {}


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("grpo_jax/core/kl.py", "from grpo_jax.models import head", ["grpo_jax.models.head"]),
        ("grpo_jax/core/kl.py", "def f():\n    import grpo_jax.learn.step", ["grpo_jax.learn.step"]),
        ("grpo_jax/core/kl.py", "from grpo_jax.mesh import spec", ["grpo_jax.mesh.spec"]),
        ("grpo_jax/core/kl.py", "from grpo_jax import rollout", ["grpo_jax.rollout"]),
        (
            "grpo_jax/cli/main.py",
            "from grpo_jax.testing.tiny import tiny_config",
            ["grpo_jax.testing.tiny.tiny_config"],
        ),
        ("grpo_jax/types.py", "from grpo_jax.types import X\nimport jax", []),
        ("grpo_jax/learn/step.py", "from grpo_jax.core import k3\nfrom grpo_jax.learn.state import S", []),
        ("grpo_jax/testing/tiny.py", "from grpo_jax.cli.main import main", []),
    ],
)
def test_an_import_that_points_up_is_found(file, source, expected):
    assert list(misplaced(file, source)) == expected


def test_a_docstring_is_no_line_of_its_function():
    (function,) = ast.parse('@decorated\ndef f(\n    x,\n):\n    """One.\n\n    Two.\n    """\n    return x\n').body
    assert body_lines(function) == 4
