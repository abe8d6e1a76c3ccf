"""Charts of speed and memory."""

import math

from matplotlib.ticker import FuncFormatter

from featkd.result import Result
from reports import numbers
from reports.chart_parts import Chart, by_size, finish, raw, shown
from reports.svg import (
    INK,
    MUTED,
    REFERENCE,
    TEACHER,
    Entry,
    error_lengths,
    frame,
    line,
    short_number,
    styles,
    to_svg,
)
from reports.text import Text


def latency(result: Result, t: Text) -> Chart:
    """Every measured generation of one request at a time as a dot, the median as a bar."""
    panels = []
    look = styles(result.candidates)
    measured = {name: c.latency for name, c in result.candidates.items() if c.latency.alone}
    medians = {
        "ttft_ms": lambda part: part.alone.ttft_ms.p50,
        "decode_tokens_per_s": lambda part: part.alone.decode_tokens_per_s,
    }
    for key, median in medians.items():
        series = {name: getattr(part, f"raw_{key}") for name, part in measured.items()}
        if not series:
            continue
        title = t(f"charts.columns.{key}")
        figure, axes = frame(26 * len(series), list(series), title)
        for y, (name, values) in enumerate(series.items()):
            spread = [y + 0.22 * math.sin(2.4 * index) for index in range(len(values))]
            axes.plot(values, spread, look[name].marker, color=look[name].colour, markersize=4, alpha=0.55, mew=0)
            axes.plot([median(measured[name]).value] * 2, [y - 0.38, y + 0.38], color=INK, linewidth=2)
        axes.set_xlim(left=0)
        panels.append((title, to_svg(figure, f"latency-{len(panels)}", title)))
    rows = [
        [
            name,
            str(part.generations),
            *(shown(median(part), t) for median in medians.values()),
            raw(part.raw_ttft_ms),
            raw(part.raw_decode_tokens_per_s),
        ]
        for name, part in measured.items()
    ]
    columns = ["candidate", "generations", "ttft_ms", "decode_tokens_per_s", "raw_ttft_ms", "raw_decode_tokens_per_s"]
    return finish("latency", panels, rows, columns, result, t, "latency")


def throughput(result: Result, t: Text) -> Chart:
    """Tokens per second of all requests together, and the wait for each token, against requests side by side."""
    panels = []
    look = styles(result.candidates)
    curves = {name: c.latency.points for name, c in result.candidates.items() if len(c.latency.points) > 1}
    figures = {
        "throughput": lambda point: point.decode_tokens_per_s.value,
        "inter_token_ms": lambda point: point.inter_token_ms.p50.value,
    }
    target = (result.spec.get("cost") or {}).get("max_inter_token_ms")
    teachers = [name for name, c in result.candidates.items() if c.arm == "teacher"]
    for size, members in by_size(result).items() if curves else ():
        names = [name for name in (*teachers, *members) if name in curves]
        for key, read in figures.items() if names else ():
            highest = max(read(point) for name in names for point in curves[name])
            near = target and key == "inter_token_ms" and target["value"] < 2 * highest
            limit = target["value"] if near else None
            legend = [Entry(name, look[name]) for name in names]
            legend += [Entry(t("charts.target"), REFERENCE)] if limit else []
            figure, axes = frame(190, None, t("charts.concurrency"), "", legend)
            for name in names:
                line(axes, [(point.concurrency, read(point)) for point in curves[name]], look[name], every=1)
            if limit:
                axes.axhline(limit, color=MUTED, linestyle=REFERENCE.dash, linewidth=1.2)
            axes.set_xscale("log", base=2)
            axes.set_xticks([point.concurrency for point in curves[names[0]]])
            axes.xaxis.set_major_formatter(FuncFormatter(short_number))
            axes.yaxis.set_major_formatter(FuncFormatter(short_number))
            axes.set_ylim(bottom=0)
            title = " · ".join(filter(None, [size, t(f"charts.columns.{key}")]))
            panels.append((title, to_svg(figure, f"throughput-{len(panels)}", title)))
    rows = [
        [
            name,
            str(point.concurrency),
            shown(point.decode_tokens_per_s, t),
            shown(point.decode_speedup, t),
            *(shown(getattr(times, q), t) for times in (point.ttft_ms, point.inter_token_ms) for q in ("p50", "p90")),
            shown(point.end_to_end_ms.p50, t),
        ]
        for name, points in curves.items()
        for point in points
    ]
    columns = ["candidate", "concurrency", "throughput", "decode_speedup", "ttft_ms", "ttft_p90", "inter_token_ms",
               "inter_token_p90", "end_to_end_ms"]  # fmt: skip
    return finish("throughput", panels, rows, columns, result, t, "latency")


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
