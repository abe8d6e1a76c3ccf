"""The layout of a small model that is trained from nothing."""

from typing import Any

from featkd.training import Shape


def llama_config(shape: Shape, vocab_size: int, positions: int, end_id: int) -> Any:
    """A small Llama with tied embeddings. positions: the longest sequence it will see."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        bos_token_id=end_id,
        eos_token_id=end_id,
        pad_token_id=end_id,
    )
