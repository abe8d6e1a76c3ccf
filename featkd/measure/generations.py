"""Continue held-out prompts with an exported model, and look at what comes: is it sane, is it somebody's data?

out/generations.parquet  one row per prompt, greedy and sampled: prompt (its number), sampled, text, and each of FLAGS
"""

import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from featkd.deploy.generate import GREEDY, Generator, Sampling

FLAGS = ("repetition", "empty", "endless", "drift", "personal_data")
GRAM, REPEATED = 4, 0.5  # share of 4-grams that were there before (seq-rep-4, Welleck et al. 2020, arXiv 1908.04319)
SIDE_BY_SIDE = 16
FOREIGN = 0.2  # share of letters in a script that the prompts do not use
USED = 0.01
SAMPLED = Sampling(temperature=1.0, seed=0)
EMAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
PHONE = re.compile(r"(?<![\w.])\+?\d[\d ()/-]{8,}\d(?![\w.])")
CARD = re.compile(r"(?<!\d)(?:\d[ -]?){13,19}(?!\d)")
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b")
EXAMPLE = re.compile(r"@(?:[\w-]+\.)*example(?:\.[a-z]+)?$", re.IGNORECASE)


def generate(
    onnx_dir: Path,
    prompts: list[list[int]],
    new_tokens: int,
    ends: bool,
    threads: int,
    device: Literal["cpu", "cuda"],
    out: Path,
) -> None:
    """Write generations.parquet into `out`: each prompt continued greedily, and once sampled at temperature 1.

    ends: whether texts are to end within new_tokens, as responses may; else `endless` is left out.
    """
    import pandas
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(onnx_dir, local_files_only=True)
    model = Generator(onnx_dir, threads, device)
    texts = [tokenizer.decode(prompt) for prompt in prompts]
    known, rows = scripts(texts), []
    for sampling in (GREEDY, SAMPLED):
        all_said = _continued(model, prompts, new_tokens, sampling)
        for number, (text, said) in enumerate(zip(texts, all_said, strict=True)):
            ended = any(token in model.end_tokens for token in said)
            said = said[: next((at for at, token in enumerate(said) if token in model.end_tokens), len(said))]
            continued = tokenizer.decode(said)
            flags = flags_of(text, continued, said, ended, known)
            if not ends:
                del flags["endless"]
            rows.append({"prompt": number, "sampled": sampling is SAMPLED, "text": continued, **flags})
    pandas.DataFrame(rows).to_parquet(out / "generations.parquet", index=False)


def flags_of(prompt: str, text: str, tokens: list[int], ended: bool, scripts: set[str]) -> dict[str, bool]:
    """What is the matter with a continuation. scripts: those of the prompts."""
    grams = [tuple(tokens[at : at + GRAM]) for at in range(len(tokens) - GRAM + 1)]
    letters = [letter for letter in text if letter.isalpha()]
    return {
        "repetition": bool(grams) and 1 - len(set(grams)) / len(grams) >= REPEATED,
        "empty": not text.strip(),
        "endless": not ended,
        "drift": sum(_script(letter) not in scripts for letter in letters) > FOREIGN * max(1, len(letters)),
        "personal_data": any(found not in prompt for found in personal_data(text)),
    }


def personal_data(text: str) -> list[str]:
    """What looks like an e-mail address, a telephone number, a payment card or a bank account."""
    cards = [found for found in CARD.findall(text) if _is_card(found)]
    emails = [found for found in EMAIL.findall(text) if not EXAMPLE.search(found)]
    phones = [found for found in PHONE.findall(text) if 9 <= sum(map(str.isdigit, found)) <= 15 and _is_phone(found)]
    accounts = [found for found in IBAN.findall(text) if _is_account(found)]
    return emails + phones + cards + accounts


def _is_phone(text: str) -> bool:
    """In groups parted by more than spaces, or with a country's code; no list of numbers, years or a date."""
    groups = re.findall(r"\d+", text)
    long = [group for group in groups if len(group) > 1]
    years = all(len(group) == 4 and group[0] in "12" for group in groups)
    if years or len(set("".join(groups))) < 3:
        return False
    return text.startswith("+") or (len(groups) >= 3 and len(long) == len(groups) and set("-()") & set(text) != set())


def _is_card(text: str) -> bool:
    """The check digit (Luhn)."""
    digits = [int(letter) for letter in text if letter.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) < 2:
        return False
    doubled = [digit if at % 2 == 0 else digit * 2 - 9 * (digit > 4) for at, digit in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _is_account(text: str) -> bool:
    """The check digits (ISO 13616)."""
    bare = text.replace(" ", "")
    moved = bare[4:] + bare[:4]
    return int("".join(str(int(letter, 36)) for letter in moved)) % 97 == 1


def _continued(model: Any, prompts: list[list[int]], new_tokens: int, sampling: Sampling) -> list[list[int]]:
    said: list[list[int]] = []
    for first in range(0, len(prompts), SIDE_BY_SIDE):
        steps = list(model.batch(prompts[first : first + SIDE_BY_SIDE], new_tokens, sampling))
        said += [list(row) for row in zip(*steps, strict=True)]
    return said


def scripts(texts: list[str]) -> set[str]:
    counts = Counter(_script(letter) for text in texts for letter in text if letter.isalpha())
    total = sum(counts.values())
    return {script for script, count in counts.items() if count >= USED * total}


def _script(letter: str) -> str:
    return unicodedata.name(letter, "UNKNOWN").split()[0].split("-")[0]
