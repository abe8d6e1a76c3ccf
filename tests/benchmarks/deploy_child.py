"""One contender of `deploy.py`: it loads, and generates once for every line on stdin. Imports what it needs, no more.

deploy_child.py KIND FOLDER THREADS PROMPT NEW: kind featkd, eager or genai; a JSON line says ready, then one per turn.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

Generated = tuple[list[int], float, float]  # tokens, seconds to the first, seconds of the others


def featkd(folder: str, threads: int) -> Callable[[list[int], int], Generated]:
    from pathlib import Path

    from featkd.deploy.generate import Generator

    model = Generator(Path(folder), threads)

    def generate(prompt: list[int], new_tokens: int) -> Generated:
        start = time.perf_counter()
        stream = model.stream(prompt, new_tokens)
        tokens = [next(stream)]
        first = time.perf_counter()
        tokens.extend(stream)
        return tokens, first - start, time.perf_counter() - first

    return generate


def eager(folder: str, threads: int) -> Callable[[list[int], int], Generated]:
    """A bare loop with a KV cache: no `generate()`, whose checks cost more than a small model."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def generate(prompt: list[int], new_tokens: int) -> Generated:
        start, tokens = time.perf_counter(), []
        output = model(input_ids=torch.tensor([prompt]), use_cache=True, logits_to_keep=1)
        tokens.append(int(output.logits[0, -1].argmax()))
        first = time.perf_counter()
        while len(tokens) < new_tokens:
            output = model(input_ids=torch.tensor([tokens[-1:]]), past_key_values=output.past_key_values)
            tokens.append(int(output.logits[0, -1].argmax()))
        return tokens, first - start, time.perf_counter() - first

    return generate


def genai(folder: str, threads: int) -> Callable[[list[int], int], Generated]:
    """onnxruntime-genai on the folder of its own builder; its threads are in genai_config.json."""
    import onnxruntime_genai as og

    model = og.Model(folder)

    def generate(prompt: list[int], new_tokens: int) -> Generated:
        length = len(prompt) + new_tokens
        options = og.GeneratorParams(model)
        options.set_search_options(max_length=length, min_length=length, do_sample=False)
        start, tokens = time.perf_counter(), []
        generator = og.Generator(model, options)
        generator.append_tokens(prompt)
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
        first = time.perf_counter()
        while len(tokens) < new_tokens:
            generator.generate_next_token()
            tokens.append(int(generator.get_next_tokens()[0]))
        return tokens, first - start, time.perf_counter() - first

    return generate


def main(kind: str, folder: str, threads: str, prompt: str, new_tokens: str) -> None:
    made: dict[str, Any] = {"featkd": featkd, "eager": eager, "genai": genai}
    generate = made[kind](folder, int(threads))
    ids = json.loads(prompt)
    for _ in range(3):
        generate(ids, int(new_tokens))
    print(json.dumps("ready"), flush=True)
    for _ in sys.stdin:
        generate(ids, 2)  # the caches are full of another model
        tokens, ttft_s, decode_s = generate(ids, int(new_tokens))
        print(json.dumps({"tokens": tokens, "ttft_s": ttft_s, "decode_s": decode_s}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
