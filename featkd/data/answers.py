"""Quality tasks of prompt and response data: is the generated answer the right one, which of the given ones is chosen.

heldout_exact_match    the answer that is generated is the response, but for capitals and punctuation around it
heldout_f1             words that the generated answer and the response share: SQuAD's F1 (arXiv 1606.05250)
heldout_choice         which of the given answers (data.choices_field, else all responses there are) is likeliest
"""

import json
import re
from collections import Counter
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

from featkd import spec
from featkd.data.corpus import documents
from featkd.data.ngrams import UNIT
from featkd.data.tokens import encode, tail, turn_end
from featkd.errors import InputError

SIGNS = ".,;:!?\"'()[]{}…。、．，！？：；「」『』（）【】“”‘’«»"  # around words, and not the like of + or -
AROUND = f"[\\s{re.escape(SIGNS)}]+"
EXACT = {"ignore_case": True, "regexes_to_ignore": [f"^{AROUND}|{AROUND}$"]}
ARTICLES = {"a", "an", "the"}
KINDS = 30  # most responses that there may be to choose among
COMMON = 20  # answers that are tried as the one to give always
AMONG_CHOICES = {  # lm-eval's configuration of examples {context, choices, gold}
    "output_type": "multiple_choice",
    "doc_to_text": "context",
    "doc_to_choice": "choices",
    "doc_to_target": "gold",
    "target_delimiter": "",
}
Made = tuple[dict[str, Any], list[dict[str, Any]], float]  # lm-eval's configuration, examples, chance


def f1(answer: str, truth: str) -> float:
    """Harmonic mean of precision and recall over words, without capitals, punctuation around them and English articles.

    SQuAD's, but for punctuation inside of words: 1.5 is not 15. In scripts without spaces a character is a word.
    Nothing against nothing is 1.
    """
    said, true = _words(answer), _words(truth)
    if not (said and true):
        return float(said == true)
    shared = sum((Counter(said) & Counter(true)).values())
    return 2 * shared / (len(said) + len(true))


def exact(answer: str, truth: str) -> float:
    """As lm-eval's exact_match with `EXACT`."""
    said, true = (re.sub(EXACT["regexes_to_ignore"][0], "", text).lower() for text in (answer, truth))
    return float(said == true)


def about(row: dict[str, Any]) -> dict[str, Any]:
    """What an example says of where it is from."""
    return {"group": row["group"], "class": row["label"]}


def _words(text: str) -> list[str]:
    words = (word.strip(SIGNS) for word in UNIT.findall(text.lower()))
    return [word for word in words if word and word not in ARTICLES]


def generated(
    metric: str, rows: list[dict], tokenizer: Any, data: spec.Data, quality: spec.Quality, window: int
) -> Made:
    """heldout_exact_match or heldout_f1. Chance: the same answer to every prompt, the best of the commonest."""
    _check_prompts(data)
    most = min(quality.answer_tokens, window // 2)
    ends = [end] if (end := turn_end(tokenizer, data)) else []
    examples = []
    for row, ids in zip(rows, encode(tokenizer, [row["text"] for row in rows]), strict=True):
        if row["context"] and row["text"].strip() and len(ids) <= most and len(examples) < quality.max_examples:
            context = tail(tokenizer, row["context"], window - most - 2)  # 2: begin and end
            examples.append({"context": context, "answer": row["text"].strip(), **about(row)})
    score, options = {
        "exact_match": (exact, EXACT),
        "token_f1": (f1, {}),
    }[metric]
    config = {
        "output_type": "generate_until",
        "doc_to_text": "context",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": ends, "max_gen_toks": most + 1, "do_sample": False},  # 1: the end token
        "filter_list": [{"name": "none", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}],
        "metric_list": [{"metric": metric, **options}],
    }
    return config, examples, _best_constant([example["answer"] for example in examples], score)


def _best_constant(answers: list[str], score: Callable[[str, str], float]) -> float:
    """Mean score of the best answer to give always, of the commonest."""
    common = [answer for answer, _ in Counter(answers).most_common(COMMON)]
    return max((sum(score(one, true) for true in answers) / len(answers) for one in common), default=0.0)


def chosen(rows: list[dict], tokenizer: Any, data: spec.Data, quality: spec.Quality, window: int, corpus: Path) -> Made:
    """heldout_choice. Of responses there may be `KINDS`; then each is the right one as often as the others."""
    _check_prompts(data)
    kinds: list[str] = []
    if not data.choices_field:
        kinds = sorted({row["text"] for part in ("train", "test") for row in documents(corpus, part)})
        if not 2 <= len(kinds) <= KINDS:
            raise InputError(
                f"quality.tasks: heldout_choice has {len(kinds)} different responses to choose from, 2 to {KINDS} are "
                "possible; name the column with each prompt's answers in data.choices_field"
            )
    examples = []
    for row in rows:
        lead = row["text"].removesuffix(row["response"])
        answers = kinds or [answer.strip() for answer in json.loads(row["choices"] or "[]")]
        if row["context"] and row["response"] in answers and len(answers) > 1:
            choices = [lead + answer for answer in answers]
            longest = max(map(len, encode(tokenizer, choices)))
            context = tail(tokenizer, row["context"], max(1, window - 1 - longest))
            gold = answers.index(row["response"])
            examples.append({"context": context, "choices": choices, "gold": gold, **about(row)})
    if kinds:
        examples = balanced(examples, "gold", quality.max_examples)
        chance = max(Counter(example["gold"] for example in examples).values(), default=0) / max(1, len(examples))
    else:
        examples = examples[: quality.max_examples]
        chance = sum(1 / len(example["choices"]) for example in examples) / max(1, len(examples))
    return {**AMONG_CHOICES, "metric_list": [{"metric": "acc" if kinds else "acc_norm"}]}, examples, chance


def balanced(rows: list[dict], key: str, most: int) -> list[dict]:
    """At most `most` rows, of each class as many: else always naming the commonest would look like skill."""
    by_class: dict[Any, list[dict]] = {}
    for row in rows:
        by_class.setdefault(row[key], []).append(row)
    turns = zip_longest(*(by_class[kind] for kind in sorted(by_class)))
    return [row for turn in turns for row in turn if row is not None][:most]


def _check_prompts(data: spec.Data) -> None:
    if not data.prompt_field:
        raise InputError("quality.tasks: answers need prompts: set data.prompt_field and data.response_field")
