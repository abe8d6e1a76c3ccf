"""A pretrained model that is not ours: what is shipped says what PyTorch says."""

from pathlib import Path

import pytest
import torch

from featkd.deploy.export import export
from featkd.deploy.generate import Generator

MODEL = Path(__file__).parents[3] / "shared" / "models" / "babyllama-tok105"
PROMPTS = ("once upon a time there was a little girl named lily. she ", "one day, tom and his dog went to the ")


@pytest.mark.slow
@pytest.mark.skipif(not MODEL.is_dir(), reason="../shared/models is not on this machine")
def test_its_text_is_pytorchs(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(MODEL), AutoModelForCausalLM.from_pretrained(MODEL).eval()
    prompts = [tokenizer(text, add_special_tokens=False).input_ids for text in PROMPTS]
    parity = export(MODEL, tmp_path, prompts, 1e-4, 2)
    assert parity.passed and parity.graph == "fused"
    for prompt in prompts:
        with torch.no_grad():
            whole = model.generate(
                torch.tensor([prompt]), max_new_tokens=100, min_new_tokens=100, do_sample=False, pad_token_id=0
            )
        assert Generator(tmp_path, 2).generate(prompt, 100) == whole[0, len(prompt) :].tolist()
