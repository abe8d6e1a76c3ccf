"""Made-up latencies."""

from featkd.result import Interval, Latency, OperatingPoint, Times


def latency(prefill, decode, spread=0.0, **more):
    """Of one request at a time."""
    return Latency(points=[point(1, prefill, decode, spread, **more)])


def point(concurrency, prefill, decode, spread=0.0, ttft_ms=1.0, inter_token_ms=1.0, **more):
    def interval(value):
        low, high = (None, None) if spread is None else (value * (1 - spread), value * (1 + spread))
        return Interval(value=value, low=low, high=high)

    def times(ms):
        return Times(p50=Interval(value=ms), p90=Interval(value=2 * ms), p99=3 * ms)

    return OperatingPoint(
        concurrency=concurrency, ttft_ms=times(ttft_ms), inter_token_ms=times(inter_token_ms), end_to_end_ms=times(9.0),
        prefill_tokens_per_s=interval(prefill), decode_tokens_per_s=interval(decode), **more,
    )  # fmt: skip
