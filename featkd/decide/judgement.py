"""All that follows from the evidence of a PoC and its spec: prices, verdicts, comparisons, and what to do."""

from typing import Any, NamedTuple

from featkd import result, spec
from featkd.decide import advice, assemble, frontier, rollout, sizes, verdict
from featkd.decide.evidence import Evidence, scores


class Judgement(NamedTuple):
    """Parts of a result, by their names there. beside_champion: with the student that serves; none without one."""

    adequacy: result.Adequacy
    candidates: dict[str, result.Candidate]
    comparisons: list[result.Comparison]
    sizes: result.Sizes | None
    recommendation: result.Recommendation
    beside_champion: list[result.Comparison]

    @property
    def verdicts(self) -> str:
        told = {name: found.verdict.verdict for name, found in self.candidates.items()}
        return ", ".join(f"{name} {said}" for name, said in told.items() if said)


def judge(
    poc: spec.Spec,
    evidence: list[Evidence],
    chance: dict[str, float],
    overlap: Any,
    training_tokens: int,
    champion: Evidence | None = None,
) -> Judgement:
    """evidence: the teacher's first. overlap: see assemble.candidates. training_tokens: of an epoch."""
    found = adequacy(poc, evidence, chance)
    candidates = assemble.candidates(poc, evidence, chance, found, overlap, champion)
    comparisons = assemble.comparisons(evidence)
    curves = sizes.sizes(candidates, poc.rules("teacher"), assemble.paired(evidence))
    recommendation = verdict.recommend(candidates, found.adequate)
    if recommendation.candidate:
        chosen, teacher = candidates[recommendation.candidate], candidates["teacher"]
        more: dict[str, Any] = {"rollout": rollout.rollout(chosen, teacher, poc.rules("teacher"))}
    else:
        more = {"next": advice.advice(candidates, comparisons, poc.training.tokens / training_tokens)}
    return Judgement(
        found,
        candidates,
        comparisons,
        curves and curves.model_copy(update={"crossings": frontier.crossings(poc, evidence, chance)}),
        recommendation.model_copy(update=more),
        assemble.beside_champion(evidence, champion) if champion else [],
    )


def adequacy(poc: spec.Spec, evidence: list[Evidence], chance: dict[str, float]) -> result.Adequacy:
    """The teacher, `evidence[0]`, against chance and against each plain fine-tuned student that was measured."""
    teacher, asked = evidence[0].samples, poc.teacher
    controls = {
        found.name: scores(found.samples, teacher, chance)
        for found in evidence
        if found.arm == "sft" and found.samples is not None
    }
    most = asked.reference_perplexity and asked.reference_perplexity * asked.reference_factor
    return verdict.adequacy(scores(teacher, teacher, chance), controls, asked.if_inadequate, most)
