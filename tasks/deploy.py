"""Stage export: a trained model to an ONNX folder, with its parity to PyTorch."""

from typing import Any

from featkd import environment
from featkd.result import Parity
from featkd.store import Artefact, artefact_key, file_sha256
from tasks.context import Context
from tasks.stages import obtain, stage
from tasks.train import Model

PACKAGES = ["torch", "transformers", "onnx", "onnxscript"]


@stage("export")
def export(
    context: Context, name: str, model: Model, tasks: Artefact, precision: str = "fp32"
) -> tuple[Artefact, Parity]:
    """The ONNX folder and its parity on held-out tokens; the caller stops a candidate whose parity failed."""
    whole, parity = _float32(context, name, model, tasks)
    if precision == "fp32" or not parity.passed:
        return whole, parity
    return _quantised(context, name, model, tasks, whole, precision)


def _float32(context: Context, name: str, model: Model, tasks: Artefact) -> tuple[Artefact, Parity]:
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

    return _obtained(context, f"export {name}", inputs, PACKAGES, build)


def _quantised(
    context: Context, name: str, model: Model, tasks: Artefact, whole: Artefact, precision: str
) -> tuple[Artefact, Parity]:
    inputs = {"onnx": whole.key, "precision": precision}

    def build(out: Any) -> dict[str, Any]:
        from featkd.deploy.quantise import quantise

        probe = tasks.json("probe.json")
        parity = quantise(whole.path, model.folder, out, precision, probe, context.threads)
        return {"parity": parity.model_dump(mode="json")}

    return _obtained(context, f"quantise {name}", inputs, environment.onnxruntime_package(), build)


def _obtained(
    context: Context, label: str, inputs: dict[str, Any], packages: list[str], build: Any
) -> tuple[Artefact, Parity]:
    made = obtain(
        context.log, label, context.store, "onnx", artefact_key(inputs, ["deploy"], packages), build,
        note=lambda made: _note(Parity.model_validate(made.meta["parity"])),
    )  # fmt: skip
    return made, Parity.model_validate(made.meta["parity"])


def _note(parity: Parity) -> str:
    slower = f"; generates with the general graph: {parity.general_why}" if parity.general_why else ""
    if parity.tolerance is None:
        return f"{parity.argmax_agreement:.1%} of tokens as in PyTorch, KL {parity.mean_kl:.2g} nats{slower}"
    state = "parity" if parity.passed else "PARITY FAILED: candidate stopped;"
    return f"{state} {parity.max_abs_difference:.1e} (at most {parity.tolerance:.0e}){slower}"
