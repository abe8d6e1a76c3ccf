"""All that follows from the evidence of a PoC and its spec: prices, verdicts, comparisons, and what to do."""

from typing import Any, NamedTuple

from featkd import result, spec
from featkd.decide import advice, assemble, frontier, rollout, sizes, verdict
from featkd.decide.evidence import Evidence


class Judgement(NamedTuple):
    """Parts of a result, by their names there. beside_champion: with the student that serves; none without one."""

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
    adequacy: result.Adequacy,
    overlap: Any,
    training_tokens: int,
    champion: Evidence | None = None,
) -> Judgement:
    """evidence: the teacher's first. overlap: see assemble.candidates. training_tokens: of an epoch."""
    candidates = assemble.candidates(poc, evidence, chance, adequacy, overlap, champion)
    comparisons = assemble.comparisons(evidence)
    curves = sizes.sizes(candidates, poc.rules("teacher"), assemble.paired(evidence))
    recommendation = verdict.recommend(candidates, adequacy.adequate)
    if recommendation.candidate:
        chosen, teacher = candidates[recommendation.candidate], candidates["teacher"]
        more: dict[str, Any] = {"rollout": rollout.rollout(chosen, teacher, poc.rules("teacher"))}
    else:
        more = {"next": advice.advice(candidates, comparisons, poc.training.tokens / training_tokens)}
    return Judgement(
        candidates,
        comparisons,
        curves and curves.model_copy(update={"crossings": frontier.crossings(poc, evidence, chance)}),
        recommendation.model_copy(update=more),
        assemble.beside_champion(evidence, champion) if champion else [],
    )
