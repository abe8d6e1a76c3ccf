"""Result document in, one self-contained HTML page out: no network, no script, nothing but the document read.

html = render(result, "ja")
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from featkd.result import Result
from reports import alignment, behaviour, business, charts, findings, limits, numbers, signal, sizes, text, view

TEMPLATES = Path(__file__).parent / "templates"
MATRIX_COLUMNS = 5  # with more candidates the table turns: one row per candidate, one table per group
PAGES = {"en": "report.html", "ja": "report.ja.html"}
FOLD_ROWS = 16  # longer tables are folded
MARKS = {"pass": "\N{CHECK MARK}", "fail": "\N{BALLOT X}", "inconclusive": "?", "missing": "!"}
VERDICT_MARKS = {"go": MARKS["pass"], "no-go": MARKS["fail"], "inconclusive": "?"}


def render(result: Result, language: Literal["en", "ja"]) -> str:
    """The report page. Raises InputError for a language there are no texts for."""
    t = text.load(language, _currency(result))
    found = findings.distillation(result, t)
    page = _templates().get_template("page.html.j2")
    return page.render(
        r=result,
        t=t,
        title=result.title or result.name,
        sentence=findings.verdict_sentence(result, t),
        size_sentence=sizes.sentence(result, t),
        crossings=sizes.crossings(result, t),
        next_steps=findings.next_steps(result, t),
        feature_cost=sizes.feature_cost(result, t),
        own_seconds=sizes.own_seconds,
        key_figures=findings.key_figures(result, t),
        adequacy_lines=findings.adequacy_lines(result, t),
        comparison=view.comparison(result, t),
        fidelity=behaviour.agreement(result, t),
        rollout=behaviour.rollout(result, t),
        checks=behaviour.guardrails(result, t),
        overlaps=view.overlaps(result, t),
        turned=len(result.candidates) > MATRIX_COLUMNS,
        found=found,
        business=business.case(result, t),
        beside_champion=findings.beside_champion(result, t),
        alignment=alignment.stated(result, t),
        signal=signal.stated(result, t),
        found_sentences=findings.distillation_sentences(found, t),
        charts=charts.draw_all(result, t),
        gates={name: findings.gate_rows(c, t) for name, c in view.students(result).items()},
        students=view.students(result),
        why={section: findings.reasons_by_code(result, section) for section in ("fidelity", "guardrails")},
        limits=limits.stated(result, t),
        environment=_flat(result.environment),
        providers=sorted({c.latency.provider for c in result.candidates.values() if c.latency.provider}),
        spec_yaml=yaml.safe_dump(result.spec, sort_keys=False, allow_unicode=True, width=100),
        n=numbers,
        marks=MARKS,
        verdict_marks=VERDICT_MARKS,
        fold_rows=FOLD_ROWS,
    )


@cache
def _templates() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def summary_markdown(result: Result, language: Literal["en", "ja"]) -> str:
    """Verdict sentence and a short comparison table, for a run description."""
    t = text.load(language, _currency(result))
    table = view.comparison(result, t)
    chosen = {t(f"rows.{key}") for key in ("decode_speedup", "cost_per_million", "monthly_saving", "payback")}
    chosen |= {t.task(task) for task in view.task_names(result)}
    columns = [row for row in table.rows if row.label in chosen]
    head = [t("summary.candidate"), t("summary.verdict"), *(_column(row) for row in columns)]
    lines = ["**" + _plain(findings.verdict_sentence(result, t)) + "**", ""]
    if how_small := sizes.sentence(result, t):
        lines += [_plain(how_small), ""]
    if not result.adequacy.adequate:
        lines = [
            f"> {_plain(t('adequacy.title'))} {_plain(t.code('adequacy_action', result.adequacy.action))}",
            "",
            *lines,
        ]
    lines += [_line(head), _line(["---", "---"] + ["---:"] * len(columns))]
    for name in table.names:
        verdict = result.candidates[name].verdict
        word = t.code("verdict", verdict.verdict) or t.code("why", verdict.why)
        cells = [row.cells[name] for row in columns]
        lines.append(_line([name, word, *(f"{c.text} ({c.range})" if c.range else c.text for c in cells)]))
    return "\n".join(lines) + "\n"


def _currency(result: Result) -> str:
    return result.spec.get("cost", {}).get("currency", "USD")


def _column(row: view.Row) -> str:
    return f"{row.label} ({row.unit})"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(_plain(cell) for cell in cells) + " |"


def _plain(value: str) -> str:
    """Text that is neither HTML nor a table delimiter in Markdown."""
    one_line = " ".join(value.split())
    return one_line.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def _flat(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as dotted keys and printable text."""
    rows = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
            rows.append((f"{prefix}{key}", numbers.DASH if shown is None else str(shown)))
    return rows
