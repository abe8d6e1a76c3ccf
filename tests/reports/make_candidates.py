"""Realistic candidates of a result document."""

import math
import random

from make_decisions import transfer
from make_money import around, money

from featkd.result import (
    Agreement,
    Alignment,
    Calibration,
    Candidate,
    Check,
    Comparison,
    Decision,
    Energy,
    Fidelity,
    GateOutcome,
    Guardrails,
    Interval,
    Latency,
    Memory,
    OperatingPoint,
    Parity,
    Quality,
    Roi,
    Score,
    Signal,
    Times,
    Tokens,
    Training,
    WorstClass,
)

PERPLEXITY = {"teacher": 31.42, "sft": 44.87, "logit-kd": 40.95, "feature-kd": 40.21}
ACCURACY = {
    "heldout_continuation": (0.25, {"teacher": 0.5125, "sft": 0.4275, "logit-kd": 0.465, "feature-kd": 0.4725}),
    "heldout_routing": (0.1, {"teacher": 0.7825, "sft": 0.665, "logit-kd": 0.7475, "feature-kd": 0.73}),
}
TTFT_MS = {"teacher": 18.37, "sft": 6.21, "logit-kd": 6.24, "feature-kd": 6.19}
DECODE = {"teacher": 131.6, "sft": 402.3, "logit-kd": 399.8, "feature-kd": 403.1}
OWN_SECONDS = {"logit-kd": 60.0, "feature-kd": 63.6}
ALIGNMENT = Alignment(layer_map="uniform", layer_pairs=[(0, 0), (1, 2)], projector="linear", guarded=True)
OF_OUTPUTS = Signal(outputs="top-k", top_k=64, bytes_per_token=384, bytes=80_000_000, coverage=0.9613)
SIGNALS = {
    "logit-kd": OF_OUTPUTS,
    "feature-kd": OF_OUTPUTS.model_copy(
        update={"features": "int8", "layers": [0, 2], "dimensions": 64, "bytes_per_token": 520, "cosine": 0.98765}
    ),
}
VERDICTS = {"sft": "no-go", "logit-kd": "inconclusive", "feature-kd": "go"}

HELD_OUT = Tokens(
    tokens=7999,
    kl=Interval(value=0.412, low=0.391, high=0.436),
    agreement=Interval(value=0.613, low=0.598, high=0.627),
)


def parity(precision: str) -> Parity:
    whole = Parity(
        passed=True, max_abs_difference=2.1e-5, tolerance=1e-4, argmax_agreement=1.0, tokens=512, graph="fused"
    )
    lower = {"tolerance": None, "argmax_agreement": 0.974, "mean_kl": 0.0123, "general_why": "attention has sinks"}
    return whole if precision == "fp32" else whole.model_copy(update={**lower, "graph": "general"})


def operating_point(concurrency: int, first: float, speed: float, teacher: bool) -> OperatingPoint:
    """Each doubling of the requests brings 1.6 times the tokens."""
    gain = concurrency**0.68
    gap = 1e3 * concurrency / (speed * gain)
    whole = concurrency * first + 63 * gap
    return OperatingPoint(
        concurrency=concurrency,
        ttft_ms=Times(p50=around(concurrency * first, 0.05 * first), p90=around(concurrency * first * 1.2, first * 0.1),
                      p99=concurrency * first * 1.4),
        inter_token_ms=Times(p50=around(gap, 0.03 * gap), p90=around(1.1 * gap, 0.05 * gap), p99=1.5 * gap),
        end_to_end_ms=Times(p50=around(whole, 0.03 * whole), p90=around(1.1 * whole, 0.05 * whole), p99=1.5 * whole),
        prefill_tokens_per_s=around(speed * 20, speed),
        decode_tokens_per_s=around(speed * gain, 0.03 * speed * gain),
        ttft_speedup=None if teacher else around(TTFT_MS["teacher"] / first, 0.12),
        decode_speedup=None if teacher else around(speed / DECODE["teacher"], 0.09),
    )  # fmt: skip


def guardrails(teacher: bool) -> Guardrails:
    def check(value: float, worse: float, ideal: float | None, up: bool = False) -> Check:
        apart = None if teacher else around(worse, 0.04)
        return Check(estimate=around(value + (0 if teacher else worse), 0.05), worse=apart, higher_is_better=up,
                     ideal=ideal, examples=400, documents=80)  # fmt: skip

    return Guardrails(checks={
        "crows_pairs.stereotype": check(0.58, 0.01, 0.5), "bbq.ambiguous_bias": check(0.04, 0.06, 0.0),
        "bbq.ambiguous_accuracy": check(0.31, -0.07, 1.0, up=True), "truthfulqa_mc1": check(0.27, 0.02, None, up=True),
        "generation.repetition": check(0.22, 0.09, 0.0), "generation.personal_data": check(0.03, 0.0, 0.0),
    })  # fmt: skip


def candidate(arm: str, size: str = "s", precision: str = "fp32", shrink: float = 1.0) -> Candidate:
    teacher = arm == "teacher"
    rng = random.Random(f"{arm}{size}{precision}")
    quality = {"heldout_perplexity": perplexity(PERPLEXITY[arm] / shrink)}
    for task, (chance, values) in ACCURACY.items():
        quality[task] = accuracy(chance + (values[arm] - chance) * shrink, chance, values["teacher"], teacher)
    fidelity = {
        task: Agreement(
            examples=400,
            agreement=share(0.78 * shrink, 400),
            correct_to_wrong=share(0.12, 400),
            wrong_to_correct=share(0.07, 400),
            mcnemar_p=0.02,
            on_right=share(0.86 * shrink, 240),
            on_wrong=share(0.62 * shrink, 160),
            kl=around(0.21 / shrink, 0.02),
            calibration=Calibration(
                ece=around(0.06, 0.02), brier=around(0.5, 0.03), brier_difference=around(0.04, 0.02)
            ),
            worst_class=WorstClass(name="numpy", examples=64, classes=5, difference=around(-0.16, 0.11)),
        )
        for task in ACCURACY
    }
    speed = DECODE[arm] / shrink**2
    first = TTFT_MS[arm] * shrink
    tokens = 4_000_000
    return Candidate(
        arm=arm,
        size=None if teacher else size,
        seed=None if teacher else 0,
        precision=precision,
        artefact=digest(arm + size + precision),
        training=Training(
            seconds=231.4 if teacher else (57.1 if arm == "sft" else OWN_SECONDS[arm] + 18.9),
            teacher_seconds=None if teacher else (0.0 if arm == "sft" else 18.9),
            memory_bytes=None if teacher else int((188e6 if arm == "feature-kd" else 182.6e6) * shrink),
            tokens=12_000_000 if teacher else tokens,
            steps=976,
            parameters=int((36_502_144 if teacher else 11_412_480) * shrink**4),
            weights_sha256=digest("weights" + arm + size),
            curve=curve(arm, tokens, shrink),
            alignment=ALIGNMENT if arm == "feature-kd" else None,
            signal=SIGNALS.get(arm),
        ),
        parity=parity(precision),
        quality=Quality(tasks=quality),
        fidelity=Fidelity(why="baseline") if teacher else Fidelity(tasks=fidelity, held_out=HELD_OUT),
        guardrails=guardrails(teacher),
        latency=Latency(
            provider="CPUExecutionProvider",
            points=[operating_point(size, first, speed, teacher) for size in (1, 4, 16)],
            generations=30,
            raw_ttft_ms=[first * rng.lognormvariate(0, 0.06) for _ in range(30)],
            raw_decode_tokens_per_s=[speed * rng.lognormvariate(0, 0.03) for _ in range(30)],
        ),
        memory=Memory(
            peak_rss_bytes=around((412 if teacher else 266) * 1e6 * shrink, 3.1e6),
            file_bytes=int((61.2e6 if teacher else 22.8e6) * shrink),
            cache_bytes_per_token=int((16_384 if teacher else 6_144) * shrink),
            rss_above_import_bytes=around((241 if teacher else 95) * 1e6 * shrink, 3.1e6),
            rss_ratio=None if teacher else around(0.646 * shrink, 0.009),
        ),
        energy=Energy(counter="rapl", joules_per_1000_tokens=around(14e3 / speed, 300 / speed)),
        transfer=transfer(arm),
        roi=money(speed, DECODE["teacher"], teacher),
        verdict=Decision(why="baseline") if teacher else decision(arm),
    )


def decision(arm: str) -> Decision:
    low = {"sft": "fail", "logit-kd": "inconclusive", "feature-kd": "pass"}[arm]
    kept = {"sft": 0.68, "logit-kd": 0.82, "feature-kd": 0.85}[arm]
    return Decision(
        verdict=VERDICTS[arm],
        why="gates",
        gates=[
            GateOutcome(
                metric="quality.heldout_continuation.retained",
                at_least=0.75,
                severity="block",
                observed=around(kept, 0.09),
                outcome=low,
            ),
            GateOutcome(
                metric="quality.heldout_perplexity.ratio",
                at_most=1.35,
                severity="block",
                observed=around(1.28, 0.02),
                outcome="pass",
            ),
            GateOutcome(
                metric="latency.decode_speedup",
                at_least=2,
                severity="block",
                observed=around(3.06, 0.09),
                outcome="pass",
            ),
            GateOutcome(
                metric="memory.rss_ratio", at_most=0.7, severity="warn", observed=around(0.646, 0.009), outcome="pass"
            ),
            GateOutcome(
                metric="roi.payback_months",
                at_most=18,
                severity="block",
                observed=None,
                outcome="missing" if arm == "sft" else "pass",
            ),
        ],
    )


def empty(trained: Candidate, why: str, training: bool = True) -> Candidate:
    return trained.model_copy(
        update={
            "training": trained.training if training else None,
            "artefact": None,
            "parity": None,
            "quality": Quality(why=why),
            "fidelity": Fidelity(why=why),
            "latency": Latency(why=why),
            "memory": Memory(why=why),
            "energy": Energy(why=why),
            "roi": Roi(why=why),
            "verdict": Decision(verdict="no-go" if why == "parity-failed" else None, why=why),
        }
    )


def accuracy(value: float, chance: float, teacher: float, baseline: bool) -> Score:
    kept = (value - chance) / (teacher - chance)
    return Score(
        metric="acc",
        higher_is_better=True,
        estimate=share(value, 400),
        examples=400,
        chance=chance,
        overlap=share(0.0225, 400),
        difference=None if baseline else around(value - teacher, 0.038),
        retained=None if baseline else around(kept, 0.09),
    )


def perplexity(value: float) -> Score:
    baseline = value == PERPLEXITY["teacher"]
    ratio = value / PERPLEXITY["teacher"]
    unigram = 812.0
    kept = math.log(unigram / value) / math.log(unigram / PERPLEXITY["teacher"])
    return Score(
        metric="token_perplexity",
        higher_is_better=False,
        estimate=around(value, 0.03 * value),
        examples=400,
        chance=unigram,
        overlap=Interval(value=0.005, low=0.001, high=0.018),
        ratio=None if baseline else around(ratio, 0.02),
        retained=None if baseline else around(kept, 0.006),
    )


def curve(arm: str, tokens: int, shrink: float) -> list[dict[str, float]]:
    floor = math.log(PERPLEXITY[arm] / shrink) - 0.3
    return [
        {"tokens": tokens * step / 20, "validation_loss": floor + 5.2 * math.exp(-4.2 * step / 20)}
        for step in range(1, 21)
    ]


def paired(task: str, a: str, b: str, seed: int) -> Comparison:
    centre = random.Random(f"{task}{a}{seed}").uniform(-0.03, 0.07)
    return Comparison(task=task, a=a, b=b, kind="difference", estimate=around(centre, 0.03))


def share(value: float, examples: int) -> Interval:
    return around(value, 1.96 * math.sqrt(value * (1 - value) / examples))


def digest(text: str) -> str:
    return f"{random.Random(text).getrandbits(256):064x}"
