"""What is shipped beside its rivals: `make bench-deploy`.

decode: greedy generation at batch 1, one generation each in turns, every contender in a process of its own; ratios
within a turn, then the median. `eager` is a bare PyTorch loop with a KV cache, `genai` is onnxruntime-genai on the
model that its own builder makes of the same weights, in .venv-genai.

lm-eval: the same tasks, made of held-out docstrings, through featkd's class, lm-eval's class for ONNX Runtime (on the
builder's model) and its HFLM, in turns in one process; the largest difference of a log-likelihood to HFLM's.

latency: the product's own tool on two models, ten times: how far its speed-up strays from the median of all, and of
how many repetitions the interval covers the median of the others.

Weights are random: time does not depend on them. The default student and a model of 30M parameters.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evidence import QUICK, write

from featkd import environment, spec, specfile
from featkd.data import corpus, tasks, tokens
from featkd.deploy.export import export
from featkd.deploy.quantise import quantise
from featkd.measure import latency
from featkd.measure.timings import summarise
from featkd.models.llama import llama_config
from featkd.training import Shape

ROOT = Path(__file__).parents[2]
GENAI = ROOT / ".venv-genai" / "bin" / "python"
THREADS = environment.usable_cores()
PROMPT, NEW, TURNS, REPETITIONS, LM_ROUNDS = (128, 64, 40, 10, 3) if not QUICK else (32, 16, 5, 3, 1)
BLOCK = 256
SIZES = {
    "default student": {"vocabulary": 2048, "hidden_size": 96, "layers": 2, "heads": 6, "intermediate_size": 256},
    "30M": {"vocabulary": 32_000, "hidden_size": 384, "layers": 8, "heads": 6, "intermediate_size": 1024},
}
TASKS = ["heldout_perplexity", "heldout_continuation", "heldout_routing"]
BATCH = 32
LEAD = (
    f"Exported models on {THREADS} threads. `decode`: {PROMPT} + {NEW} tokens, batch 1, greedy; `ratio`: featkd's fp32 "
    "over the contender within a turn, median, above 1 is faster than it. `lm-eval`: requests per second of the same "
    f"requests, batches of {BATCH}. `latency`: the speed-up that the product's tool finds, repeated."
)


def texts(folder: Path) -> list[list[int]]:
    """Held-out docstrings as lm-eval tasks in `folder`/tasks, and a tokenizer. Returns texts for the parity checks."""
    data = specfile.load(ROOT / "flows" / "specs" / "default.yaml", ["data.packages=[stdlib, numpy, scipy]"]).data
    corpus.build(data, folder)
    tokens.train_tokenizer(folder, 2048, "\n", BLOCK, folder / "tokenizer")
    tokenizer = tokens.load_tokenizer(folder / "tokenizer")
    quality = spec.Quality(tasks=TASKS, max_examples=20 if QUICK else 150)
    tasks.build(folder, tokenizer, np.zeros(len(tokenizer)), data, quality, BLOCK, folder)
    (folder / "tasks").mkdir()
    tasks.point_at(folder, folder / "tasks")
    return json.loads((folder / "probe.json").read_text())


def made(folder: Path, name: str, tokenizer: Path, probe: list[list[int]]) -> dict[str, Path]:
    """Random weights of this size: the Hugging Face folder and what is made of it. {contender: folder}."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    size = dict(SIZES[name])
    torch.manual_seed(0)
    config = llama_config(Shape(**{k: v for k, v in size.items() if k != "vocabulary"}), size["vocabulary"], BLOCK, 0)
    found = {one: folder / name.replace(" ", "-") / one for one in ("eager", "fp32", "int8", "int4", "genai")}
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(found["eager"])
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(found["eager"])
    parity = export(found["eager"], found["fp32"], probe, 1e-4, THREADS)
    if not parity.passed:
        raise SystemExit(f"{name}: the export differs from PyTorch: {parity}")
    for precision in ("int8", "int4"):
        quantise(found["fp32"], found["eager"], found[precision], precision, probe, THREADS)
    if not GENAI.is_file():
        raise SystemExit("onnxruntime-genai is not there: run this by make bench-deploy")
    command = ["-m", "onnxruntime_genai.models.builder", "-m", found["eager"], "-o", found["genai"], "-p", "fp32"]
    command += ["-e", "cpu", "-c", folder / "cache"]
    subprocess.run([GENAI, *command], check=True, capture_output=True)
    file = found["genai"] / "genai_config.json"
    config = json.loads(file.read_text())
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = THREADS
    file.write_text(json.dumps(config))
    _name_width(found["genai"] / "model.onnx", config["model"]["decoder"]["head_size"])
    return found


def _name_width(file: Path, width: int) -> None:
    """The builder leaves the width of its caches open (`kv_cache_dim`), and lm-eval's class then takes it for 1."""
    import onnx

    model = onnx.load(file, load_external_data=False)
    for value in model.graph.input:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param == "kv_cache_dim":
                dimension.dim_value = width
    onnx.save(model, file)


def decode(folders: dict[str, Path], prompt: list[int]) -> list[dict[str, Any]]:
    """One generation each in turns. A row per contender."""
    running: dict[str, subprocess.Popen[str]] = {}
    with contextlib.ExitStack() as stack:
        for name, folder in folders.items():
            kind = name if name in ("eager", "genai") else "featkd"
            python = GENAI if kind == "genai" else Path(sys.executable)
            command = [python, Path(__file__).with_name("deploy_child.py"), kind, folder, str(THREADS)]
            child = stack.enter_context(
                subprocess.Popen(
                    [*map(str, command), json.dumps(prompt), str(NEW)],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                    env=os.environ | {"OMP_NUM_THREADS": str(THREADS), "PYTHONPATH": str(ROOT)},
                )
            )  # fmt: skip
            running[name] = child
            _line(name, child)
        done: dict[str, list[dict[str, Any]]] = {name: [] for name in running}
        names = list(running)
        for turn in range(TURNS):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                time.sleep(latency.PAUSE_S)
                running[name].stdin.write("\n")
                running[name].stdin.flush()
                done[name].append(_line(name, running[name]))
        for child in running.values():
            child.stdin.close()
    rates = {name: [(NEW - 1) / one["decode_s"] for one in turns] for name, turns in done.items()}
    return [
        {
            "contender": name,
            "tokens_per_s": statistics.median(rates[name]),
            "ttft_ms": 1e3 * statistics.median(one["ttft_s"] for one in turns),
            "ratio": statistics.median(a / b for a, b in zip(rates["fp32"], rates[name], strict=True)),
            "ttft_ratio": statistics.median(
                b["ttft_s"] / a["ttft_s"] for a, b in zip(done["fp32"], turns, strict=True)
            ),
            "same_tokens": turns[0]["tokens"] == done["eager"][0]["tokens"],
            "file_bytes": sum(file.stat().st_size for file in folders[name].iterdir() if file.is_file()),
            "rates": rates[name],
        }
        for name, turns in done.items()
    ]


def _line(name: str, child: subprocess.Popen[str]) -> Any:
    line = child.stdout.readline()
    if not line:
        raise SystemExit(f"{name}: its process ended with status {child.wait()}")
    return json.loads(line)


def lm_eval(folders: dict[str, Path], include: Path) -> list[dict[str, Any]]:
    """The same requests through the three classes, in turns."""
    from featkd.measure import accuracy

    with accuracy._quiet():
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.models.onnxruntime_ort import ONNXRuntimeLM
        from transformers import AutoTokenizer

        from featkd.deploy.session import OnnxModel
        from featkd.measure.onnx_lm import OnnxLM

        tokenizer = AutoTokenizer.from_pretrained(folders["fp32"])
        torch.set_num_threads(THREADS)
        with contextlib.redirect_stdout(None):
            models = {
                "featkd": OnnxLM(OnnxModel(folders["fp32"], THREADS, spin=False), tokenizer, BATCH),
                "lm-eval onnxruntime": ONNXRuntimeLM(str(folders["genai"]), execution_provider="cpu"),
                "lm-eval hf": HFLM(str(folders["eager"]), device="cpu", dtype="float32", batch_size=BATCH),
            }
        seconds: dict[str, list[float]] = {name: [] for name in models}
        clocks = {name: _clocked(model) for name, model in models.items()}
        scores: dict[str, dict[str, list[float]]] = {name: {} for name in models}
        for number in range(LM_ROUNDS):
            names = list(models)
            for name in names[number % 3 :] + names[: number % 3]:
                manager = accuracy._manager(TASKS, [include])
                clocks[name].clear()
                with contextlib.redirect_stdout(None):
                    found = simple_evaluate(
                        model=models[name], tasks=list(TASKS), bootstrap_iters=0, task_manager=manager
                    )
                seconds[name].append(sum(clocks[name]))
                for task, samples in found["samples"].items():
                    samples = sorted(samples, key=lambda one: one["doc_id"])
                    scores[name][task] = [
                        float(score if isinstance(score, float) else score[0])
                        for one in samples
                        for score in one["filtered_resps"]
                    ]
                print(name, f"{seconds[name][-1]:.1f} s", file=sys.stderr)
    asked = sum(map(len, scores["featkd"].values()))
    return [
        {
            "contender": name,
            "requests": asked,
            "requests_per_s": asked / statistics.median(seconds[name]),
            "ratio": statistics.median(b / a for a, b in zip(seconds["featkd"], seconds[name], strict=True)),
            "log_likelihood_difference": max(
                float(np.abs(np.subtract(scores[name][task], scores["lm-eval hf"][task])).max()) for task in TASKS
            ),
            "seconds": seconds[name],
        }
        for name in models
    ]


def _clocked(model: Any) -> list[float]:
    """Seconds of each call that lm-eval makes of a model, from now on: building the tasks takes all alike."""
    spent: list[float] = []

    def clocked(inner: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            start = time.perf_counter()
            found = inner(*given, **options)
            spent.append(time.perf_counter() - start)
            return found

        return call

    for name in ("loglikelihood", "loglikelihood_rolling"):
        setattr(model, name, clocked(getattr(model, name)))
    return spent


def repeated(folders: dict[str, Path], prompt: list[int]) -> list[dict[str, Any]]:
    """The product's latency tool on two models, several times: the speed-up of the first over the second."""
    options = spec.Latency(prompt_tokens=PROMPT, new_tokens=NEW, repeats=5 if QUICK else 20, batch_sizes=[])
    rows = []
    for number in range(REPETITIONS):
        start = time.perf_counter()
        raw = latency.measure(folders, options, prompt, THREADS, "cpu")
        mine, base = raw.values()
        found = summarise(mine, base)[0].decode_speedup
        rows.append({"repetition": number, "speedup": found.value, "low": found.low, "high": found.high})
        print(rows[-1], f"{time.perf_counter() - start:.0f} s", file=sys.stderr)
    for row in rows:
        others = statistics.median(other["speedup"] for other in rows if other is not row)
        row["covers"] = row["low"] is not None and row["low"] <= others <= row["high"]
    return rows


def main() -> None:
    rows: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        (folder / "texts").mkdir()
        probe = texts(folder / "texts")
        prompt = [token for text in probe for token in text][:PROMPT]
        for name in SIZES:
            folders = made(folder, name, folder / "texts" / "tokenizer", probe)
            found = decode(folders, prompt)
            rows += [{"part": "decode", "size": name} | row for row in found]
            of = {row["contender"]: row for row in found}
            suffix = "" if name == "default student" else f"_{name.lower()}"
            summary[f"decode_vs_eager{suffix}"] = of["eager"]["ratio"]
            summary[f"decode_vs_genai{suffix}"] = of["genai"]["ratio"]
            found = lm_eval(folders, folder / "texts" / "tasks")
            rows += [{"part": "lm-eval", "size": name} | row for row in found]
            of = {row["contender"]: row for row in found}
            summary[f"lm_eval_vs_lm_eval_ort{suffix}"] = of["lm-eval onnxruntime"]["ratio"]
            summary[f"lm_eval_vs_hflm{suffix}"] = of["lm-eval hf"]["ratio"]
            summary[f"log_likelihood_difference{suffix}"] = of["featkd"]["log_likelihood_difference"]
            if name == "default student":
                found = repeated({"fp32": folders["fp32"], "int8": folders["int8"]}, prompt)
                rows += [{"part": "latency", "size": name} | row for row in found]
                middle = statistics.median(row["speedup"] for row in found)
                summary["latency_ratio_spread"] = max(abs(row["speedup"] / middle - 1) for row in found)
                summary["latency_intervals_that_cover"] = sum(row["covers"] for row in found)
    write("deploy", rows, summary, LEAD)


if __name__ == "__main__":
    main()
