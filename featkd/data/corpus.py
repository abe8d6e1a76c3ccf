"""The corpus artefact: cleaned, deduplicated documents, split by content, near-duplicates across the split removed.

documents.parquet has the columns id, group (what it is from: a document, a prompt, or as data.group_field says), part
(train | valid | test), prompt, text, label, choices (a JSON list).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from featkd import spec
from featkd.data import ngrams
from featkd.data.load import read
from featkd.errors import InputError
from featkd.spec import digest

VALID_SHARE = 0.2
MIN_HELD_OUT = 8


def build(data: spec.Data, out: Path, processes: int = 1, scratch: Path | None = None) -> dict[str, Any]:
    """Read, clean, split and snapshot the documents. Returns the meta: counts and the content digest.

    The split depends on each document's content alone, so that a refresh keeps every old document on its side; the
    passages of a long document stay together, and so do the responses to one prompt, or the rows of one group where
    groups are told.
    Raises InputError when too little is left.
    """
    import pandas

    rows = _clean(read(data, processes, scratch), data)
    for row in rows:
        row["part"] = _part(row["group"], data.held_out)
    kept = _without_near_duplicates(rows)
    _check_enough(kept, len(rows) - len(kept), data)
    frame = pandas.DataFrame(kept, columns=["id", "group", "part", "prompt", "text", "label", "choices"])
    frame.to_parquet(out / "documents.parquet", index=False)
    parts = frame["part"].value_counts().to_dict()
    return {
        "source": data.builtin or data.hub or ", ".join(Path(file).name for file in data.files),
        "digest": digest([[row["id"], row["part"], row["label"], row["choices"]] for row in kept]),
        "documents": len(frame),
        "training_documents": parts["train"],
        "valid_documents": parts["valid"],
        "test_documents": parts["test"],
        "near_duplicates_removed": len(rows) - len(kept),
        "characters": int((frame["prompt"].str.len() + frame["text"].str.len()).sum()),
        "labels": sorted(frame["label"].dropna().unique().tolist()),
    }


def documents(folder: Path, part: str) -> list[dict[str, Any]]:
    """The documents of one part, in the order of their ids."""
    import pandas

    frame = pandas.read_parquet(folder / "documents.parquet", filters=[("part", "==", part)])
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def _clean(documents: Iterable[dict[str, Any]], data: spec.Data) -> list[dict[str, Any]]:
    """Without NUL bytes, byte-order marks and halves of characters; plain text in passages, a response whole."""
    found: dict[str, dict[str, Any]] = {}
    for document in documents:
        text, prompt = (
            document[name].replace("\x00", "").encode("utf-8", "ignore").decode().strip("\ufeff").strip()
            for name in ("text", "prompt")
        )
        said = document["group"] or prompt
        group = digest([said, "" if said else text])[:20]
        for passage in [text] if prompt else _passages(text, data.max_chars):
            if len(passage) < data.min_chars:
                continue
            identity = digest([prompt, passage])[:20]
            row = {"id": identity, "group": group, "prompt": prompt, "text": passage,
                   "label": document["label"], "choices": document["choices"]}  # fmt: skip
            found.setdefault(identity, row)
    return _capped(sorted(found.values(), key=lambda row: row["id"]), data.max_documents)


def _capped(rows: list[dict[str, Any]], most: int | None) -> list[dict[str, Any]]:
    """At most so many rows, by a hash of their own: by id, the split's own hash, it would keep the held-out side."""
    if most is None or len(rows) <= most:
        return rows
    kept = sorted(rows, key=lambda row: digest(["keep", row["id"]]))[:most]
    return sorted(kept, key=lambda row: row["id"])


def _passages(text: str, limit: int) -> list[str]:
    """The text in passages of at most `limit` characters, cut after a paragraph, a line or a word if there is one."""
    passages = []
    while len(text) > limit:
        cuts = (text.rfind(mark, limit // 2, limit) for mark in ("\n\n", "\n", " "))
        cut = next((found for found in cuts if found > 0), limit)
        passages.append(text[:cut].strip())
        text = text[cut:].strip()
    return [*passages, text]


def _part(identity: str, held_out: float) -> str:
    position = int(identity[:8], 16) / 2**32
    if position >= held_out:
        return "train"
    return "valid" if position < held_out * VALID_SHARE else "test"


def _without_near_duplicates(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Drop held-out documents that share most of their 8-grams with the training part (cf. arXiv 2005.14165 C)."""

    def said(row: dict[str, Any]) -> str:
        return f"{row['prompt']} {row['text']}"

    held_out = [row for row in rows if row["part"] != "train"]
    found = ngrams.shares([said(row) for row in held_out], (said(row) for row in rows if row["part"] == "train"))
    seen = {row["id"] for row, share in zip(held_out, found, strict=True) if share >= ngrams.SEEN}
    return [row for row in rows if row["id"] not in seen]


def _check_enough(rows: list[dict[str, Any]], removed: int, data: spec.Data) -> None:
    if not rows:
        raise InputError(f"data: no document of at least {data.min_chars} characters (data.min_chars) was found")
    counts = {part: sum(row["part"] == part for row in rows) for part in ("train", "valid", "test")}
    if counts["train"] == 0 or counts["valid"] == 0 or counts["test"] < MIN_HELD_OUT:
        raise InputError(
            f"data: {len(rows)} documents leave {counts['test']} for the tasks, {counts['valid']} for validation "
            f"({removed} held-out ones were near-duplicates of training documents); "
            f"at least {MIN_HELD_OUT} and 1 are needed: add data, raise data.held_out, or set data.sample_by"
        )
