"""The wings: who imports whom, that nothing runs in a circle, how long modules are."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from house import (
    GROUND,
    MAY_IMPORT,
    ROOT,
    imported,
    modules,
    own_imports,
    picture,
    wing_of,
    wings,
)

LONGEST = 350
"""Lines of a module."""

MODULES = modules()
HANDED_OUT = {
    ("__main__", "commands"),
    ("__main__", "errors"),
    ("__main__", "plugin"),
    ("__init__", "method"),
    ("__init__", "model"),
    ("__init__", "plugin"),
}
"""What the two modules above the wings import: public names, the command line, registration."""


def test_every_module_lies_in_a_wing():
    assert {wing_of(module) for module in MODULES} == {*MAY_IMPORT, "__init__", "__main__"}


@pytest.mark.parametrize("wing", MAY_IMPORT)
def test_a_wing_imports_only_what_lies_below_it(wing: str):
    allowed = {*MAY_IMPORT[wing], wing, *(() if wing in GROUND else GROUND)}
    wrong = {
        f"{module} imports {other}"
        for module, path in MODULES.items()
        if wing_of(module) == wing
        for other in own_imports(path)
        if wing_of(other) not in allowed
    }
    assert not wrong


def test_the_modules_above_the_wings_import_only_what_they_hand_out():
    above = ("__init__", "__main__")
    seen = {(name, wing_of(other)) for name in above for other in own_imports(MODULES[name])}
    assert seen <= HANDED_OUT


def test_no_import_runs_in_a_circle():
    graph = {
        # A package's own module is imported before those in it; that is no arrow of the code's.
        module: own_imports(path) & set(MODULES) - {module, module.rpartition(".")[0]}
        for module, path in MODULES.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"imports in a circle: {' -> '.join(error.args[1])}")


def test_easyedit_is_imported_in_the_plugin_alone():
    wrong = {
        module
        for module, path in MODULES.items()
        if any(name.split(".")[0] == "easyeditor" for name in imported(path))
        and wing_of(module) != "plugin"
    }
    assert not wrong


def test_modules_are_short():
    lengths = {
        name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_every_wing_says_what_belongs_in_it():
    for wing in set(MAY_IMPORT) - set(GROUND):
        assert ast.get_docstring(ast.parse((ROOT / wing / "__init__.py").read_text())), wing


def test_the_picture_is_of_the_code_as_it_is():
    drawn = Path(__file__).parents[1] / "docs" / "pictures" / "wings.svg"
    assert drawn.read_text(encoding="utf-8") == picture(wings()), (
        f"python tests/house.py docs/pictures/{drawn.name}"
    )
