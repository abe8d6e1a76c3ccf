"""Charts of speed, memory and money."""

import math

from matplotlib.ticker import FuncFormatter, MaxNLocator

from featkd.result import Result
from reports import numbers
from reports.chart_parts import Chart, by_size, finish, finite, raw, shown
from reports.svg import INK, TEACHER, Entry, Style, error_lengths, frame, line, short_number, styles, to_svg
from reports.text import Text


def latency(result: Result, t: Text) -> Chart:
    """Every measured generation as a dot, the median as a bar."""
    panels = []
    look = styles(result.candidates)
    measured = {name: c.latency for name, c in result.candidates.items()}
    for key, median in (("raw_ttft_ms", "ttft_ms"), ("raw_decode_tokens_per_s", "decode_tokens_per_s")):
        series = {name: getattr(part, key) for name, part in measured.items() if getattr(part, key)}
        if not series:
            continue
        title = t(f"charts.columns.{median}")
        figure, axes = frame(26 * len(series), list(series), title)
        for y, (name, values) in enumerate(series.items()):
            spread = [y + 0.22 * math.sin(2.4 * index) for index in range(len(values))]
            axes.plot(values, spread, look[name].marker, color=look[name].colour, markersize=4, alpha=0.55, mew=0)
            middle = getattr(measured[name], median)
            if middle:
                axes.plot([middle.value] * 2, [y - 0.38, y + 0.38], color=INK, linewidth=2)
        axes.set_xlim(left=0)
        panels.append((title, to_svg(figure, f"latency-{len(panels)}", title)))
    rows = [
        [
            name,
            str(part.generations),
            shown(part.ttft_ms, t),
            shown(part.decode_tokens_per_s, t),
            raw(part.raw_ttft_ms),
            raw(part.raw_decode_tokens_per_s),
        ]
        for name, part in measured.items()
        if part.raw_ttft_ms or part.raw_decode_tokens_per_s
    ]
    columns = ["candidate", "generations", "ttft_ms", "decode_tokens_per_s", "raw_ttft_ms", "raw_decode_tokens_per_s"]
    return finish("latency", panels, rows, columns, result, t, "latency")


def memory(result: Result, t: Text) -> Chart:
    """Peak memory of the serving process and size of the files, MB."""
    parts = {name: c.memory for name, c in result.candidates.items() if c.memory.peak_rss_bytes or c.memory.file_bytes}
    panels = []
    if parts:
        look = styles(result.candidates)
        legend = [Entry(t("charts.peak_memory"), TEACHER, "bar"), Entry(t("charts.file_size"), TEACHER, "box")]
        figure, axes = frame(34 * len(parts), list(parts), "MB", legend=legend)
        for y, (name, part) in enumerate(parts.items()):
            if part.peak_rss_bytes:
                peak = part.peak_rss_bytes
                axes.barh(
                    y - 0.13,
                    peak.value / 1e6,
                    0.38,
                    color=look[name].colour,
                    xerr=error_lengths(peak, 1e-6),
                    ecolor=INK,
                )
            if part.file_bytes:
                axes.barh(y + 0.24, part.file_bytes / 1e6, 0.2, facecolor="none", edgecolor=INK, linewidth=1)
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:,.0f}" if value == int(value) else f"{value:g}")
        )
        panels.append(("", to_svg(figure, "memory-0", t("charts.memory.title"))))
    rows = [
        [
            name,
            shown(part.peak_rss_bytes, t, 1e-6),
            shown(part.rss_above_import_bytes, t, 1e-6),
            shown(part.rss_ratio, t),
            numbers.significant(part.file_bytes and part.file_bytes / 1e6),
        ]
        for name, part in parts.items()
    ]
    columns = ["candidate", "peak_rss_mb", "rss_above_import_mb", "rss_ratio", "file_mb"]
    return finish("memory", panels, rows, columns, result, t, "memory")


def cash_flow(result: Result, t: Text) -> Chart:
    """Cumulative cash flow, USD, one panel per size; a ring marks the payback."""
    panels = []
    rows = []
    look = styles(result.candidates)
    for size, members in by_size(result).items():
        flows = {name: c.roi for name, c in members.items() if c.roi.cash_flow_usd}
        if not flows:
            continue
        legend = [Entry(name, look[name]) for name in flows]
        if any(finite(roi.payback_months) is not None for roi in flows.values()):
            legend.append(Entry(t("charts.payback"), Style(INK, "o", "-"), "ring"))
        figure, axes = frame(210, None, t("charts.months"), t("charts.cumulative_usd"), legend)
        axes.axhline(0, color=INK, linewidth=1)
        for name, roi in flows.items():
            line(axes, list(enumerate(roi.cash_flow_usd)), look[name], every=max(1, len(roi.cash_flow_usd) // 6))
            months = finite(roi.payback_months)
            if months is not None and months < len(roi.cash_flow_usd):
                axes.plot([months], [0], "o", color=INK, markersize=9, fillstyle="none", mew=1.6)
            rows += [[name, str(month), numbers.significant(usd)] for month, usd in enumerate(roi.cash_flow_usd)]
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(short_number))
        title = size or ""
        panels.append((title, to_svg(figure, f"cash-flow-{len(panels)}", title or t("charts.cash_flow.title"))))
    return finish("cash_flow", panels, rows, ["candidate", "month", "cumulative_usd"], result, t, "roi")
