"""What of the teacher is in a student: its next tokens on held-out text, and its representations.

out/tokens.parquet  one row per token of held-out text: group (its document), kl, same (as the teacher's first choice)
out/layers.json     {"tokens", "before": Layers, "after": Layers}, see featkd.behaviour
"""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from featkd import spec
from featkd.align.layers import similarities
from featkd.behaviour import Layers, Transfer
from featkd.deploy.session import OnnxModel
from featkd.distill.batches import probe
from featkd.distill.runtime import Runtime
from featkd.measure.scoring import batches, left_pad
from featkd.models import given, student

BATCH = 16
OF_TOKENS = 8192  # tokens for next-token distributions, in order of the texts
STATES_BYTES = 4e9  # of the teacher's states that are held at once: of wide models fewer tokens are looked at
OF_LAYERS = 1024  # for CKA, whose cost is their square
RIDGE = 1e-3  # of the mean variance, for the linear maps
PART = 128  # positions whose distributions are compared at a time
Texts = list[dict[str, Any]]


def tokens(teacher: Path, candidate: Path, texts: Texts, threads: int, device: str, out: Path) -> dict[str, Any]:
    """Write tokens.parquet: two exported folders on texts.json of featkd.data.tasks. Of vocabularies that are padded
    differently the shared part counts."""
    import pandas

    texts = _first(texts, OF_TOKENS)
    models = [OnnxModel(folder, threads, device) for folder in (teacher, candidate)]
    vocabulary = min(model.vocab_size for model in models)
    largest = max(models, key=lambda model: model.vocab_size)
    lengths = [len(text["before"]) + len(text["text"]) for text in texts]
    order, tables = sorted(range(len(texts)), key=lambda at: -lengths[at]), []
    for batch in batches(order, lengths.__getitem__, lambda at: len(texts[at]["text"]), largest, BATCH):
        ids, mask = left_pad([(texts[at]["before"] + texts[at]["text"])[:-1] for at in batch])
        keep = min(ids.shape[1], max(len(texts[at]["text"]) for at in batch))
        theirs, mine = (torch.from_numpy(model.logits(ids, mask, keep)[..., :vocabulary]) for model in models)
        for at, p, q in zip(batch, theirs, mine, strict=True):
            n = min(len(texts[at]["text"]), lengths[at] - 1)  # the first token of a text without context has none
            tables.append(pandas.DataFrame({"group": texts[at]["group"], **_compared(p[-n:], q[-n:])}))
    pandas.concat(tables, ignore_index=True).to_parquet(out / "tokens.parquet", index=False)
    return {"tokens": sum(map(len, tables))}


def _compared(theirs: torch.Tensor, mine: torch.Tensor) -> dict[str, np.ndarray]:
    """logits [tokens, vocab] -> kl from the first to the second in nats, and whether their largest is the same."""
    kl = []
    for p, q in zip(theirs.split(PART), mine.split(PART), strict=True):
        log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
        kl.append((log_p.exp() * (log_p - log_q)).sum(-1))
    return {"kl": torch.cat(kl).numpy(), "same": (theirs.argmax(-1) == mine.argmax(-1)).numpy()}


def layers(
    teacher: Path,
    model: Path,
    size: spec.Student,
    seed: int,
    blocks: Path,
    probe_tokens: int,
    texts: Texts,
    device: Literal["cpu", "cuda"],
    out: Path,
) -> dict[str, Any]:
    """Write layers.json. teacher, model: Hugging Face folders. size, seed, blocks, probe_tokens: what the student's
    first weights were made of."""
    of_teacher, first = (
        given.load(teacher),
        probe(np.load(blocks / "train.npy"), probe_tokens, Runtime("cpu", bf16=False)),
    )
    config = of_teacher.config
    texts = _first(texts, int(STATES_BYTES / 4 / config.hidden_size / (config.num_hidden_layers + 1)))
    begun, _ = student.build(size, of_teacher, seed, first)
    theirs = _states(of_teacher, texts, device)
    found: dict[str, Any] = {"tokens": len(theirs[0])}
    del of_teacher
    for name, its in (("before", begun), ("after", given.load(model))):
        found[name] = beside(_states(its, texts, device), theirs).model_dump()
    (out / "layers.json").write_text(json.dumps(found))
    return {"tokens": found["tokens"]}


def told(folder: Path) -> Transfer:
    """layers.json as the result has it."""
    return Transfer.model_validate(json.loads((folder / "layers.json").read_text()))


def beside(mine: list[torch.Tensor], theirs: list[torch.Tensor]) -> Layers:
    """States [tokens, hidden] of every layer of student and teacher, of the same tokens in the same order."""
    few = np.linspace(0, len(theirs[0]) - 1, min(OF_LAYERS, len(theirs[0]))).astype(int)
    last = len(mine) - 1
    maps = [_mapped(s, theirs[round(at / max(1, last) * (len(theirs) - 1))]) for at, s in enumerate(mine)]
    return Layers(
        cka=[
            [round(one, 4) for one in row]
            for row in similarities([s[few] for s in mine], [t[few] for t in theirs]).tolist()
        ],
        cosine=[round(cosine, 4) for cosine, _ in maps],
        norm_ratio=[round(ratio, 4) for _, ratio in maps],
    )


def _mapped(mine: torch.Tensor, theirs: torch.Tensor) -> tuple[float, float]:
    """(cosine, norm ratio) of the best linear map of `mine` and `theirs`: fitted on the first half of the text, found
    on the second."""
    half = len(mine) // 2
    x, y = mine.double(), theirs.double()
    x, y = x - x[:half].mean(0), y - y[:half].mean(0)
    gram = x[:half].T @ x[:half]
    gram.diagonal().add_(RIDGE * float(gram.diagonal().mean()) + torch.finfo(torch.float64).tiny)
    made, true = x[half:] @ torch.linalg.solve(gram, x[:half].T @ y[:half]), y[half:]
    cosine = torch.nn.functional.cosine_similarity(made, true, dim=-1)
    return float(cosine.mean()), float(made.norm(dim=-1).mean() / true.norm(dim=-1).mean())


@torch.no_grad()
def _states(model: Any, texts: Texts, device: str) -> list[torch.Tensor]:
    """[tokens, hidden] of every layer, of the texts one after the other, in float32 on the processor."""
    model = model.eval().to(device)
    found: list[list[torch.Tensor]] = []
    for text in texts:
        ids = torch.tensor([text["before"] + text["text"]], device=device)[:, :-1]
        hidden = model.base_model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
        found.append([state[0, -len(text["text"]) :].float().cpu() for state in hidden])
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def _first(texts: Texts, most: int) -> Texts:
    """As many as make `most` tokens, one at least."""
    ends = np.cumsum([len(text["text"]) for text in texts])
    return texts[: max(1, int((ends <= most).sum()))]
