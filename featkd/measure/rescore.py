"""What the teacher says of answers that a champion gave in service, and whether they are sane.

out/answers.parquet  one row per answer: file, line, time, tokens, feedback, and per token of the answer
    surprise      -log p_teacher, nats
    divergence    log p_champion - log p_teacher, nats: in the mean over answers that were sampled from the champion
                  the Kullback-Leibler divergence from champion to teacher
    disagreement  share of tokens that are not the teacher's first choice after those before it
and repetition, empty, drift, personal_data as in generations.py. Texts are not kept.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from featkd import spec
from featkd.data.tokens import beginning, context_and_text, encode, encode_pairs, head, load_tokenizer, tail
from featkd.deploy.session import OnnxModel
from featkd.measure.generations import flags_of, scripts
from featkd.measure.scoring import batches, judged_rows, left_pad

BATCH = 32
LONGEST = 4096  # tokens of prompt and answer that are looked at, where the models take more
OF_MODELS = ("surprise", "divergence", "disagreement")
KEPT = ("file", "line", "time", "feedback")


@dataclass(frozen=True)
class Text:
    """Token ids. cut: the answer was longer."""

    context: list[int]
    answer: list[int]
    cut: bool = False

    def __len__(self) -> int:
        return len(self.context) + len(self.answer)


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
        n = len(text.answer)
        figures = (-other / n, (ours - other) / n, 1 - greedy / n) if n else (None, None, None)
        flags = flags_of(row["prompt"], row["response"], text.answer, True, known)
        del flags["endless"]  # logs do not say whether an answer was cut off
        about = {name: row[name] for name in KEPT}
        found.append({**about, "tokens": n, **dict(zip(OF_MODELS, figures, strict=True)), **flags})
    table = pandas.DataFrame(found).astype(dict.fromkeys(["feedback", *OF_MODELS], float))
    table.to_parquet(out / "answers.parquet", index=False)
    return {"answers": len(found), "cut": sum(text.cut for text in texts)}


def _text(row: dict[str, Any], tokenizer: Any, data: spec.Data, window: int) -> Text:
    if not row["response"].strip():
        return Text([], [])
    context, answer = context_and_text(tokenizer, {"prompt": row["prompt"], "text": row["response"]}, data)
    context = tail(tokenizer, context, window // 2)
    before = encode(tokenizer, [context])[0]
    before = beginning(tokenizer, before) + before
    room = window + 1 - len(before)  # the last token is not given to the models
    shown = head(tokenizer, answer, room)
    ((_, said),) = encode_pairs(tokenizer, [(context, shown)])
    return Text(before, said[:room], len(shown) < len(answer))


def _log_probabilities(model: OnnxModel, texts: list[Text]) -> tuple[np.ndarray, np.ndarray]:
    """Of each answer the log-likelihood in nats, and how many of its tokens are the first choice, both [texts]."""
    total, first = np.zeros(len(texts)), np.zeros(len(texts))
    order = sorted((at for at, text in enumerate(texts) if text.answer), key=lambda at: -len(texts[at]))
    for batch in batches(order, lambda at: len(texts[at]), lambda at: len(texts[at].answer), model, BATCH):
        ids, mask = left_pad([(texts[at].context + texts[at].answer)[:-1] for at in batch])
        keep = max(len(texts[at].answer) for at in batch)
        for at, row in zip(batch, judged_rows(model.logits(ids, mask, keep)), strict=True):
            answer = texts[at].answer
            total[at] = row.score(answer, keep - len(answer))[0]
            first[at] = (row.largest[keep - len(answer) :] == answer).sum()
    return total, first
