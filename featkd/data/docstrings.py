"""The built-in corpus: docstrings of installed packages, read with `ast` (nothing is imported or run).

Real technical English that lies on every machine featkd is installed on; the packages are pinned by
constraints.txt, and the documents that were read are snapshotted into the store.
"""

import ast
import importlib.util
import inspect
import sysconfig
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from featkd.errors import InputError

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
SKIPPED_PARTS = {
    "tests",
    "test",
    "testing",
    "idlelib",
    "lib2to3",
    "site-packages",
    "dist-packages",
    "vendor",
    "_vendor",
}


def read(packages: list[str], min_chars: int, processes: int = 1) -> Iterator[dict[str, str]]:
    """Documents {text, label}, in a fixed order: every docstring; the label is the package's import name."""
    places = [(package, file) for package in packages for file in _sources(package)]
    for (package, _), texts in zip(places, _parse([file for _, file in places], processes), strict=True):
        yield from ({"text": text, "label": package} for text in texts if len(text) >= min_chars)


def _parse(files: list[Path], processes: int) -> Iterator[list[str]]:
    if processes == 1:
        yield from map(_docstrings, files)
        return
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        yield from pool.map(_docstrings, files, chunksize=64)


def _sources(package: str) -> list[Path]:
    if package == "stdlib":
        root = Path(sysconfig.get_paths()["stdlib"])
    else:
        try:
            found = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            found = None
        if found is None or not found.submodule_search_locations:
            raise InputError(f"data.packages: no installed package {package!r}; write import names, e.g. sklearn")
        root = Path(next(iter(found.submodule_search_locations)))
    return sorted(file for file in root.rglob("*.py") if not SKIPPED_PARTS & set(file.relative_to(root).parts))


def _docstrings(file: Path) -> list[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return []
    found = (ast.get_docstring(node) for node in _statements(tree) if isinstance(node, DOCUMENTED))
    return [inspect.cleandoc(text).strip() for text in found if text]


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """The module and every statement in it; `ast.walk` would visit ten times as many expressions."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            inner = getattr(node, field, None)
            if isinstance(inner, list):
                waiting += inner
