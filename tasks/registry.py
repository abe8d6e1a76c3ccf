"""MLflow's model registry: versions of a PoC's model, and which of them is the champion.

The registered model has the PoC's name. Its first version is the teacher; every student that was recommended or
approved is a later one. Alias `champion`: what is to be served; `challenger`: what waits for a person.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from featkd.errors import RunError
from featkd.result import Result
from featkd.store import Artefact
from tasks import tracking

CHAMPION, CHALLENGER = "champion", "challenger"
TEACHER = "teacher"


class Version(NamedTuple):
    """number: MLflow's. artefact: of the ONNX folder in the store. teacher: of a student, its teacher's artefact."""

    number: str
    run_id: str
    candidate: str
    artefact: str
    teacher: str

    @property
    def told(self) -> dict[str, str]:
        """What a decision says of it."""
        return {"version": self.number, "run_id": self.run_id, "candidate": self.candidate, "artefact": self.artefact}


class Registry:
    """Raises RunError where MLflow does not answer."""

    def __init__(self, home: Path, name: str):
        self.home, self.name = home, name
        self.store = self._asked(tracking.client, home)

    def register(self, result: Result, candidate: str, onnx: Artefact) -> Version:
        """The version of a candidate, made unless there is one of this artefact."""
        if found := self.of(onnx.key):
            return found
        self._create_model()
        told = result.candidates[candidate]
        tags = {
            "featkd.run_id": result.run_id,
            "featkd.candidate": candidate,
            "featkd.artefact": onnx.key,
            "featkd.teacher": result.candidates[TEACHER].artefact or "",
            "featkd.weights_sha256": (told.training and told.training.weights_sha256) or "",
            "featkd.verdict": told.verdict.verdict or "",
        }
        run_id = self._run_of(result, candidate)
        source = self._source(run_id, onnx)
        description = f"{candidate} of run {result.run_id}"
        made = self._asked(
            self.store.create_model_version, self.name, source, run_id, tags=tags, description=description
        )
        return _version(made)

    def champion(self) -> Version | None:
        return self._by_alias(CHAMPION)

    def challenger(self) -> Version | None:
        return self._by_alias(CHALLENGER)

    def of(self, artefact: str) -> Version | None:
        return next((one for one in self._versions() if one.artefact == artefact), None)

    @contextlib.contextmanager
    def moved(self, to: Version) -> Iterator[None]:
        """`to` is champion. Where what is done inside fails, the champion is who it was before."""
        before = self.champion()
        self._asked(self.store.set_registered_model_alias, self.name, CHAMPION, to.number)
        try:
            yield
        except BaseException:
            if before:
                self._asked(self.store.set_registered_model_alias, self.name, CHAMPION, before.number)
            else:
                self._asked(self.store.delete_registered_model_alias, self.name, CHAMPION)
            raise
        if (waiting := self.challenger()) and waiting.number == to.number:
            self._asked(self.store.delete_registered_model_alias, self.name, CHALLENGER)

    def challenge(self, version: Version) -> None:
        self._asked(self.store.set_registered_model_alias, self.name, CHALLENGER, version.number)

    def tag(self, version: Version, name: str, value: str) -> None:
        self._asked(self.store.set_model_version_tag, self.name, version.number, f"featkd.{name}", value)

    def _run_of(self, result: Result, candidate: str) -> str:
        experiment = self._asked(tracking.experiment_of, self.store, result.spec, self.home)
        measured = result.priced_from or result.run_id
        wanted = f"tags.`featkd.run_id` = '{measured}' and tags.candidate = '{candidate}'"
        found = self._asked(self.store.search_runs, [experiment], wanted)
        if not found:
            raise RunError(f"MLflow at {tracking.tracking_uri(self.home)} has no run {measured}; run it again")
        return found[0].info.run_id

    def _source(self, run_id: str, onnx: Artefact) -> str:
        """The folder in the store; on a server a copy of it, that others can load."""
        if tracking.tracking_uri(self.home).startswith("sqlite:"):
            return onnx.path.as_uri()
        self._asked(self.store.log_artifacts, run_id, str(onnx.path), "onnx")
        return f"{self._asked(self.store.get_run, run_id).info.artifact_uri}/onnx"

    def _create_model(self) -> None:
        try:
            self.store.create_registered_model(
                self.name, description=f"What serves in the place of {self.name}'s teacher."
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise self._failed(error) from error

    def _versions(self) -> list[Version]:
        """The oldest first."""
        found = self._asked(self.store.search_model_versions, f"name = '{self.name}'")
        return sorted(map(_version, found), key=lambda one: int(one.number))

    def _by_alias(self, alias: str) -> Version | None:
        try:
            return _version(self.store.get_model_version_by_alias(self.name, alias))
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise self._failed(error) from error

    def _asked(self, call: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return tracking.again(call, *arguments, **named)
        except (MlflowException, OSError) as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> RunError:
        return RunError(f"MLflow at {tracking.tracking_uri(self.home)}: {str(error).partition(chr(10))[0][:300]}")


def _version(found: ModelVersion) -> Version:
    tags = found.tags
    return Version(
        str(found.version), tags.get("featkd.run_id", ""), tags.get("featkd.candidate", ""),
        tags.get("featkd.artefact", ""), tags.get("featkd.teacher", ""),
    )  # fmt: skip
