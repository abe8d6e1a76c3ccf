"""Bias suites as lm-eval tasks: our own words, and local files in the formats they were published in.

crows_pairs   CSV (Nangia et al. 2020, arXiv 2010.00133): is the more stereotypical sentence of a pair the likelier one?
winogender    TSV sentid, sentence (Rudinger et al. 2018, arXiv 1804.09301): the same of the pronoun for an occupation,
              by who works in it (occupations-stats.tsv beside it)
stereoset     JSON, intrasentence and intersentence (Nadeem et al. 2020, arXiv 2004.09456)
bbq           JSONL (Parrish et al. 2022, arXiv 2110.08193): who is named where the text does not tell?
own           guards.yaml

Of BBQ whose stereotype is meant is read from its own lists of groups; where race is crossed with gender or class, or a
group is in no answer, it is not known, and only accuracy is told of those rows.

Examples have `context`, `choices`, `gold` (the answer without the stereotype, or the right one), `group` (what they
vary), `class`; bbq's also `stereotype` and `unknown` (numbers of the answer, -1: not known) and `ambiguous`.
"""

import csv
import glob
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from featkd import spec
from featkd.data import answers, tasks
from featkd.data.answers import AMONG_CHOICES
from featkd.data.tokens import encode
from featkd.errors import InputError

PREFIX = "guard_"
SAME = {"man": "m", "boy": "m", "male": "m", "woman": "f", "girl": "f", "female": "f", "transgenderwomen": "trans",
        "transgendermen": "trans", "trans_f": "trans", "trans_m": "trans", "poorpeople": "lowses"}  # fmt: skip
OCCUPATIONS = "occupations-stats.tsv"
JAPANESE = 0.1  # share of kana among letters from which a text is Japanese
Example = dict[str, Any]


def build(
    corpus: Path,
    tokenizer: Any,
    data: spec.Data,
    guardrails: spec.Guardrails,
    context_tokens: int,
    window: int,
    out: Path,
) -> dict[str, Any]:
    """Write the suites as lm-eval tasks, and prompts.json: token ids of held-out prompts, or beginnings of texts.

    Returns {"guards": {task: examples}, "ends": whether texts are to end, for they are responses}.
    """
    rows = tasks.held_out(corpus, tokenizer, data)
    found = suites(guardrails, [row["text"] for row in rows])
    for name, examples in found.items():
        tasks.write(name, config(name), examples, out)
    most = min(context_tokens, window - guardrails.new_tokens)
    if guardrails.generations and most < 1:
        raise InputError(
            f"guardrails.new_tokens: {guardrails.new_tokens} leave no room for a prompt in {window}; lower it, or "
            "write generations: 0"
        )
    said = rows[: 4 * guardrails.generations]
    ids = encode(tokenizer, [row["context"] or row["text"] for row in said])
    prompts = [text[-most:] if row["context"] else text[:most] for text, row in zip(ids, said, strict=True) if text]
    (out / "prompts.json").write_text(json.dumps(prompts[: guardrails.generations]))
    return {"guards": {name: len(examples) for name, examples in found.items()}, "ends": bool(data.prompt_field)}


def suites(guardrails: spec.Guardrails, texts: list[str]) -> dict[str, list[Example]]:
    """Task name to examples of every suite that the spec asks for. texts: held-out ones, for the language of our own.

    Raises InputError that names the file and what is wrong with it.
    """
    found = {"own": _own(_language(texts))} if guardrails.own else {}
    readers: dict[str, Callable[[Path], list[Example]]] = {
        "crows_pairs": _crows_pairs, "winogender": _winogender, "stereoset": _stereoset, "bbq": _bbq,
    }  # fmt: skip
    for name, reader in readers.items():
        files = getattr(guardrails, name)
        if files:
            found[name] = [example for file in _files(name, files) for example in _read(reader, name, file)]
    return {PREFIX + name: _spread(examples, guardrails.max_examples) for name, examples in found.items()}


def config(name: str) -> dict[str, Any]:
    """lm-eval's configuration. Answers of unequal length are compared per character, sentences as they are."""
    metric = "acc_norm" if name == f"{PREFIX}bbq" else "acc"
    return {**AMONG_CHOICES, "metric_list": [{"metric": metric}]}


def _spread(examples: list[Example], most: int) -> list[Example]:
    """At most so many, of each class as many, drawn at random: files are ordered by what they vary."""
    return answers.balanced(random.Random(0).sample(examples, len(examples)), "class", most)


def _pair(more: str, less: str, group: str, kind: str) -> Example:
    return {"context": "", "choices": [more.strip(), less.strip()], "gold": 1, "group": group, "class": kind}


def _own(language: str) -> list[Example]:
    tree = yaml.safe_load((Path(__file__).parent / "guards.yaml").read_text(encoding="utf-8"))[language]
    gender = tree.pop("gender")
    templates = gender.pop("templates")
    (one, ones), (other, others) = gender.items()
    found = [
        _pair(more, less, f"{kind}-{n}", kind) for kind, rows in tree.items() for n, (more, less) in enumerate(rows)
    ]
    for who, usual, unusual in [(who, one, other) for who in ones] + [(who, other, one) for who in others]:
        for template in templates:
            sentences = [template.format(word, who=who) for word in (usual, unusual)]
            found.append(_pair(*sentences, group=f"gender-{who}", kind="gender"))
    return found


def _language(texts: list[str]) -> str:
    letters = [letter for text in texts for letter in text if letter.isalpha()]
    kana = sum("\u3040" <= letter <= "\u30ff" for letter in letters)
    return "ja" if kana > JAPANESE * max(1, len(letters)) else "en"


def _crows_pairs(file: Path) -> list[Example]:
    return [
        _pair(row["sent_more"], row["sent_less"], f"{file.name} {number}", row["bias_type"])
        for number, row in enumerate(_table(file, ",", ("sent_more", "sent_less", "bias_type")))
    ]


def _winogender(file: Path) -> list[Example]:
    """Sentences whose pronoun is the occupation's; the likelier gender of it, by the share of women who work in it."""
    statistics = file.with_name(OCCUPATIONS)
    if not statistics.is_file():
        raise InputError(f"guardrails.winogender: {statistics.name} is missing beside {file}; put it there")
    women = {row["occupation"]: float(row["bls_pct_female"])
             for row in _table(statistics, "\t", ("occupation", "bls_pct_female"))}  # fmt: skip
    sentences: dict[tuple[str, str], dict[str, str]] = {}
    for row in _table(file, "\t", ("sentid", "sentence")):
        occupation, other, answer, gender = row["sentid"].removesuffix(".txt").rsplit(".", 3)
        if answer == "0":
            sentences.setdefault((occupation, other), {})[gender] = row["sentence"]
    found = []
    for (occupation, _), by_gender in sentences.items():
        if {"male", "female"} <= by_gender.keys() and occupation in women:
            usual, unusual = ("female", "male") if women[occupation] > 50 else ("male", "female")
            found.append(_pair(by_gender[usual], by_gender[unusual], occupation, usual))
    return found


def _stereoset(file: Path) -> list[Example]:
    """Of three sentences: without the stereotype, with it, without sense. Between sentences their context is told."""
    found = []
    data = json.loads(file.read_text(encoding="utf-8"))["data"]
    for part in ("intrasentence", "intersentence"):
        for row in data.get(part, []):
            said = {one["gold_label"]: one["sentence"] for one in row["sentences"]}
            choices = [said[label] for label in ("anti-stereotype", "stereotype", "unrelated")]
            between = part == "intersentence"
            found.append(
                {"context": row["context"] if between else "", "gold": 0, "group": row["target"],
                 "choices": [f" {one}" if between else one for one in choices], "class": row["bias_type"]}
            )  # fmt: skip
    return found


def _bbq(file: Path) -> list[Example]:
    found = []
    for line in filter(str.strip, file.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        kinds = [[str(kind) for kind in row["answer_info"][f"ans{n}"]] for n in range(3)]
        unknown = next(n for n, kind in enumerate(kinds) if "unknown" in kind)
        groups = {_named(group) for group in row["additional_metadata"]["stereotyped_groups"]}
        crossed = "_x_" in row["category"]  # told of each answer: race and gender, or race and class, in one word
        met = [n for n, kind in enumerate(kinds) if n != unknown and groups & set(map(_named, kind))]
        targets = [] if crossed else met
        others = [n for n in range(3) if n != unknown and n not in targets]
        # who is meant by the stereotype answers the question that has the bad thing in it, the other one its opposite
        answer = targets if row["question_polarity"] == "neg" else others
        found.append(
            {"context": f"{row['context']}\n{row['question']}\n", "choices": [row[f"ans{n}"] for n in range(3)],
             "gold": row["label"], "group": f"{row['category']}-{row['question_index']}", "class": row["category"],
             "stereotype": answer[0] if len(targets) == len(others) == 1 else -1, "unknown": unknown,
             "ambiguous": row["context_condition"] == "ambig"}
        )  # fmt: skip
    return found


def _named(group: str) -> str:
    """One name for a group that answers and their list name differently (BBQ's BBQ_results_metadata.R)."""
    bare = group.casefold().replace(" ", "")
    return SAME.get(bare, bare)


def _table(file: Path, delimiter: str, columns: tuple[str, ...]) -> list[dict[str, str]]:
    quoting = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    with file.open(encoding="utf-8-sig", newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter=delimiter, quoting=quoting))
    missing = [column for column in columns if not rows or column not in rows[0]]
    if missing:
        raise KeyError(missing[0])
    return rows


def _files(name: str, patterns: list[str]) -> list[Path]:
    found = []
    for pattern in patterns:
        matches = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern))
        if not matches:
            raise InputError(f"guardrails.{name}: no file {pattern}")
        found += [Path(match) for match in matches]
    return found


def _read(reader: Callable[[Path], list[Example]], name: str, file: Path) -> list[Example]:
    try:
        found = reader(file)
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"guardrails.{name}: {file} is not UTF-8: {error}; save it as UTF-8") from None
    except (csv.Error, KeyError, TypeError, AttributeError, ValueError, StopIteration, OSError) as error:
        told = f"no field {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise InputError(
            f"guardrails.{name}: {file} is not in the format that {name} was published in: {told.splitlines()[0][:200]}"
        ) from None
    if not found:
        raise InputError(f"guardrails.{name}: {file} has no examples")
    return found
