"""Weights of a teacher from MLflow, fetched as plain tensors: no model is unpickled."""

import re
from pathlib import Path
from typing import Any

from stillhouse.durable import bytes_hash
from stillhouse.errors import InfrastructureError, UsageError, first_line
from stillhouse.spec.secret_masking import mask_text
from stillhouse.tracking.locations import locate
from stillhouse.tracking.store import settings

_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


def fetch_weights(reference: str, uri: str | None, *, home: Path) -> Path:
    """Downloads an MLflow artifact and returns the path of the weights file in it.

    Args:
        reference: `models:/NAME/VERSION`, `models:/NAME@ALIAS`, `runs:/RUN/PATH`: an artifact that is, or contains, one file of
            weights (safetensors, or a state dict saved by torch).
        uri: of the tracking store; None is the embedded one under `home`.
        home: the file is stored in its folder `downloads`.

    Raises:
        UsageError: there is no such artifact, or not exactly one file of weights in it.
        InfrastructureError: the store cannot be reached.
    """
    location = locate(uri, home)
    with settings():
        import mlflow
        from mlflow.exceptions import MlflowException

        try:
            place = _place(mlflow.MlflowClient(location.uri, registry_uri=location.uri), reference)
            # One folder for each version: the files of an alias's earlier one must not lie beside those of the present one.
            folder = home / "downloads" / reference.replace(":", "").replace("/", "-") / bytes_hash(place.encode(), digits=12)
            folder.mkdir(parents=True, exist_ok=True)
            fetched = mlflow.artifacts.download_artifacts(
                artifact_uri=place, dst_path=str(folder), tracking_uri=location.uri, registry_uri=location.uri
            )
        except MlflowException as error:
            first = mask_text(first_line(error))
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise UsageError(f"MLflow has no '{reference}' in {location.shown}: {first}") from error
            raise InfrastructureError(f"cannot fetch '{reference}' from {location.shown}: {first}") from error
    path = Path(fetched)
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES)
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise UsageError(f"'{reference}' must contain one file of weights ({', '.join(_SUFFIXES)}), found {found}")
    return files[0].resolve()


def _place(client: Any, reference: str) -> str:
    """The address of the artifacts. MLflow itself would look a registered model up in its global store, not in this one."""
    registered = re.fullmatch(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))", reference)
    if registered is None:
        return reference
    name, version = registered["name"], registered["version"]
    if version is None:
        version = client.get_model_version_by_alias(name, registered["alias"]).version
    return str(client.get_model_version_download_uri(name, version))
