"""Corpora, teachers and students for `norms.py`: a training loop of its own, small and on one thread."""

import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import norms_forms as forms
import numpy as np
import torch
import torch.nn.functional as F
from evidence import QUICK

from featkd import spec, specfile
from featkd.data import corpus as corpora
from featkd.models.llama import llama_config
from featkd.training import Shape

ROOT = Path(__file__).parents[2]
CACHE = Path(tempfile.gettempdir()) / ("norms-quick" if QUICK else "norms")
DATA = Path(os.environ.get("NORMS_DATA", ROOT.parent / "shared" / "data"))
FILES = {"wikitext2": ["valid.txt", "test.txt"], "tinystories": ["tinystories_lower_4M.txt"]}
END = "<|endoftext|>"
PAIRS = [(0, 0), (1, 2), (2, 4)]  # the embedding, one third, two thirds: `uniform` for 3 blocks under 6
SETTINGS: dict[str, Any] = {
    "vocabulary": 2048,  # that of the default PoC; 4,096 would take half as long again
    "block": 128,
    "batch": 8,
    "learning_rate": 3e-3,
    "ce_weight": 0.1,
    "decay": 0.25,
    "valid_blocks": 256,
    "teacher": {"hidden_size": 160, "layers": 6, "heads": 5, "intermediate_size": 432},
    "teacher_steps": 1000,
    "student": {"hidden_size": 96, "layers": 3, "heads": 4, "intermediate_size": 256},
    "student_steps": 240,
}
if QUICK:
    SETTINGS |= {
        "vocabulary": 512,
        "block": 64,
        "valid_blocks": 16,
        "teacher": {"hidden_size": 48, "layers": 6, "heads": 3, "intermediate_size": 128},
        "teacher_steps": 100,
        "student": {"hidden_size": 32, "layers": 3, "heads": 2, "intermediate_size": 88},
        "student_steps": 40,
    }


def texts(corpus: str) -> list[list[str]]:
    """Training and held-out documents; those of a file are its lines, the last 6 % held out."""
    if corpus == "docstrings":
        only = ["data.packages=[stdlib]"] if QUICK else []
        data = specfile.load(ROOT / "flows" / "specs" / "default.yaml", only).data
        with tempfile.TemporaryDirectory() as folder:
            corpora.build(data, Path(folder))
            return [[row["text"] for row in corpora.documents(Path(folder), part)] for part in ("train", "valid")]
    lines = [line.strip() for file in FILES[corpus] for line in (DATA / corpus / file).read_text("utf-8").splitlines()]
    documents = [line for line in lines if len(line) >= 40]  # no headings
    cut = round(0.94 * len(documents))
    return [documents[:cut], documents[cut:]]


def prepare(corpus: str) -> Path:
    """A folder with the corpus in blocks of tokens and a teacher trained on it; made once."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    torch.set_num_threads(1)
    made_by = {key: value for key, value in SETTINGS.items() if not key.startswith(("student", "decay", "ce"))}
    folder = CACHE / f"{corpus}-{spec.digest(made_by)[:8]}"
    if (folder / "teacher.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    start, (training, held_out) = time.monotonic(), texts(corpus)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    options = {"special_tokens": [END], "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    trainer = trainers.BpeTrainer(vocab_size=SETTINGS["vocabulary"], show_progress=False, **options)
    tokenizer.train_from_iterator(training, trainer)
    for part, documents in (("train", training), ("valid", held_out)):
        ids = np.concatenate([np.array([*found.ids, 0], np.int64) for found in tokenizer.encode_batch(documents)])
        np.save(folder / f"{part}.npy", ids[: len(ids) // SETTINGS["block"] * SETTINGS["block"]])
    teacher = model("teacher", 0)
    optimiser = adam(list(teacher.parameters()))
    for step, ids in enumerate(batches(folder, 0, SETTINGS["teacher_steps"])):
        logits = teacher(input_ids=ids, use_cache=False).logits[:, :-1]
        F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        update(optimiser, step / SETTINGS["teacher_steps"])
    teacher.save_pretrained(folder / "teacher")
    row = measured([teacher], teacher, folder)[0]
    row = {"teacher_loss": row["loss"], "teacher_norms": row["norms"], "teacher_norm_spreads": row["norm_spreads"]}
    (folder / "teacher.json").write_text(json.dumps(row))
    told(f"teacher of {corpus} in {time.monotonic() - start:.0f} s: {row}")
    return folder


def model(role: str, seed: int) -> Any:
    from transformers import AutoModelForCausalLM, logging

    logging.disable_progress_bar()
    torch.manual_seed(seed)
    config = llama_config(Shape(**SETTINGS[role]), SETTINGS["vocabulary"], SETTINGS["block"], 0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def told(line: str) -> None:
    print(time.strftime("%H:%M:%S"), line, file=sys.stderr, flush=True)


def batches(folder: Path, seed: int, steps: int) -> Any:
    """Ids [batch, block]: shuffled epochs."""
    blocks, rng = np.load(folder / "train.npy").reshape(-1, SETTINGS["block"]), np.random.default_rng(seed)
    needed = steps * SETTINGS["batch"]
    order = np.concatenate([rng.permutation(len(blocks)) for _ in range(math.ceil(needed / len(blocks)))])
    for chosen in order[:needed].reshape(steps, -1):
        yield torch.from_numpy(blocks[chosen])


def adam(parameters: list[torch.Tensor]) -> torch.optim.AdamW:
    matrices, others = [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=SETTINGS["learning_rate"], betas=(0.9, 0.95), fused=True)


def update(optimiser: torch.optim.AdamW, progress: float) -> None:
    """Clipped; linear warm-up over 5 %, then a cosine to a tenth."""
    torch.nn.utils.clip_grad_norm_([p for group in optimiser.param_groups for p in group["params"]], 1.0)
    cosine = 0.1 + 0.45 * (1 + math.cos(math.pi * max(0.0, progress - 0.05) / 0.95))
    for group in optimiser.param_groups:
        group["lr"] = SETTINGS["learning_rate"] * min(cosine, (progress + 0.001) / 0.05)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


class Learner:
    def __init__(self, name: str, seed: int, components: list[torch.Tensor]):
        self.name, self.form, self.cpu_s = name, forms.form(name), 0.0
        self.model, self.components = model("student", seed), components
        shape = (SETTINGS["teacher"]["hidden_size"], SETTINGS["student"]["hidden_size"])
        learned = self.form.projector == "learned"
        self.projectors = [torch.empty(shape, requires_grad=learned) for _ in PAIRS]
        for projector in self.projectors:
            torch.nn.init.orthogonal_(projector, generator=torch.Generator().manual_seed(seed))
        self.shifts = [torch.zeros(1, requires_grad=True) for _ in PAIRS]
        self.optimiser = adam([*self.model.parameters(), *(self.projectors if learned else []), *self.shifts])

    def step(self, ids: torch.Tensor, targets: torch.Tensor, taught: Any, order: torch.Tensor, progress: float) -> None:
        start = time.process_time()
        output = self.model(input_ids=ids, use_cache=False, output_hidden_states=True)
        loss = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), targets)  # its gradient is that of KL and CE
        strength = min(1.0, (1 - progress) / SETTINGS["decay"])
        for place in range(len(PAIRS)) if self.form.terms else ():
            pair = self.pair(place, output.hidden_states, taught, first=progress == 0)
            loss = loss + strength / len(PAIRS) * self.form.loss(pair, order, progress)
        loss.backward()
        update(self.optimiser, progress)
        self.cpu_s += time.process_time() - start

    def pair(self, place: int, hidden: Any, taught: Any, first: bool) -> forms.Pair:
        (i, j), (teacher, teacher_hidden) = PAIRS[place], taught
        s, t = hidden[i].flatten(0, 1), teacher_hidden[j].flatten(0, 1)
        if first:
            self.shifts[place].data.fill_(float(forms.size(t).mean() / forms.size(s.detach()).mean())).log_()
        p, target = F.linear(s, self.projectors[place]), t
        if self.form.projector == "pca":
            p, target = s, t @ self.components[place]
        gains = (m.model.layers[n].input_layernorm.weight for m, n in ((self.model, i), (teacher, j)))
        return forms.Pair(s, p, target, t, *gains, self.shifts[place])


def job(corpus: str, seed: int, names: list[str]) -> list[dict[str, Any]]:
    """Students of these forms, trained side by side; a row each."""
    from transformers import AutoModelForCausalLM, logging

    folder = prepare(corpus)
    logging.disable_progress_bar()
    teacher = AutoModelForCausalLM.from_pretrained(folder / "teacher").requires_grad_(False).eval()
    components = principal(teacher, folder)
    learners = [Learner(name, seed, components) for name in names]
    shuffle, steps = torch.Generator().manual_seed(seed), SETTINGS["student_steps"]
    for step, ids in enumerate(batches(folder, seed, steps)):
        output = teacher(input_ids=ids, use_cache=False, output_hidden_states=True)
        targets = output.logits[:, :-1].softmax(-1).flatten(0, 1)
        truth = ids[:, 1:].reshape(-1, 1)
        targets.scatter_add_(-1, truth, torch.full(truth.shape, SETTINGS["ce_weight"]))
        order = torch.randperm(ids.numel(), generator=shuffle)
        for learner in learners:
            learner.step(ids, targets, (teacher, output.hidden_states), order, step / steps)
    found = measured([learner.model for learner in learners], teacher, folder)
    same = {"settings": spec.digest(SETTINGS)[:8], "corpus": corpus, "seed": seed}
    return [{**same, "form": x.name, **row, "cpu_s": x.cpu_s} for x, row in zip(learners, found, strict=True)]


@torch.no_grad()
def principal(teacher: Any, folder: Path) -> list[torch.Tensor]:
    """Per pair the directions [D, d] that hold most of the teacher's states, from 8 batches."""
    states = [teacher(input_ids=ids, output_hidden_states=True).hidden_states for ids in batches(folder, 0, 8)]
    together = [torch.cat([hidden[j].flatten(0, 1) for hidden in states]) for _, j in PAIRS]
    return [torch.linalg.eigh(t.T @ t).eigenvectors[:, -SETTINGS["student"]["hidden_size"] :] for t in together]


@torch.no_grad()
def measured(students: list[Any], teacher: Any, folder: Path) -> list[dict[str, Any]]:
    """Held-out loss and KL from the teacher (nats per token); norms of the states: mean, spread over tokens relative
    to it, and the correlation of their logarithms with the teacher's, mean over the pairs."""
    blocks = torch.from_numpy(np.load(folder / "valid.npy")).reshape(-1, SETTINGS["block"])[: SETTINGS["valid_blocks"]]
    sums, sizes = np.zeros((len(students), 2)), [[] for _ in range(len(students) + 1)]
    for ids in blocks.split(SETTINGS["batch"]):
        outputs = [m(input_ids=ids, use_cache=False, output_hidden_states=True) for m in (*students, teacher)]
        log_p, *log_q = (x.logits[:, :-1].log_softmax(-1).flatten(0, 1) for x in (outputs[-1], *outputs[:-1]))
        for place, q in enumerate(log_q):
            losses = F.nll_loss(q, ids[:, 1:].flatten()), F.kl_div(q, log_p, log_target=True, reduction="batchmean")
            sums[place] += [float(loss) * len(ids) / len(blocks) for loss in losses]
        for place, x in enumerate(outputs):  # without the last state, which has been through a norm layer
            sizes[place].append(torch.stack([h.flatten(0, 1).norm(dim=-1) for h in x.hidden_states[:-1]]))
    norms = [torch.cat(found, dim=1) for found in sizes]
    rows = []
    for (loss, kl), own in zip(sums, norms[:-1], strict=True):
        similar = [torch.corrcoef(torch.stack([own[i], norms[-1][j]]).log())[0, 1] for i, j in PAIRS]
        row = {"loss": float(loss), "kl": float(kl), "norm_correlation": float(sum(similar) / len(PAIRS))}
        row["norm_at_two_thirds"] = float(own[PAIRS[-1][0]].mean())
        rows.append(row | {"norms": own.mean(1).tolist(), "norm_spreads": (own.std(1) / own.mean(1)).tolist()})
    return rows
