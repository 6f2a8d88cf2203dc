"""The import rules of both tools, over the syntax trees of all their folders: which module may lean on which.

An import counts wherever it stands: at the top, in a function, for type checkers alone.
"""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.dtld_data import REPOSITORY

# From the lowest layer up: a module imports its own folder and what lies in layers below. A name without a folder is a
# module at the top of the package.
LAYERS = {
    "kd": (
        {
            "errors",
            "config",
            "schedule",
            "environment",
            "files",
            "locks",
            "show",
            "options",
            "predict_options",
            "train_options",
            "methods",
            "shared_options",
        },
        {"ultra"},
        {"scoring"},
        {"distillation"},
        {"runs"},
        {"reports"},
        {"device"},
        {"analysis"},
        {"inheritance"},
        {"training"},
        {"sweeps"},
        {"device_commands", "scoring_commands"},
        {"commands"},
        {""},
    ),
    "dtld_tools": (
        {"types", "geometry", "errors", "files", "versions", "threads", "show"},
        {"pixels"},
        {"dataset", "labels"},
        {"importing"},
        {"planning"},
        {"pipeline"},
        {"validation", "export", "synthetic"},
        {"options"},
        {"commands"},
        {""},
    ),
}
USERS = {  # the only places of a tool that import a library
    ("kd", "ultralytics"): {"ultra", "distillation", "training", "scoring", "analysis", "device", "inheritance"},
    ("kd", "torch"): {"ultra", "methods", "distillation", "training", "scoring", "device", "inheritance"},
    ("kd", "typer"): {"commands", "device_commands", "scoring_commands", "shared_options"},
    ("dtld_tools", "typer"): {"commands", "options"},
    ("dtld_tools", "shapely"): {"geometry"},
    ("dtld_tools", "torch"): set(),
    ("dtld_tools", "torchvision"): set(),
    ("dtld_tools", "ultralytics"): set(),
    ("kd", "shapely"): set(),
}
STANDARD_LIBRARY_ALONE = ("kd.config", "kd.options", "kd.schedule", "kd.methods.facts", "dtld_tools.types")
STRANGERS = {"kd": {"dtld_tools", "cli"}, "dtld_tools": {"kd", "cli"}, "schemas": {"kd", "dtld_tools", "cli"}}
PRINTING = {"commands", "show"}


def imports_of(path):
    """Every module that a file imports, wherever the import stands; `from package import name` gives both."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def modules(root, package):
    """Every module below a package, by its dotted name."""
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (root / package).rglob("*.py")
    }


def graph(files):
    """Each module with the modules of the same package that it imports; `a.b` is the module, `a` its folder alone."""
    found = {}
    for module, path in files.items():
        own = imports_of(path) & set(files)
        nearer = {name.rpartition(".")[0] for name in own}
        found[module] = {name for name in own if name not in nearer} - {module}
    return found


def place(module):
    """The folder or top module that a module belongs to: `kd.ultra.data` -> `ultra`; `kd` -> ``."""
    return module.partition(".")[2].partition(".")[0]


def upward(arrows, layers):
    """The arrows between places that do not lead down; modules of the lowest layer may import each other."""
    level = {name: height for height, names in enumerate(layers) for name in names}
    return sorted(
        f"{module} -> {other}"
        for module, others in arrows.items()
        for other in others
        if place(module) != place(other)
        and level[place(other)] >= level[place(module)]
        and not level[place(module)] == level[place(other)] == 0
    )


def cycle(arrows):
    """One cycle of modules, or nothing."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def printing(path):
    """The calls with which a file prints or exits; a child process of ours may end itself with os._exit."""
    calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return [call for call in calls if call in ("print", "exit", "quit", "sys.exit")]


def packages(path):
    return {name.split(".")[0] for name in imports_of(path)}


TOOLS = {package: modules(REPOSITORY, package) for package in ("kd", "dtld_tools", "schemas")}
EVERY = {module: path for files in TOOLS.values() for module, path in files.items()}


def test_the_reader_of_imports_sees_them_all(tmp_path):
    path = tmp_path / "a.py"
    path.write_text("import os.path\nfrom a.b import c\ndef f():\n    from x import y\nif 1:\n    import z as q\n")
    assert imports_of(path) == {"os.path", "a.b", "a.b.c", "x", "x.y", "z"}


def test_the_rules_see_what_breaks_them(tmp_path):
    texts = {
        "t/__init__.py": "",
        "t/low.py": "",
        "t/a/__init__.py": "",
        "t/a/deep/__init__.py": "",
        "t/a/deep/one.py": "def f():\n    from t.b import two\n    print(1)\n",
        "t/b/__init__.py": "",
        "t/b/two.py": "from t.low import x\nfrom t.a.deep.one import f\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    files = modules(tmp_path, "t")
    arrows = graph(files)
    assert arrows["t.b.two"] == {"t.low", "t.a.deep.one"}
    assert upward(arrows, ({"", "low"}, {"a"}, {"b"})) == ["t.a.deep.one -> t.b.two"]
    assert upward(arrows, ({"", "low"}, {"a", "b"})) == ["t.a.deep.one -> t.b.two", "t.b.two -> t.a.deep.one"]
    assert set(cycle(arrows)) == {"t.a.deep.one", "t.b.two"}
    assert cycle(arrows | {"t.a.deep.one": set()}) == []
    assert [module for module, path in files.items() if printing(path)] == ["t.a.deep.one"]


@pytest.mark.parametrize("tool", LAYERS)
def test_every_folder_has_its_layer(tool):
    assert {place(module) for module in TOOLS[tool]} == set().union(*LAYERS[tool])


@pytest.mark.parametrize("tool", LAYERS)
def test_a_folder_imports_only_folders_below_it(tool):
    assert upward(graph(TOOLS[tool]), LAYERS[tool]) == []


OWN = {  # what the stages of one frame's way, and what they stand on, import of dtld_tools: never another stage
    "types": {"errors"},
    "geometry": {"types"},
    "labels.documents": {"errors"},
    "labels.parse": {"errors", "types", "labels.attributes", "labels.documents"},
    "labels.collapse": {"errors", "types", "labels.attributes"},
    "planning.split": {"errors", "types"},
    "planning.tile": {"geometry", "types"},
    "pixels.images": {"errors", "types", "pixels.orientation"},
    "pixels.augment": {"errors", "types"},
}


@pytest.mark.parametrize("module", OWN)
def test_a_stage_knows_its_values_and_never_another_stage(module):
    assert {name.removeprefix("dtld_tools.") for name in graph(TOOLS["dtld_tools"])[f"dtld_tools.{module}"]} <= OWN[
        module
    ]


@pytest.mark.parametrize("tool", TOOLS)
def test_no_modules_import_each_other_in_a_circle(tool):
    assert cycle(graph(TOOLS[tool])) == []


@pytest.mark.parametrize("tool", TOOLS)
def test_the_tools_do_not_know_each_other(tool):
    assert [module for module, path in TOOLS[tool].items() if packages(path) & STRANGERS[tool]] == []


@pytest.mark.parametrize(("tool", "library"), USERS)
def test_a_library_is_imported_only_where_it_may_be(tool, library):
    users = {module for module, path in TOOLS[tool].items() if library in packages(path)}
    assert {module for module in users if place(module) not in USERS[tool, library]} == set()


@pytest.mark.parametrize("module", [module for module in STANDARD_LIBRARY_ALONE if module in EVERY])
def test_some_modules_need_the_standard_library_alone(module):
    """Even through what they import of ours."""
    seen, waiting = set(), {module}
    while waiting:
        name = waiting.pop()
        seen.add(name)
        assert packages(EVERY[name]) <= {*sys.stdlib_module_names, "kd", "dtld_tools", "schemas"}, name
        waiting |= graph(TOOLS[name.partition(".")[0]])[name] - seen


@pytest.mark.parametrize("tool", TOOLS)
def test_libraries_raise_they_never_print_or_exit(tool):
    found = {module for module, path in TOOLS[tool].items() if place(module) not in PRINTING and printing(path)}
    assert found == set()


def modules_after(code):
    """The top-level modules that a fresh interpreter holds after running some code."""
    code = f"import sys\n{code}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    return set(run.stdout.splitlines()[-1].split())


def test_the_pipeline_loads_no_torch():
    loaded = modules_after(
        "import dtld_tools.pipeline.stages, dtld_tools.validation.validate, dtld_tools.labels.stats\n"
        "import dtld_tools.export.preview"
    )
    assert "cv2" in loaded  # the probe works
    assert not loaded & {"torch", "ultralytics", "kd", "matplotlib"}


def test_help_is_instant_because_it_loads_nothing_heavy():
    code = "import cli\nsys.argv = ['dtld', '--help']\ntry: cli.dtld()\nexcept SystemExit as end: assert not end.code"
    loaded = modules_after(code)
    assert "typer" in loaded
    assert not loaded & {"cv2", "numpy", "torch", "shapely", "PIL", "matplotlib", "yaml", "orjson"}
