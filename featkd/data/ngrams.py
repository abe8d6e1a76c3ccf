"""Which runs of words stand in the training text: near-duplicates across the split, and tasks that were seen.

An example of a task counts as seen when at least half of its 8-grams stand in the training text (the method of PaLM,
arXiv 2204.02311 section 8, which asks for 70 %). What very many training documents hold is a form and no content: an
instruction before every question.
"""

import re
from collections import Counter
from collections.abc import Iterable

NGRAM = 8
SEEN = 0.5
FEW, FORM_SHARE = 5, 0.01
# scripts that set no spaces between words: Thai, Lao, Burmese, Khmer, Japanese, Chinese
UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
UNIT = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")  # one such character, or a word


def shares(texts: list[str], training: Iterable[str]) -> list[float]:
    """Of each text the share of its 8-grams that stand in `training`, 0 to 1.

    Forms are not counted; a text of forms alone is all in it. A text of fewer than 8 words is one 8-gram, which is
    found only where it is a whole document.
    """
    own = [_ngrams(text) for text in texts]
    wanted = set().union(*own)
    counts: Counter[int] = Counter()
    documents = 0
    for document in training:
        documents += 1
        counts.update(_ngrams(document) & wanted)
    form = {ngram for ngram, count in counts.items() if count > max(FEW, FORM_SHARE * documents)}
    seen = counts.keys() - form
    return [len(ngrams & seen) / len(ngrams - form) if ngrams - form else 1.0 for ngrams in own]


def _ngrams(text: str) -> set[int]:
    units = UNIT.findall(text.lower())
    return {hash(tuple(units[start : start + NGRAM])) for start in range(max(1, len(units) - NGRAM + 1))}
