"""The import rules of the architecture, over the syntax trees: which module may lean on which."""

import ast
import subprocess
import sys

import pytest

from tests.dtld_data import REPOSITORY

STAGES = {"parse", "collapse", "split", "tile", "images", "augment"}
DTLD = {path.stem: path for path in (REPOSITORY / "dtld_tools").rglob("*.py")}
KD = {path.stem: path for path in (REPOSITORY / "kd").rglob("*.py")}


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


def packages(path):
    return {name.split(".")[0] for name in imports_of(path)}


def own(path):
    """The modules of dtld_tools that a file imports."""
    found = {name for name in imports_of(path) if name.startswith("dtld_tools.")}
    return {name.rpartition(".")[2] for name in found} & set(DTLD)


def test_the_reader_of_imports_sees_them_all(tmp_path):
    path = tmp_path / "a.py"
    path.write_text("import os.path\nfrom a.b import c\ndef f():\n    from x import y\nif 1:\n    import z as q\n")
    assert imports_of(path) == {"os.path", "a.b", "a.b.c", "x", "x.y", "z"}


def test_all_stages_exist():
    assert set(DTLD) >= STAGES | {"types", "errors", "geometry", "stages", "dataset", "plan", "validate"}


@pytest.mark.parametrize(("name", "may"), [("types", {"errors"}), ("errors", set())])
def test_types_and_errors_need_the_standard_library_alone(name, may):
    assert packages(DTLD[name]) <= {*sys.stdlib_module_names, "dtld_tools"}
    assert own(DTLD[name]) <= may


def test_geometry_knows_types_alone_and_is_the_only_user_of_shapely():
    assert own(DTLD["geometry"]) == {"types"}
    assert [name for name, path in DTLD.items() if "shapely" in packages(path)] == ["geometry"]


@pytest.mark.parametrize("name", sorted(STAGES))
def test_a_stage_never_imports_another(name):
    helpers = {"parse": {"documents"}, "images": {"orientation"}}
    assert own(DTLD[name]) <= {"types", "errors", "geometry"} | helpers.get(name, set())


def test_files_are_read_without_knowing_labels():
    assert own(DTLD["documents"]) == {"errors"}


@pytest.mark.parametrize("name", sorted(DTLD))
def test_the_data_tool_knows_neither_kd_nor_torch(name):
    assert not packages(DTLD[name]) & {"kd", "cli", "torch", "torchvision", "ultralytics"}


@pytest.mark.parametrize("name", sorted(KD))
def test_kd_never_knows_the_data_tool(name):
    assert not packages(KD[name]) & {"dtld_tools", "cli"}


@pytest.mark.parametrize("name", sorted(set(DTLD) - {"commands", "show"}))
def test_libraries_raise_they_never_print_or_exit(name):
    calls = [node.func for node in ast.walk(ast.parse(DTLD[name].read_text())) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call, ast.Name) and call.id in ("print", "exit")]
    assert not [call for call in calls if isinstance(call, ast.Attribute) and ast.unparse(call) == "sys.exit"]


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
