"""Kubernetes resources held against the schemas of their operators, which are fetched once and kept in a cache.

Strict, unlike a cluster's API server: a field that the schema does not know is an error there, not dropped in silence.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

_CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "facemill-tests"
_KUBERAY = "github.com/ray-project/kuberay/ray-operator@v1.5.0"
_DASK = "dask-kubernetes==2026.3.0"


def kuberay(kind: str) -> dict[str, Any]:
    """The schema of a resource of KubeRay, by its plural; skips the test where Go cannot fetch its module."""
    if shutil.which("go") is None:
        pytest.skip("not checked against KubeRay's schema: there is no Go to fetch it with")
    done = subprocess.run(["go", "mod", "download", "-json", _KUBERAY], capture_output=True, text=True, cwd="/")
    if done.returncode:
        pytest.skip(f"not checked against KubeRay's schema: Go did not fetch {_KUBERAY}")
    return _schema(Path(json.loads(done.stdout)["Dir"]) / "config" / "crd" / "bases" / f"ray.io_{kind}.yaml")


def dask(kind: str) -> dict[str, Any]:
    """The schema of a resource of the Dask operator, which is too large a package to depend on for its files."""
    folder = _CACHE / _DASK
    if not folder.is_dir():
        part = folder.with_name(f"{folder.name}.{os.getpid()}")
        command = ["uv", "pip", "install", "--quiet", "--no-deps", "--target", str(part), _DASK]
        if shutil.which("uv") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip(f"not checked against the Dask operator's schema: {_DASK} could not be fetched")
        part.replace(folder)
    charts = folder / "dask_kubernetes" / "operator" / "deployment" / "helm" / "dask-kubernetes-operator" / "crds"
    return _schema(charts / f"{kind}.yaml")


def problems(resource: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """One line for each field that is wrong, missing or unknown."""
    found = jsonschema.Draft202012Validator(schema).iter_errors(resource)
    return [f"{error.json_path}: {error.message[:200]}" for error in found]


def _schema(path: Path) -> dict[str, Any]:
    (version,) = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)["spec"]["versions"][:1]
    schema = _strict(version["schema"]["openAPIV3Schema"])
    schema["properties"] |= {"apiVersion": {}, "kind": {}, "metadata": {"required": ["name"]}}
    return schema


def _strict(schema: Any) -> Any:
    """The same as JSON schema: no unknown fields, and Kubernetes' numbers that may be texts."""
    if isinstance(schema, list):
        return [_strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _strict(value) for key, value in schema.items()}
    if made.pop("x-kubernetes-int-or-string", None) is True:
        made.pop("type", None)
        made |= {"type": ["integer", "string"]}
        made.pop("anyOf", None)
    free = made.get("x-kubernetes-preserve-unknown-fields") is True
    if isinstance(made.get("properties"), dict) and made.get("type") == "object" and not free:
        made.setdefault("additionalProperties", False)
    if made.get("format") in ("int32", "int64", "double"):
        del made["format"]
    return made
