"""The whole PoC: prepare data, teacher, distil, export, measure, price, judge, report, track.

run(spec, root)      # from Python; `featkd run SPEC` on the command line
"""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas
from prefect import flow

from featkd import environment
from featkd.child import Event
from featkd.decide import judgement, ledger, roi
from featkd.decide.evidence import Evidence
from featkd.errors import InputError, ModelFailed, RunError
from featkd.models import given
from featkd.result import Adequacy, DataSummary, Result
from featkd.spec import Spec
from featkd.store import Artefact
from flows import beside, champion, preflight, promotion
from reports.sizes import sentence
from reports.text import load
from tasks import data, deploy, measure, publish, tracking, train
from tasks.context import Context
from tasks.data import folder_digest
from tasks.live import Live
from tasks.stages import say
from tasks.train import Model


class Poc:
    """One run: what has been made so far, and what is known of each candidate."""

    def __init__(self, context: Context, on_event: Callable[[Event], None] = lambda event: None):
        """`on_event`: called with the events of every training."""
        self.context, self.spec, self.on_event = context, context.spec, on_event
        self.evidence: dict[str, Evidence] = {"teacher": Evidence("teacher", "teacher")}
        for name in self.spec.candidates():
            self.evidence[name.name] = Evidence(name.name, name.arm, name.size, name.precision, self.spec.seeds[0])
        self.onnx: dict[str, Artefact] = {}
        self.kept: dict[str, Artefact] = {}
        self.serving: champion.Champion | None = None

    def prepare(self) -> None:
        """Data, tokens, tasks and the teacher, which is trained last: tasks that cannot be built are told early."""
        self.serving = champion.serving(self.context)
        self.corpus = data.corpus(self.context)
        if self.spec.teacher.train:
            tokenizer = data.tokenizer(self.context, self.corpus)
            self._tokenise(str(tokenizer.path), tokenizer.key)
            self.teacher = train.trained_teacher(self.context, self.blocks, tokenizer, self.on_event)
        else:
            folder = given.locate(self.spec.teacher.model)
            digest = folder_digest(folder)
            self._tokenise(folder, digest)
            self._check_ids(given.configuration(folder).vocab_size)
            self.teacher = train.given_teacher(self.context, folder, digest)
        self.chance = self.tasks.meta["chance"]
        self.kept |= {"corpus": self.corpus, "tasks": self.tasks}

    def _tokenise(self, tokenizer: str, identity: str) -> None:
        """Blocks and tasks. `tokenizer`: a folder; `identity`: its digest."""
        self.blocks = data.blocks(self.context, self.corpus, tokenizer, identity)
        made = (self.context, self.corpus, self.blocks, tokenizer, self.spec.block_size)
        self.tasks = data.quality_tasks(*made)
        self.suites = data.suites(*made) if self.spec.guardrails.asked else None

    def _check_ids(self, vocab_size: int) -> None:
        """The ids that do occur: a tokenizer may be smaller than the vocabulary, or know ids that no text gives."""
        largest = max(int(np.load(self.blocks.path / f"{part}.npy")[0].max()) for part in ("train", "valid"))
        largest = max([largest, *(token for text in self.tasks.json("probe.json") for token in text)])
        if largest >= vocab_size:
            raise InputError(
                f"teacher.model: its tokenizer gives id {largest}, its vocabulary ends at {vocab_size - 1}; "
                "give the tokenizer that the model was trained with"
            )

    def measure_quality(self, name: str, models: dict[int | None, Model]) -> None:
        """Export and evaluate one candidate, every seed of it; the first seed ships. Without it the others go on."""
        found = self.evidence[name]
        for seed, model in models.items():
            label = name if len(models) == 1 else f"{name} seed {seed}"
            ships = seed == next(iter(models))
            try:
                samples = self._exported_and_evaluated(found, label, seed, model, ships)
            except RunError as error:
                if found.arm == "teacher":
                    raise
                say(f"{error}; the other candidates go on")
                if ships:
                    found.why = "accuracy-failed" if _place(found, seed) in self.onnx else "export-failed"
                    found.failure = str(error)
                continue
            if ships:
                found.samples = samples
            if len(models) > 1 and samples is not None:
                found.replicates[str(seed)] = samples

    def _exported_and_evaluated(self, found: Evidence, label: str, seed: int | None, model: Model, ships: bool) -> Any:
        """Scores of every example; None where the exported model is not the trained one."""
        onnx, parity = deploy.export(self.context, label, model, self.tasks, found.precision)
        self.onnx[_place(found, seed)] = onnx
        if ships:
            found.training, found.parity, found.artefact = model.training, parity, onnx.key
        if not parity.passed:
            found.why = "parity-failed" if ships else found.why
            return None
        accuracy = measure.accuracy(self.context, label, onnx, self.tasks)
        self.kept[f"accuracy-{found.name}" if ships else f"accuracy-{found.name}-seed-{seed}"] = accuracy
        if ships:
            if self.suites is not None:
                self.kept |= beside.guardrails(self.context, found, onnx, self.suites)
            if found.arm != "teacher":
                teacher = self.shipped(self.evidence["teacher"])
                self.kept |= beside.tokens(self.context, found, teacher, onnx, self.tasks)
        return _samples(accuracy)

    def overlap(self) -> None:
        self.kept["overlap"] = measure.overlap(self.context, self.corpus, self.kept["accuracy-teacher"])

    def adequacy(self) -> Adequacy:
        """The teacher against chance and against each plain fine-tuned student that was measured so far."""
        teacher = self.evidence["teacher"]
        if teacher.samples is None:
            raise RunError(
                f"export: the teacher's ONNX logits differ from PyTorch's by {teacher.parity.max_abs_difference:.1e}, "
                f"more than export.parity_tolerance {teacher.parity.tolerance:.0e}; nothing can be compared to it"
            )
        return judgement.adequacy(self.spec, list(self.evidence.values()), self.chance)

    def students(self) -> None:
        """Distil, then export and evaluate each student, the controls first; stop if the teacher is inadequate."""
        self.models = train.distil(self.context, self.teacher, self.blocks, self.on_event)
        for name in sorted(self.evidence, key=lambda name: self.evidence[name].arm != "sft"):
            found = self.evidence[name]
            if found.arm == "teacher":
                continue
            models = {seed: self.models[found.arm, found.size, seed] for seed in self.spec.seeds}
            found.training = models[self.spec.seeds[0]].training
            self.measure_quality(name, models)
            made = (self.teacher, models[self.spec.seeds[0]], self.blocks, self.tasks)
            self.kept |= beside.layers(self.context, found, *made)
            if found.arm == "sft" and self.adequacy().action == "stopped":
                return

    def speed(self) -> None:
        """Latency and memory of everything that was evaluated, in turns; again without a model that fails."""
        known = dict(self.evidence)
        folders = {name: self.shipped(found) for name, found in known.items() if found.samples is not None}
        if self.serving and self.serving.timed(self.context):
            known[champion.NAME], folders[champion.NAME] = self.serving.evidence, self.serving.onnx
        while folders:
            try:
                self.kept["latency"] = measure.latency(self.context, folders, self.tasks)
                break
            except ModelFailed as error:
                say(f"{error}; the others are measured again without it")
                failed = known[error.model]
                failed.why, failed.failure = "latency-failed", error.reason
                del folders[error.model]
        for name in folders:
            known[name].latency = self.kept["latency"].json("latency.json")[name]

    def shipped(self, found: Evidence) -> Artefact:
        return self.onnx[_place(found, found.seed)]

    def result(self, run_id: str) -> Result:
        """Price and judge. Empty candidates keep the reason why."""
        serving = self.serving and self.serving.evidence
        with self.context.log.timed("gates") as entry:
            seen = pandas.read_parquet(self.kept["overlap"].path / "overlap.parquet")
            evidence, tokens = list(self.evidence.values()), self.blocks.meta["training_tokens"]
            judged = judgement.judge(self.spec, evidence, self.chance, seen, tokens, serving)
            entry["note"] = judged.verdicts
        meta = self.corpus.meta
        return Result(
            run_id=run_id,
            name=self.spec.name,
            title=self.spec.title,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            spec=self.spec.model_dump(mode="json"),
            spec_digest=self.spec.digest(),
            environment=environment.describe(self.spec.compute, Path(__file__).parent),
            data=DataSummary(
                source=meta["source"],
                digest=meta["digest"],
                documents=meta["documents"],
                training_documents=meta["training_documents"],
                held_out_documents=meta["valid_documents"] + meta["test_documents"],
                near_duplicates_removed=meta["near_duplicates_removed"],
                characters=meta["characters"],
                training_tokens=self.blocks.meta["training_tokens"],
                labels=meta["labels"],
            ),
            adequacy=judged.adequacy,
            recommendation=judged.recommendation,
            candidates=judged.candidates,
            champion=self.serving and self.serving.told(judged.beside_champion),
            comparisons=judged.comparisons,
            sizes=judged.sizes,
            assumptions=roi.assumptions(self.spec.cost, self.spec.teacher.serving),
            overrides=ledger.overrides(self.context.home / ledger.FOLDER, self.spec.name),
            stages=self.context.log.stages,
            evidence={name: artefact.key for name, artefact in self.kept.items()},
        )


def run(spec: Spec, root: Path) -> dict[str, Any]:
    """The PoC in the working folder `root`. Wrong input is told before any work is done."""
    home = Path(root).resolve() / ".featkd"
    preflight.check(spec, home)
    ledger.whole(home / ledger.FOLDER)
    return poc(spec, root)


@flow(name="poc", validate_parameters=False, persist_result=False)
def poc(spec: Spec, root: Path) -> dict[str, Any]:
    """One spec in; a run folder with result and report out. Returns what `featkd run` prints."""
    context = Context(spec, Path(root).resolve())
    context.sweep()
    run_id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
    run_dir = context.home / "runs" / run_id
    with Live(context, run_id) as live:
        work = Poc(context, live)
        work.prepare()
        work.measure_quality("teacher", {None: work.teacher})
        if work.serving:
            work.kept |= work.serving.measure(context, work.shipped(work.evidence["teacher"]), work.tasks, work.suites)
        begun = work.adequacy()
        work.overlap()
        if begun.action != "stopped":
            work.students()
        if work.adequacy().action != "stopped":
            work.speed()
        result = work.result(run_id)
        publish.report(context, result, run_dir)
        publish.link_candidates(run_dir, getattr(work, "models", {}), work.onnx)
        publish.link_evidence(run_dir, work.kept)
        tracked = tracking.log(context, result, run_dir, live.end())
    record = ledger.verdict(context.home / ledger.FOLDER, result)
    registered = promotion.offer(context, result, record)
    if how_small := sentence(result, load("en")):
        say(how_small)
    kept = {"record": record["number"], "hash": record["hash"]}
    return {**summary(result, run_dir, tracked), "ledger": kept, "registry": registered}


def _place(found: Evidence, seed: int | None) -> str:
    """Where its ONNX folder is found under the run's candidates/."""
    return f"{found.arm}-{found.size}/seed-{seed}/onnx/{found.precision}"


def _samples(accuracy: Artefact) -> Any:
    return pandas.read_parquet(accuracy.path / "samples.parquet")


def summary(result: Result, run_dir: Path, tracked: dict[str, Any]) -> dict[str, Any]:
    return {
        "run_id": result.run_id,
        "result": str(run_dir / "result.json"),
        "report": str(run_dir / publish.PAGES[result.spec["report"]["languages"][0]]),
        "verdicts": {
            name: found.verdict.verdict for name, found in result.candidates.items() if found.arm != "teacher"
        },
        "recommendation": result.recommendation.model_dump(mode="json"),
        "smallest": result.sizes and result.sizes.smallest,
        "adequate": result.adequacy.adequate,
        "mlflow": tracked,
    }
