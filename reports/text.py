"""The sentences of a report: text/en.yaml and text/ja.yaml, same keys. No prose stands in Python."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from featkd.errors import InputError

FOLDER = Path(__file__).parent / "text"


class Text:
    """`t("section.key", name=value)` is a sentence; `t.code("group", "some-code")` is the word for a code."""

    def __init__(self, language: str, tree: dict[str, Any], currency: str = "USD"):
        """currency: an ISO 4217 code, for the sentences with `{currency}`."""
        self.language = language
        self._tree = tree
        self._currency = tree["currencies"].get(currency, currency)

    def __call__(self, key: str, **values: object) -> str:
        """The sentence under a dotted key. Raises KeyError for a key that no language has: a mistake of ours."""
        node: Any = self._tree
        for part in key.split("."):
            node = node[part]
        return node.format(**values, currency=self._currency)

    def code(self, group: str, code: str | None) -> str:
        """The word for a code of the result document; a code we do not know stands for itself."""
        return self._tree[group].get(code, code).replace("{currency}", self._currency) if code else ""

    def known(self, group: str, code: str) -> str:
        """Like `code`, but nothing for a code we do not know."""
        return self._tree[group].get(code, "")

    def task(self, task: str) -> str:
        return self.code("tasks", task)

    def items(self, group: str) -> list[tuple[str, Any]]:
        return list(self._tree[group].items())

    def listing(self, parts: list[str]) -> str:
        """'a, b and c' in the page's language."""
        if len(parts) < 2:
            return "".join(parts)
        return self("list.comma").join(parts[:-1]) + self("list.last") + parts[-1]


def load(language: str, currency: str = "USD") -> Text:
    """Raises InputError for a language there is no text for."""
    return Text(language, _tree(language), currency)


@lru_cache
def _tree(language: str) -> dict[str, Any]:
    path = FOLDER / f"{language}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yaml")))
        raise InputError(f"language: no texts for '{language}'; write one of {known}")
    return yaml.safe_load(path.read_text(encoding="utf-8"))
