"""The order of the house: who may import whom, and that nobody imports in a circle."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "aid_d2"
# Lower floors know nothing of higher ones.
FLOORS = {
    "structures": {"structures"},
    "layers": {"structures", "layers"},
    "suggestions": set(),
    "config": {"config_node", "suggestions"},
    "data": {"data", "structures", "config", "suggestions"},
    "evaluation": {"evaluation"},
}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported_modules(name: str) -> set[str]:
    """Modules of the package that a module imports, also inside functions and under conditions."""
    path = FILES[name]
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {x.name for x in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            # `from package import module` imports the module.
            found |= {
                x if (x := f"{origin}.{alias.name}") in FILES else origin for alias in node.names
            }
    return found & FILES.keys() - {name}


GRAPH = {name: imported_modules(name) for name in FILES}


def test_no_circle():
    finished, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in finished:
            return
        path.append(name)
        for other in sorted(GRAPH[name]):
            visit(other)
        finished.add(path.pop())

    for name in GRAPH:
        visit(name)
    assert finished == FILES.keys()


@pytest.mark.parametrize("floor", FLOORS)
def test_no_floor_imports_a_higher_one(floor):
    names = [x for x in FILES if x.split(".")[1:2] == [floor]]
    assert names
    for name in names:
        rooms = {x.split(".")[1] for x in GRAPH[name] if "." in x}
        assert rooms <= FLOORS[floor], name


def test_imports_stand_at_the_top():
    """Those that repair Detectron2 before it is imported are the exception."""
    for name, path in FILES.items():
        if name == "aid_d2.compat":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.If)):
                inner = [x for x in ast.walk(node) if isinstance(x, (ast.Import, ast.ImportFrom))]
                assert not inner, f"{name}, line {inner[0].lineno}"
