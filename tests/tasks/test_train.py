"""What is told of a teacher that the user gave."""

import json
import shutil

import tiny_models

from tasks.train import _parameters


def test_a_second_copy_of_the_weights_is_not_counted(tmp_path):
    from transformers import AutoModelForCausalLM

    folder = tiny_models.save("llama", tmp_path)
    model = AutoModelForCausalLM.from_pretrained(folder)
    expected = sum(parameter.numel() for parameter in model.parameters())
    assert _parameters(folder) == expected
    shutil.copy(folder / "model.safetensors", folder / "consolidated.safetensors")
    assert _parameters(folder) == expected
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size=30_000)
    assert len(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]) > 1
    assert _parameters(folder) == expected
