"""How the modules of a family read and write the residual stream."""

from typing import NamedTuple


class Layout(NamedTuple):
    """Modules are named from inside their block, those outside the blocks from the top of the model.

    Axes: stream, heads, keys, neurons; qkv is heads, keys and keys side by side; "" is never cut.
    """

    blocks: str
    final_norm: str
    readers: dict[str, tuple[str, str]]  # of the stream: (the norm that they read it through, the axis they write)
    writers: dict[str, str]  # of the stream: the axis that they read
    post_norms: tuple[str, ...] = ()  # norms of what a block is about to write
    gemma: bool = False  # gains are 1 + weight; embeddings are multiplied by the root of the width
    layer_norm: bool = False  # with a bias, and the mean taken away
    head_width: bool = True  # heads have a width of their own, whatever that of the stream

    @property
    def norms(self) -> list[str]:
        """Those through which blocks read the stream."""
        return sorted({norm for norm, _ in self.readers.values()} - {self.final_norm})

    @property
    def all_norms(self) -> list[str]:
        return [*self.norms, *self.post_norms, self.final_norm]

    def source(self, axis: str) -> str:
        """The module of a block that reads `axis` and writes the stream."""
        return next(module for module, reads in self.writers.items() if reads == axis)

    def path(self, block: int | None, module: str) -> str:
        return module if block is None else f"{self.blocks}.{block}.{module}"

    def place(self, path: str) -> tuple[int | None, str]:
        """(block, module) of a path; block is None outside the blocks."""
        if not path.startswith(f"{self.blocks}."):
            return None, path
        block, module = path.removeprefix(f"{self.blocks}.").split(".", 1)
        return int(block), module


LLAMA = Layout(
    "model.layers",
    "model.norm",
    {
        "self_attn.q_proj": ("input_layernorm", "heads"),
        "self_attn.k_proj": ("input_layernorm", "keys"),
        "self_attn.v_proj": ("input_layernorm", "keys"),
        "mlp.gate_proj": ("post_attention_layernorm", "neurons"),
        "mlp.up_proj": ("post_attention_layernorm", "neurons"),
        "lm_head": ("model.norm", ""),
    },
    {"model.embed_tokens": "", "self_attn.o_proj": "heads", "mlp.down_proj": "neurons"},
)
GEMMA = LLAMA._replace(gemma=True)
GEMMA_2 = GEMMA._replace(
    readers={
        **LLAMA.readers,
        "mlp.gate_proj": ("pre_feedforward_layernorm", "neurons"),
        "mlp.up_proj": ("pre_feedforward_layernorm", "neurons"),
    },
    post_norms=("post_attention_layernorm", "post_feedforward_layernorm"),
)
GPT_2 = Layout(
    "transformer.h",
    "transformer.ln_f",
    {"attn.c_attn": ("ln_1", "qkv"), "mlp.c_fc": ("ln_2", "neurons"), "lm_head": ("transformer.ln_f", "")},
    {"transformer.wte": "", "transformer.wpe": "", "attn.c_proj": "heads", "mlp.c_proj": "neurons"},
    layer_norm=True,
    head_width=False,
)
LAYOUTS = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), LLAMA),
    "gemma": GEMMA,
    **dict.fromkeys(("gemma2", "gemma3_text"), GEMMA_2),
    "gpt2": GPT_2,
}
