"""The reading child: `python -m featkd.data JOB` builds the corpus artefact in job["out"]."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from featkd import spec
from featkd.child import serve
from featkd.data import corpus


def main(job: dict[str, Any], emit: Callable[..., None]) -> dict[str, Any]:
    return corpus.build(spec.Data.model_validate(job["data"]), Path(job["out"]), job["processes"], Path(job["scratch"]))


if __name__ == "__main__":
    serve(main)
