# facemill: `just` alone lists what there is; `just NAME --help` explains a job.

set positional-arguments

here := justfile_directory()
python := here / ".venv/bin/python -P"
bin := here / ".venv/bin"
code := "schemas dataset_tools train infer workflows benchmarks tests"

# List the recipes
_default:
    @just --list --unsorted

# Detect and crop the faces of SOURCE (folder, glob, archive, gs://, s3://) into a Parquet data set
[group('jobs')]
[no-cd]
crop-faces *ARGS: (_install "yunet,s3")
    @{{ python }} -m workflows.crop_faces "$@"

# Bring a labelled set (AffectNet, FER-2013, FER+, RAF-DB, class folders, csv) into the same kind of data set
[group('jobs')]
[no-cd]
import-labels *ARGS: (_install "yunet,s3")
    @{{ python }} -m workflows.import_labels "$@"

# Train an expression model on a DATASET by a recipe, on Ray workers here or on a cluster
[group('jobs')]
[no-cd]
train *ARGS: (_install "train,s3")
    @{{ python }} -m workflows.train_expressions "$@"

# Write a trained MODEL as ONNX, SavedModel or LiteRT, compared with its master on real faces
[group('jobs')]
[no-cd]
export *ARGS: (_install "train,s3")
    @{{ python }} -m workflows.export_model "$@"

# Score one or several MODELs on the labelled faces of DATASET, side by side, with a report
[group('jobs')]
[no-cd]
evaluate *ARGS: (_install "s3")
    @{{ python }} -m workflows.evaluate "$@"

# Find and score every face of stored image ARCHIVEs offline, on Apache Beam
[group('jobs')]
[no-cd]
score *ARGS: (_install "score,yunet,s3")
    @{{ python }} -m workflows.score_archive "$@"

# Check this machine, and a bucket, Dask scheduler or Ray address if named; says what to do for each fault
[group('jobs')]
[no-cd]
doctor *ARGS: (_install "s3")
    @{{ python }} -m workflows.doctor "$@"

# Crop the faces of a small collection of photos that two Python packages ship
[group('jobs')]
[no-cd]
sample *ARGS: (_install "yunet,s3,sample")
    @{{ python }} -m workflows.sample "$@"

# All checks, as CI runs them: format, lint, types, the whole test suite
[group('development')]
test *ARGS: (_install "dev") lint
    @{{ python }} -m pytest "$@"

# The quick tests only
[group('development')]
test-fast *ARGS: (_install "dev")
    @{{ python }} -m pytest -m "not slow" "$@"

# Format, lint and types
[group('development')]
lint: (_install "dev")
    @{{ bin }}/ruff format --check {{ code }} && {{ bin }}/ruff check {{ code }} && {{ bin }}/mypy

# Compare `mtcnn`, our MTCNN and YuNet on the same photos: speed, parity, recall, precision, memory
[group('benchmarks')]
[no-cd]
bench-detector *ARGS: (_install "dev")
    @PYTHONPATH={{ here }} {{ python }} -m benchmarks.detector "$@"

# What everything around detection costs, and what a second process gains
[group('benchmarks')]
[no-cd]
bench-crop *ARGS: (_install "dev")
    @PYTHONPATH={{ here }} {{ python }} -m benchmarks.crop "$@"

# Images per second of the training loop, against the same model stepped from memory and against Keras fit
[group('benchmarks')]
[no-cd]
bench-train *ARGS: (_install "dev")
    @PYTHONPATH={{ here }} {{ python }} -m benchmarks.train "$@"

# What Beam costs beside a plain loop over the same functions, what a second process gains, and the package `fer` beside it
[group('benchmarks')]
[no-cd]
bench-score *ARGS: (_install "dev")
    @PYTHONPATH={{ here }} {{ python }} -m benchmarks.score "$@"

# Seconds and memory of planning, listing and resuming for very many synthetic names
[group('benchmarks')]
[no-cd]
bench-scale *ARGS: (_install "dev")
    @PYTHONPATH={{ here }} {{ python }} -m benchmarks.scale "$@"

# Write the lock file anew from pyproject.toml
[group('development')]
lock:
    uv pip compile pyproject.toml --universal --all-extras --python-version 3.11 --no-emit-index-url --quiet -o requirements.lock

# Make .venv and install what a role needs, unless it is there already
_install extras:
    #!/bin/sh
    set -eu
    cd "{{ here }}"
    stamp=".venv/.installed-{{ extras }}"
    [ -e "$stamp" ] && [ "$stamp" -nt requirements.lock ] && [ "$stamp" -nt pyproject.toml ] && exit 0
    [ -e .venv/bin/python ] || uv venv --quiet --python '>=3.11,<3.14' .venv
    uv pip install --quiet --python .venv/bin/python -c requirements.lock -e '.[{{ extras }}]'
    touch "$stamp"
