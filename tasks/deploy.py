"""Stage export: a trained model to an ONNX folder, with its parity to PyTorch."""

from typing import Any

from featkd.result import Parity
from featkd.store import Artefact, artefact_key, file_sha256
from tasks.context import Context
from tasks.stages import obtain, stage
from tasks.train import Model

PACKAGES = ["torch", "transformers", "onnx", "onnxscript"]


@stage("export")
def export(context: Context, name: str, model: Model, tasks: Artefact) -> tuple[Artefact, Parity]:
    """The ONNX folder and its parity on held-out tokens; the caller stops a candidate whose parity failed."""
    settings = context.spec.export
    inputs = {
        "model": model.digest,
        "tolerance": settings.parity_tolerance,
        "probe": file_sha256(tasks.path / "probe.json"),
        "precision": "fp32",
    }

    def build(out: Any) -> dict[str, Any]:
        from featkd.deploy.export import export as to_onnx

        graphs = context.home / "graphs"
        graphs.mkdir(parents=True, exist_ok=True)
        parity = to_onnx(
            model.folder, out, tasks.json("probe.json"), settings.parity_tolerance, context.threads, graphs
        )
        return {"parity": parity.model_dump(mode="json")}

    made = obtain(
        context.log, f"export {name}", context.store, "onnx", artefact_key(inputs, ["deploy"], PACKAGES), build,
        note=lambda made: _note(Parity.model_validate(made.meta["parity"])),
    )  # fmt: skip
    return made, Parity.model_validate(made.meta["parity"])


def _note(parity: Parity) -> str:
    state = "parity" if parity.passed else "PARITY FAILED: candidate stopped;"
    slower = f"; generates with the general graph: {parity.general_why}" if parity.general_why else ""
    return f"{state} {parity.max_abs_difference:.1e} (at most {parity.tolerance:.0e}){slower}"
