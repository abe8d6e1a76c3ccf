"""Tiny random models with a tiny byte-level tokenizer, made on the fly."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

WORDS = "the model returns an array of values with shape and dtype for each index in the list of names given".split()


def text(seed: int, words: int) -> str:
    generator = torch.Generator().manual_seed(seed)
    return " ".join(WORDS[index] for index in torch.randint(len(WORDS), (words,), generator=generator))


def save(kind: str, folder: Path, seed: int = 0, layers: int = 2, padding: int = 0, **options: Any) -> Path:
    """A Hugging Face folder with a random causal LM of a kind (llama, gpt2, ...) and its tokenizer.

    padding: rows of the embeddings beyond the tokenizer's tokens. options: of its config.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=_tokenizer(), bos_token="<|end|>", eos_token="<|end|>")
    sizes = {"n_embd": 32, "n_layer": layers, "n_head": 4, "n_positions": 96} if kind == "gpt2" else {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 96}  # fmt: skip
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer) + padding, **{**sizes, **ends, **options})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # large enough that the outputs differ between tokens
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_with_blocks(root: Path) -> Path:
    """A teacher folder and token blocks beside it, in `root`."""
    save("llama", root / "teacher")
    rng = np.random.default_rng(0)
    for part, blocks in (("train", 24), ("valid", 16)):
        ids = rng.integers(1, 300, (blocks, 32), dtype=np.int32)
        np.save(root / f"{part}.npy", blocks_of(ids))
    return root


def blocks_of(ids: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
    """int32 [3, blocks, block]: ids, labels (the ids, if not given) and the positions of one text per block."""
    labels = ids if labels is None else labels
    return np.stack([ids, labels, np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)])


def probe(folder: Path) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [tokenizer.encode(text(seed, words))[:48] for seed, words in enumerate((60, 30, 9))]


def write_tasks(folder: Path, examples: int = 24) -> Path:
    """lm-eval tasks in a folder: choices (four passages), labels (short answers), rolling."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = {
        "tiny_choices": [
            {"text": text(n, 12), "choices": [" " + text(100 * n + c + 1, 4 + c) for c in range(4)], "gold": n % 4}
            for n in range(examples)
        ],
        "tiny_labels": [
            {"text": text(n, 8), "choices": ["array", "model", "in", "dtype"], "gold": n % 4} for n in range(examples)
        ],  # fmt: skip
        "tiny_rolling": [{"text": text(n, 20 + 5 * n)} for n in range(examples)],
    }
    for name, examples_of in rows.items():
        data = folder / f"{name}.jsonl"
        data.write_text("\n".join(json.dumps(row) for row in examples_of))
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "metadata": {"version": 1},
        }
        if name == "tiny_rolling":
            task |= {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
                     "metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}]}  # fmt: skip
        else:
            task |= {"output_type": "multiple_choice", "doc_to_text": "{{text}}", "doc_to_choice": "{{choices}}",
                     "doc_to_target": "{{gold}}", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
                     "target_delimiter": "" if name == "tiny_choices" else " "}  # fmt: skip
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return folder


def _tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|end|>"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    tokenizer.train_from_iterator([text(seed, 50) for seed in range(20)], trainer)
    return tokenizer
