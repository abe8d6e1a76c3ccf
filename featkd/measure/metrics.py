"""Metrics that lm-eval lacks; importing this registers them."""

from lm_eval.api.registry import register_metric

from featkd.data.answers import f1


@register_metric(metric="token_f1", higher_is_better=True, output_type="generate_until", aggregation="mean")
def token_f1(references: list[str], predictions: list[str]) -> float:
    return f1(predictions[0], references[0])
