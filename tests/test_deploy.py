"""What deploy/ holds, as far as it can be checked without a cluster: schemas, dry runs, the wheel that workers get."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

from tests import crds
from workflows import beam_options, crop_faces, score_archive, train_expressions

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(
    line.split(" ;")[0].split("==")
    for line in (ROOT / "requirements.lock").read_text().splitlines()
    if re.match(r"[a-z0-9]", line)
)


def commands():
    """Our commands in docs/cloud.md, lines that go on joined."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "cloud.md").read_text(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.startswith("just ")]


def parse(command):
    """The arguments of one of our commands, and what is left for Beam."""
    _, name, *words = shlex.split(command)
    if name == "score":
        return beam_options.beam_options(score_archive.build_parser(), words)
    parser = {"crop-faces": crop_faces, "train": train_expressions}[name].build_parser()
    return parser.parse_args(words), ()


def resource(name):
    return yaml.safe_load((DEPLOY / name).read_text())


def instructions():
    """(instruction, its text) of the Containerfile, lines that go on joined."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "Containerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


def stages():
    """The instructions of each stage, by its name."""
    found = {}
    for word, text in instructions():
        if word == "FROM":
            base, _, name = text.split()
            found[name] = [(word, base)]
        else:
            found[name].append((word, text))
    return found


# --- Container files ---


def test_a_stage_builds_on_an_earlier_stage_or_on_an_image_of_one_version():
    seen = []
    for name, lines in stages().items():
        base = lines[0][1]
        assert base in seen or re.search(r":\d", base), base
        for word, text in lines[1:]:
            if word == "COPY" and text.startswith("--from="):
                assert text.split()[0].removeprefix("--from=") in seen
        seen.append(name)
    assert {"crop", "train", "score"} <= set(seen)


def test_what_is_copied_from_the_clone_is_there():
    copied = [text.split()[:-1] for word, text in instructions() if word == "COPY" and not text.startswith("--from=")]
    names = [name for one in copied for name in one]
    assert names == ["requirements.lock", "dist/facemill-*.whl"]  # the second is what `uv build` leaves
    assert (ROOT / "requirements.lock").is_file()


def installed():
    """The extras that each build stage installs, all of it held to the lock."""
    form = r'pip install -c requirements\.lock "\$\(echo facemill-\*\.whl\)\[([a-z0-9,-]+)\]"'
    found = {}
    for stage, lines in stages().items():
        for word, text in lines:
            if word == "RUN" and "install" in text and "apt-get" not in text:
                found[stage] = re.fullmatch(form, text)[1].split(",")
    return found


def packages(extras):
    """What the base and these extras ask for, by name."""
    wanted = PROJECT["dependencies"] + [one for extra in extras for one in PROJECT["optional-dependencies"][extra]]
    return {re.match(r"[a-z0-9-]+", requirement)[0] for requirement in wanted}


def test_every_installation_is_held_to_the_lock_and_all_it_asks_for_is_in_there():
    assert set(installed()) == {"build-crop", "build-train", "build-score"}
    for extras in installed().values():
        assert packages(extras) - set(PINS) == set()


def test_the_crop_image_has_neither_tensorflow_nor_ray_nor_beam():
    assert packages(installed()["build-crop"]) & {"tensorflow", "keras", "ray", "apache-beam"} == set()
    assert packages(installed()["build-train"]) >= {"tensorflow", "ray"}


def test_beam_is_of_one_version_in_the_image_and_in_the_lock():
    assert stages()["beam"][0][1] == f"apache/beam_python3.11_sdk:{PINS['apache-beam']}"
    assert stages()["role"][0][1] == "python:3.11-slim"


# --- Clusters ---


def test_the_dask_job_is_one_that_the_operator_takes():
    assert crds.problems(resource("dask-job.yaml"), crds.dask("daskjob")) == []


def test_the_ray_job_is_one_that_kuberay_takes():
    assert crds.problems(resource("ray-job.yaml"), crds.kuberay("rayjobs")) == []


@pytest.mark.parametrize(
    ("name", "schema", "path"),
    [
        ("dask-job.yaml", lambda: crds.dask("daskjob"), ("cluster", "spec", "worker", "spec", "containers", 0)),
        ("ray-job.yaml", lambda: crds.kuberay("rayjobs"), ("rayClusterSpec", "headGroupSpec", "template", "spec")),
    ],
)
def test_a_misspelt_field_deep_inside_is_found(name, schema, path):
    wrong = resource(name)
    place = wrong["spec"]
    for step in path:
        place = place[step]
    place["imagee"] = "x"
    (problem,) = crds.problems(wrong, schema())
    assert "imagee" in problem


def test_the_ray_cluster_is_one_that_ray_up_takes():
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(resource("ray-cluster.yaml"))
    validate_config(config)
    with pytest.raises(ValidationError, match="'idle_timeout' was unexpected"):
        validate_config(config | {"idle_timeout": 5})


def test_ray_is_of_one_version_in_the_job_and_in_the_lock():
    assert resource("ray-job.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == PINS["ray"]


def test_images_are_of_this_version():
    names = re.findall(r"facemill-(?:crop|train|score):\S+", "".join(path.read_text() for path in DEPLOY.iterdir()))
    assert {name.split(":")[1] for name in names} == {PROJECT["version"]}


def test_the_commands_in_the_resources_are_ours():
    job = resource("dask-job.yaml")["spec"]["job"]["spec"]["containers"][0]
    assert crop_faces.build_parser().parse_args(job["args"]).scheduler == "$(DASK_SCHEDULER_ADDRESS)"
    python, _, module, *arguments = shlex.split(resource("ray-job.yaml")["spec"]["entrypoint"])
    assert (python, module) == ("python", "workflows.train_expressions")
    args = train_expressions.build_parser().parse_args(arguments)
    workers = resource("ray-job.yaml")["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert (args.gpu, args.workers, args.address) == (True, workers["replicas"], "auto")


# --- What docs/cloud.md says ---


def test_there_is_a_command_for_every_engine():
    found = " ".join(commands())
    assert all(word in found for word in ("--scheduler tcp://", "--address ray://", "DataflowRunner", "PortableRunner"))


@pytest.mark.parametrize("command", commands())
def test_every_command_parses(command):
    args, options = parse(command)
    assert args.out.startswith(("gs://", "s3://"))
    assert all("=" in option for option in options)


def test_every_file_that_is_named_is_there():
    text = (ROOT / "docs" / "cloud.md").read_text()
    assert {name for name in re.findall(r"deploy/[\w.-]+", text) if not (ROOT / name).exists()} == set()
    assert {f"deploy/{path.name}" for path in DEPLOY.iterdir()} <= set(re.findall(r"deploy/[\w.-]+", text))


# --- Beam ---


def test_dataflow_would_run_our_image_with_our_pipeline(tmp_path):
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    from infer.beam_score import build
    from infer.scoring import Scoring, Unit

    (command,) = [one for one in commands() if "DataflowRunner" in one]
    args, options = parse(command)
    scoring = Scoring(args.out, args.model, "onnx", None, 2048)
    pipeline = beam.Pipeline(options=PipelineOptions([*options, "--dry_run=True"]))
    build(pipeline, [Unit(number, number * 2048, (number + 1) * 2048) for number in range(20_000)], scoring)
    job = pipeline.run().job
    environment = json.dumps([str(one) for one in job.proto_pipeline.components.environments.values()])
    assert "facemill-score:0.1.0" in environment
    # Dataflow takes no request over 10 MB: the units of the largest run must fit.
    assert job.proto_pipeline.ByteSize() < 2_000_000


# --- The wheel ---


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        ["uv", "build", "--quiet", "--out-dir", str(folder), str(ROOT)], capture_output=True, text=True
    )
    if done.returncode and "dns" in done.stderr.lower():
        pytest.skip("the wheel needs setuptools, which could not be fetched")
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_every_file_of_our_packages_and_nothing_else(wheel):
    packages = ("schemas", "dataset_tools", "train", "infer", "workflows")
    listed = subprocess.run(["git", "ls-files", *packages], cwd=ROOT, capture_output=True, text=True, check=True)
    ours = {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert ours - held == set()
    assert {name for name in held if not (ROOT / name).exists()} == set()  # what an earlier build left behind


def test_the_wheel_runs_outside_the_clone(wheel, tmp_path):
    where = tmp_path / "environment"
    venv.create(where, symlinks=True)
    python = str(where / "bin" / "python")
    subprocess.run(["uv", "pip", "install", "--quiet", "--no-deps", "--python", python, str(wheel)], check=True)
    (site,) = where.glob("lib/python*/site-packages")
    # What the wheel depends on comes from this environment; an editable install of the clone does not come along.
    others = [path for path in sys.path if path.endswith("site-packages")]
    (site / "others.pth").write_text("".join(f"import sys; sys.path.append({path!r})\n" for path in others))
    code = "import workflows.cli, train.recipes_io as recipes; print(workflows.cli.__file__, len(recipes.names()))"
    done = subprocess.run([python, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    file, recipes = done.stdout.split()
    assert file.startswith(str(site))
    assert int(recipes) == len(list((ROOT / "train" / "recipes").glob("*.toml")))
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "broken.jpg").write_bytes(b"no picture")
    command = [python, "-P", "-m", "workflows.crop_faces", "photos", "--out", "out", "--workers", "1", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["reasons"] == {"not_an_image": 1}
    assert "<html" in (tmp_path / "out" / "report.html").read_text()
