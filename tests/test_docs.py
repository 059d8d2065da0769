"""The README, held to the truth: every command in it parses, every flag is in it, every recipe is there."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from workflows import crop_faces, doctor, evaluate, export_model, import_labels, score_archive, train_expressions

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
NAMES = ("crop-faces", "import-labels", "train", "export", "evaluate", "score", "doctor")
COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```sh\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if line.startswith(tuple(f"just {name}" for name in NAMES))
]
PARSERS = {
    "crop-faces": crop_faces.build_parser,
    "import-labels": import_labels.build_parser,
    "evaluate": evaluate.build_parser,
    "export": export_model.build_parser,
    "train": train_expressions.build_parser,
    "doctor": doctor.build_parser,
    "score": score_archive.build_parser,
}
BEAMS = {"--runner", "--region", "--temp_location"}
"""Options of Beam's pipelines, examples of what `just score` passes on."""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_in_the_readme_parses(command):
    _, name, *arguments = shlex.split(command)
    PARSERS[name]().parse_args(arguments)


def test_every_flag_is_in_the_readme_and_no_other():
    actions = [action for build in PARSERS.values() for action in build()._actions]
    flags = {flag for action in actions for flag in action.option_strings if flag.startswith("--")}
    assert flags - {"--help"} == set(re.findall(r"--[a-z][a-z_-]+", README)) - BEAMS


@pytest.mark.parametrize("name", PARSERS)
def test_every_flag_has_a_help_text(name):
    assert [action.dest for action in PARSERS[name]()._actions if not action.help] == []


def test_every_recipe_in_the_documents_exists():
    listed = subprocess.run(["just", "--summary"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    named = set()
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        named |= set(re.findall(r"[`\n]just ([a-z][a-z-]+)", document.read_text()))
    assert named - set(listed) == set()
    assert set(listed) - named <= {"lint", "lock", "test-fast"}


def test_links_to_files_lead_somewhere():
    for document in ROOT.glob("*.md"):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text()):
            assert (ROOT / target).exists(), f"{document.name}: {target}"


def test_the_lock_names_no_index():
    lock = (ROOT / "requirements.lock").read_text()
    assert "http" not in lock.replace("httpx", "").replace("httpcore", "").replace("aiohttp", "").replace(
        "httplib2", ""
    )
    assert "--index" not in lock
    assert all("==" in line or line.lstrip().startswith("#") for line in lock.splitlines() if line.strip())
