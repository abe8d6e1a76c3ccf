"""A causal LM of any family that the user has: a folder, or a hub id. `field` is where the spec names it."""

from pathlib import Path
from typing import Any

from featkd.errors import InputError

TEACHER = "teacher.model"
SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def locate(model: str, field: str = TEACHER) -> str:
    """The model's local folder; 'hub:owner/name' is downloaded. Raises InputError where there is no usable model."""
    if model.startswith("hub:"):
        return _download(model.removeprefix("hub:"), field)
    folder = Path(model)
    if not folder.is_dir():
        raise InputError(f"{field}: no folder {model}; for a hub id write hub:owner/name")
    if not (folder / "config.json").is_file():
        raise InputError(f"{field}: {model} has no config.json; give a Hugging Face model folder")
    if not list(folder.glob("*.safetensors")):
        raise InputError(f"{field}: {model} has no .safetensors; save it with save_pretrained (pickle is not read)")
    return model


def _download(repository: str, field: str) -> str:
    import huggingface_hub

    try:
        return huggingface_hub.snapshot_download(repository, allow_patterns=HUB_FILES)
    except Exception as error:  # offline, gated, missing, misspelt: all mean that it cannot be had
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{field}: hub:{repository} cannot be downloaded: {reason}") from None


def load(folder: str | Path, field: str = TEACHER) -> Any:
    """A causal LM in float32, from safetensors, without remote code. Raises InputError with the reason."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    except Exception as error:  # wrong architecture, truncated weights, remote code: the folder cannot be used
        raise InputError(f"{field}: {folder} cannot be loaded: {' '.join(str(error).split())[:200]}") from None


def positions(config: Any) -> int:
    """The longest sequence the model takes, in tokens."""
    return int(getattr(config, "max_position_embeddings", None) or 2048)


def configuration(folder: str | Path, field: str = TEACHER) -> Any:
    """What a model's config.json says, without its weights. Raises InputError with the reason."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # no JSON, an unknown architecture, remote code: the folder cannot be used
        raise InputError(f"{field}: {folder} cannot be used: {' '.join(str(error).split())[:200]}") from None
    known = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if not known or not all(getattr(config, name, None) for name in SIZES):
        raise InputError(f"{field}: {folder} holds a {config.model_type}, no causal language model of text alone")
    return config
