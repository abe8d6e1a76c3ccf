"""What the teacher says of answers that a champion gave in service, and whether they are sane.

out/answers.parquet  one row per answer: file, line, time, tokens, feedback, and per token of the answer
    surprise      -log p_teacher, nats
    divergence    log p_champion - log p_teacher, nats: in the mean over answers that were sampled from the champion
                  the Kullback-Leibler divergence from champion to teacher
    disagreement  share of tokens that are not the teacher's first choice after those before it
and repetition, empty, drift, personal_data as in generations.py. Texts are not kept.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np

from featkd import spec
from featkd.data.tokens import Fitted, context_and_text, fitted, load_tokenizer
from featkd.deploy.session import OnnxModel
from featkd.measure.generations import flags_of, scripts
from featkd.measure.scoring import batches, judged_rows, left_pad

BATCH = 32
LONGEST = 4096  # tokens of prompt and answer that are looked at, where the models take more
OF_MODELS = ("surprise", "divergence", "disagreement")
KEPT = ("file", "line", "time", "feedback")


def rescore(
    rows: list[dict[str, Any]],
    teacher: Path,
    champion: Path,
    data: spec.Data,
    threads: int,
    device: Literal["cpu", "cuda"],
    out: Path,
) -> dict[str, Any]:
    """Write answers.parquet into `out`. rows: of data.logs.draw. teacher, champion: exported folders.

    Of what the models cannot take at once, the end of the prompt and the beginning of the answer are looked at.
    Returns {"answers", "cut": how many were too long}.
    """
    import pandas

    tokenizer = load_tokenizer(teacher)
    models = [OnnxModel(folder, threads, device) for folder in (teacher, champion)]
    window = min([LONGEST, *(model.max_positions for model in models if model.max_positions)])
    texts = [_text(row, tokenizer, data, window) for row in rows]
    (theirs, first), (mine, _) = (_log_probabilities(model, texts) for model in models)
    known, found = scripts([row["prompt"] for row in rows]), []
    for row, text, ours, other, greedy in zip(rows, texts, mine, theirs, first, strict=True):
        n = len(text.text)
        figures = (-other / n, (ours - other) / n, 1 - greedy / n) if n else (None, None, None)
        flags = flags_of(row["prompt"], row["response"], text.text, True, known)
        del flags["endless"]  # logs do not say whether an answer was cut off
        about = {name: row[name] for name in KEPT}
        found.append({**about, "tokens": n, **dict(zip(OF_MODELS, figures, strict=True)), **flags})
    table = pandas.DataFrame(found).astype(dict.fromkeys(["feedback", *OF_MODELS], float))
    table.to_parquet(out / "answers.parquet", index=False)
    return {"answers": len(found), "cut": sum(text.cut for text in texts)}


def _text(row: dict[str, Any], tokenizer: Any, data: spec.Data, window: int) -> Fitted:
    if not row["response"].strip():
        return Fitted([], [], False)
    context, answer = context_and_text(tokenizer, {"prompt": row["prompt"], "text": row["response"]}, data)
    return fitted(tokenizer, context, answer, window)


def _log_probabilities(model: OnnxModel, texts: list[Fitted]) -> tuple[np.ndarray, np.ndarray]:
    """Of each answer the log-likelihood in nats, and how many of its tokens are the first choice, both [texts]."""
    total, first = np.zeros(len(texts)), np.zeros(len(texts))
    lengths = [len(text.before) + len(text.text) for text in texts]
    order = sorted((at for at, text in enumerate(texts) if text.text), key=lambda at: -lengths[at])
    for batch in batches(order, lengths.__getitem__, lambda at: len(texts[at].text), model, BATCH):
        ids, mask = left_pad([(texts[at].before + texts[at].text)[:-1] for at in batch])
        keep = max(len(texts[at].text) for at in batch)
        for at, row in zip(batch, judged_rows(model.logits(ids, mask, keep)), strict=True):
            answer = texts[at].text
            total[at] = row.score(answer, keep - len(answer))[0]
            first[at] = (row.largest[keep - len(answer) :] == answer).sum()
    return total, first
