"""Corpora, the teacher and the students of `quality.py`, trained by featkd's own engine.

The teacher on all cores, or the accelerator, once, while the other process waits; students in a process and thread
each, on the accelerator where there is one."""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas
import torch
from evidence import DEVICE, QUICK

from featkd import spec, specfile
from featkd.data import corpus as corpora
from featkd.data import tasks, tokens
from featkd.distill import engine
from featkd.distill.batches import block_losses
from featkd.distill.checkpoint import Checkpoints
from featkd.distill.forward import Forward
from featkd.distill.learner import Learner
from featkd.distill.runtime import Runtime, runtime
from featkd.models import student as students
from featkd.models.llama import llama_config
from featkd.store import artefact_key
from featkd.teaching import Distillation
from featkd.training import Optimisation, Shape

ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("QUALITY_CACHE", Path(tempfile.gettempdir()) / ("quality-quick" if QUICK else "quality")))
DATA = Path(os.environ.get("QUALITY_DATA", ROOT.parent / "shared" / "data"))
SEARCHED = "docstrings"  # the corpus of the search
FILES: dict[str, dict[str, Any]] = {
    "wikitext2": {"files": ["valid.txt", "test.txt"], "sample_by": "line", "min_chars": 100, "max_chars": 600},
    "tinystories": {"files": ["tinystories_lower_4M.txt"], "min_chars": 100, "max_chars": 600},
    "gsm8k": {"files": ["train.jsonl"], "prompt_field": "question", "response_field": "answer"},
}
SETTINGS: dict[str, Any] = {
    "vocabulary": 2048,
    "block": 128,
    "batch": 8,
    "tokens": 300_000,
    "little_blocks": 256,
    "held_out_blocks": 160,
    "examples": 200,
    "warmup": 0.05,
    "teacher": {"hidden_size": 192, "layers": 6, "heads": 6, "intermediate_size": 512},
    "teacher_tokens": 16_000_000,
    "teacher_batch": 16,
    "teacher_precision": "auto",  # of a processor that multiplies bf16 fast, bf16; the students are float32
    "teacher_learning_rate": 3e-3,
    "precision": "fp32",
    "student": {"hidden_size": 96, "layers": 3, "heads": 4, "intermediate_size": 256},
}
if DEVICE == "cuda":  # ten times the size
    SETTINGS |= {"vocabulary": 8192, "block": 256, "batch": 32, "tokens": 2_000_000, "held_out_blocks": 80}
    SETTINGS |= {"teacher": {"hidden_size": 512, "layers": 8, "heads": 8, "intermediate_size": 1376}}
    SETTINGS |= {
        "teacher_tokens": 24_000_000,
        "teacher_batch": 128,
        "teacher_learning_rate": 2e-3,
        "precision": "auto",
    }
    SETTINGS |= {"student": {"hidden_size": 256, "layers": 4, "heads": 4, "intermediate_size": 688}}
if QUICK:
    SETTINGS |= {"vocabulary": 512, "tokens": 20_000, "little_blocks": 32, "held_out_blocks": 16, "examples": 16}
    SETTINGS |= {
        "teacher_tokens": 150_000,
        "student": {"hidden_size": 32, "layers": 2, "heads": 2, "intermediate_size": 88},
    }
    SETTINGS |= {"teacher": {"hidden_size": 64, "layers": 4, "heads": 2, "intermediate_size": 172}}
SIZES = {
    "random_init": spec.Student(name="s", **SETTINGS["student"]),
    "copied_init": spec.Student(name="s", layers=SETTINGS["student"]["layers"], init="copy"),
    "little_data": spec.Student(name="s", **SETTINGS["student"]),
}


class Trial(NamedTuple):
    """A way to train: the arm, options of `distillation` and of `training`, and by what factor it is trained longer."""

    arm: str
    distillation: dict[str, Any]
    training: dict[str, Any]
    longer: float = 1.0

    def recipe(self) -> Distillation | None:
        wanted = Distillation(**{"guard": False, **self.distillation})
        return {"sft": None, "logit-kd": wanted.outputs_only(), "feature-kd": wanted}[self.arm]

    def optimisation(self) -> Optimisation:
        tokens = round(SETTINGS["tokens"] * self.longer)
        options = {"batch_size": SETTINGS["batch"], "warmup": SETTINGS["warmup"], "tokens": tokens}
        return Optimisation(**{**options, **self.training})

    def key(self) -> str:
        return spec.digest(self._asdict())[:12]


def told(line: str) -> None:
    print(time.strftime("%H:%M:%S"), line, file=sys.stderr, flush=True)


def made_by(settings: dict[str, Any]) -> str:
    """Of the settings and of the source that they are for."""
    return artefact_key(settings, ["data", "models", "align", "distill"], ["torch", "transformers"])[:8]


def place() -> Path:
    """Where what students of these settings need is, or will be."""
    students = ("student", "tokens", "little", "warm", "precision")
    return CACHE / made_by({key: value for key, value in SETTINGS.items() if not key.startswith(students)})


def prepare() -> Path:
    """A folder with tokenizer, token blocks and tasks per corpus, and one teacher that was trained on all of them."""
    own = place()
    if (own / "teacher" / "config.json").is_file():
        return own
    if not (own / "corpora.json").is_file():
        _texts(own)
    tokenizer, data = tokens.load_tokenizer(own / "tokenizer"), corpora_of(own)
    run, start = runtime(spec.Compute(precision=SETTINGS["teacher_precision"])), time.monotonic()
    together = np.concatenate([np.load(own / name / "train.npy") for name in data], axis=1)
    valid = np.concatenate([np.load(own / name / "valid.npy") for name in data], axis=1)
    told(f"{ {name: int(np.load(own / name / 'train.npy').shape[1]) for name in data} } training blocks")
    torch.manual_seed(0)
    config = llama_config(Shape(**SETTINGS["teacher"]), len(tokenizer), SETTINGS["block"], tokenizer.eos_token_id)
    training = Optimisation(
        tokens=SETTINGS["teacher_tokens"],
        batch_size=SETTINGS["teacher_batch"],
        learning_rate=SETTINGS["teacher_learning_rate"],
    )
    learner = Learner("teacher", _model(config), 0, None, training)
    checkpoints = Checkpoints(own / "checkpoints", own.name, every_s=300)
    engine.train([learner], None, together, valid, run, _now_and_then, checkpoints)
    learner.model.save_pretrained(own / "teacher")
    told(f"teacher in {time.monotonic() - start:.0f} s, validation loss {learner.curve[-1]['validation_loss']:.3f}")
    return own


def _texts(folder: Path) -> None:
    """Documents, tokenizer, token blocks and tasks."""
    folder.mkdir(parents=True, exist_ok=True)
    data = _data()
    for name, section in data.items():
        (folder / name).mkdir(exist_ok=True)
        corpora.build(section, folder / name)
    _tokenizer(folder, list(data))
    tokenizer = tokens.load_tokenizer(folder / "tokenizer")
    for name, section in data.items():
        _blocks(folder / name, tokenizer, section)
    (folder / "corpora.json").write_text(json.dumps(list(data)))


def corpora_of(folder: Path) -> list[str]:
    return json.loads((folder / "corpora.json").read_text())


def _now_and_then(step: int, steps: int, loss: float, tokens_per_s: float, **_: Any) -> None:
    if step % 100 == 0:
        told(f"teacher {step} of {steps} steps, loss {loss:.3f}, {tokens_per_s:.0f} tokens/s")


def _data() -> dict[str, spec.Data]:
    only = ["data.packages=[stdlib]"] if QUICK else ["data.max_documents=16000"]  # as much text as the others
    found = {SEARCHED: specfile.load(ROOT / "flows" / "specs" / "default.yaml", only).data}
    for name, options in FILES.items():
        files = [str(DATA / name / file) for file in options["files"]]
        if all(Path(file).is_file() for file in files):
            found[name] = spec.Data(**{**options, "files": files, "held_out": 0.08})
        else:
            told(f"{name}: not under {DATA}, left out; QUALITY_DATA names another folder")
    return found


def _tokenizer(folder: Path, names: list[str]) -> None:
    mixed = folder / "mixed"
    mixed.mkdir(exist_ok=True)
    frames = [pandas.read_parquet(folder / name / "documents.parquet") for name in names]
    pandas.concat(frames).to_parquet(mixed / "documents.parquet", index=False)
    tokens.train_tokenizer(mixed, SETTINGS["vocabulary"], "\n", SETTINGS["block"], folder / "tokenizer")


def _blocks(corpus: Path, tokenizer: Any, data: spec.Data) -> None:
    """train, valid and test blocks; the tasks on held-out documents."""
    tokens.pack(corpus, tokenizer, data, SETTINGS["block"], corpus)
    test = tokens._blocks(corpora.documents(corpus, "test"), tokenizer, data, SETTINGS["block"])
    np.save(corpus / "test.npy", test[:, : SETTINGS["held_out_blocks"]])
    quality = spec.Quality(tasks=["heldout_continuation"], max_examples=SETTINGS["examples"], context_tokens=48)
    unigram = np.zeros(len(tokenizer))
    tasks.build(corpus, tokenizer, unigram, data, quality, SETTINGS["block"], corpus)


def _model(config: Any) -> Any:
    from transformers import AutoModelForCausalLM, logging

    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def job(setting: str, corpus: str, seed: int, trials: list[Trial]) -> list[dict[str, Any]]:
    """Students of these trials, trained side by side on one pass of the teacher; a row each."""
    from transformers import AutoModelForCausalLM, logging

    logging.disable_progress_bar()
    folder, run = prepare(), runtime(spec.Compute(threads=1, precision=SETTINGS["precision"]))
    teacher = AutoModelForCausalLM.from_pretrained(folder / "teacher")
    blocks = np.load(folder / corpus / "train.npy")
    order = np.random.default_rng(seed).permutation(blocks.shape[1])
    blocks = blocks[:, order[: SETTINGS["little_blocks"] if setting == "little_data" else None]]
    learners = [
        Learner(t.key(), students.build(SIZES[setting], teacher, seed)[0], seed, t.recipe(), t.optimisation())
        for t in trials
    ]
    valid = np.load(folder / corpus / "valid.npy")[:, :16]
    engine.train(learners, teacher, blocks, valid, run, lambda **fields: None)
    confirming = corpus != SEARCHED
    elsewhere = (
        [name for name in corpora_of(folder) if name != corpus] if confirming and setting == "random_init" else []
    )
    rows = []
    for trial, learner in zip(trials, learners, strict=True):
        row = {"trial": trial.key(), "setting": setting, "corpus": corpus, "seed": seed}
        row["losses"] = {name: held_out(learner.model, folder / name, run) for name in [corpus, *elsewhere]}
        if confirming:
            row["right"] = continuation(learner.model, folder, corpus)
        rows.append(row)
    return rows


def of_teacher() -> dict[str, float]:
    """The teacher's held-out perplexity on every corpus."""
    from transformers import AutoModelForCausalLM

    folder, run = prepare(), runtime(spec.Compute(threads=1, precision=SETTINGS["precision"]))
    teacher = AutoModelForCausalLM.from_pretrained(folder / "teacher").to(run.device)
    sums = {name: np.sum(held_out(teacher, folder / name, run), axis=0) for name in corpora_of(folder)}
    return {name: float(np.exp(nats / count)) for name, (nats, count) in sums.items()}


def held_out(model: Any, corpus: Path, run: Runtime) -> list[list[float]]:
    """Nats and tokens of every held-out block [blocks, 2]."""
    return block_losses(Forward(model), np.load(corpus / "test.npy"), run, 16).tolist()


def continuation(model: Any, folder: Path, corpus: str) -> list[int]:
    """Whether the true passage is the one that its context makes likeliest, compared with no context (0 or 1 each)."""
    tokenizer, end = tokens.load_tokenizer(folder / "tokenizer"), 0
    examples = pandas.read_parquet(folder / corpus / "heldout_continuation.parquet").to_dict("records")
    pairs = tokens.encode_pairs(tokenizer, [(one["context"], choice) for one in examples for choice in one["choices"]])
    scores = _log_likelihoods(model, pairs) - _log_likelihoods(model, [([end], text) for _, text in pairs])
    chosen = scores.reshape(len(examples), -1).argmax(1)
    return [int(choice == one["gold"]) for choice, one in zip(chosen, examples, strict=True)]


@torch.no_grad()
def _log_likelihoods(model: Any, pairs: list[tuple[list[int], list[int]]]) -> np.ndarray:
    """Of each text behind its context [pairs]."""
    model.eval()
    found = np.zeros(len(pairs))
    longest_first = sorted(range(len(pairs)), key=lambda number: -sum(map(len, pairs[number])))
    for start in range(0, len(pairs), 32):
        chosen = longest_first[start : start + 32]
        rows = [torch.tensor([*pairs[n][0], *pairs[n][1]][-SETTINGS["block"] :]) for n in chosen]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)
        logits = model(input_ids=ids, use_cache=False).logits
        for number, row, its in zip(chosen, rows, logits, strict=True):
            length = len(pairs[number][1])
            its = its[len(row) - length - 1 : len(row) - 1].log_softmax(-1)
            found[number] = its.gather(-1, row[-length:, None].to(its.device)).sum()
    return found


def alone_s(trial: Trial) -> float:
    """Seconds of the arm's training alone, a tenth of its length, the teacher's pass included: of the processor, or
    on an accelerator by the clock."""
    from transformers import AutoModelForCausalLM, logging

    logging.disable_progress_bar()
    folder, run = prepare(), runtime(spec.Compute(threads=1, precision=SETTINGS["precision"]))
    teacher = AutoModelForCausalLM.from_pretrained(folder / "teacher")
    blocks = np.load(folder / SEARCHED / "train.npy")
    student = students.build(SIZES["random_init"], teacher, 0)[0]
    learner = Learner("alone", student, 0, trial.recipe(), trial._replace(longer=0.1 * trial.longer).optimisation())
    clock = time.process_time if run.device == "cpu" else run.clock
    start = clock()
    engine.train([learner], teacher, blocks, blocks[:, :1], run, lambda **fields: None)
    return clock() - start
