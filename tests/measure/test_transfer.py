"""Representations of a student beside its teacher's, and next tokens, beside references in numpy."""

import json

import numpy as np
import pandas
import pytest
import tiny_models
import torch

from featkd import spec
from featkd.measure import transfer
from featkd.measure.fidelity import tokens


def texts(folder, count=12):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer.encode(tiny_models.text(n, 20 + n))[:60] for n in range(count)]
    return [
        {"before": one[: 5 * (n % 2)], "text": one[5 * (n % 2) :], "group": f"d{n // 2}"} for n, one in enumerate(ids)
    ]


def distributions(folder, ids):
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)(torch.tensor([ids])).logits[0]
    return np.exp(logits.log_softmax(-1).numpy())


def test_next_tokens(exported, tmp_path):
    teacher, student = exported("llama"), exported("gpt2")
    asked = texts(teacher.hf)
    told = transfer.tokens(teacher.onnx, student.onnx, asked, 2, "cpu", tmp_path)
    table = pandas.read_parquet(tmp_path / "tokens.parquet")
    kl, same, groups = [], [], []
    for text in asked:
        ids = text["before"] + text["text"]
        n = min(len(text["text"]), len(ids) - 1)
        p, q = (distributions(folder, ids[:-1])[-n:] for folder in (teacher.hf, student.hf))
        kl += list((p * np.log(p / q)).sum(1))
        same += list(p.argmax(1) == q.argmax(1))
        groups += [text["group"]] * n
    assert told == {"tokens": len(table)} == {"tokens": len(kl)}
    ours = table.sort_values(["group", "kl"])
    theirs = pandas.DataFrame({"group": groups, "kl": kl, "same": same}).sort_values(["group", "kl"])
    assert ours["kl"].to_numpy() == pytest.approx(theirs["kl"].to_numpy(), abs=1e-4)
    found = tokens(table)
    assert found.kl.value == pytest.approx(np.mean(kl), abs=1e-5) and found.tokens == len(kl)
    assert found.agreement.value == pytest.approx(np.mean(same), abs=0.01)
    assert found.kl.low < found.kl.value < found.kl.high


def test_a_state_that_is_the_teachers_but_for_a_turn_is_all_there():
    torch.manual_seed(0)
    theirs = torch.randn(400, 16, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64)).Q
    found = transfer.beside([3 * theirs @ turn + 5, torch.randn(400, 8, dtype=torch.float64)], [theirs, theirs])
    assert found.cka[0] == pytest.approx([1.0, 1.0], abs=1e-4)
    assert found.cosine[0] == pytest.approx(1.0, abs=1e-4) and found.norm_ratio[0] == pytest.approx(1.0, abs=2e-3)
    assert abs(found.cka[1][1]) < 0.05 and found.cosine[1] < 0.1 and found.norm_ratio[1] < 0.4


def test_what_a_narrow_student_can_hold():
    """The teacher's state has variance in 16 directions alike; a student with 4 of them can tell a quarter."""
    torch.manual_seed(1)
    theirs = torch.randn(4000, 16, dtype=torch.float64)
    found = transfer.beside([theirs[:, :4]], [theirs])
    kept = float((theirs[:, :4].norm(dim=1) / theirs.norm(dim=1)).mean())
    assert found.cosine[0] == pytest.approx(kept, abs=0.01)
    assert found.norm_ratio[0] == pytest.approx(kept, abs=0.02)


def test_before_and_after_of_a_copied_student(exported, tmp_path):
    """Of copied layers the first weights are the teacher's: what is before training is known."""
    rng, hf = np.random.default_rng(0), exported("llama").hf
    np.save(tmp_path / "train.npy", tiny_models.blocks_of(rng.integers(1, 300, (8, 32), dtype=np.int32)))
    size = spec.Student(name="s", layers=2, init="copy")
    trained = tiny_models.save("llama", tmp_path / "trained", seed=9, layers=1)
    told = transfer.layers(hf, trained, size, 0, tmp_path, 128, texts(hf), "cpu", tmp_path)
    found = transfer.told(tmp_path)
    assert told["tokens"] == found.tokens == json.loads((tmp_path / "layers.json").read_text())["tokens"]
    assert np.diag(found.before.cka) == pytest.approx([1.0, 1.0, 1.0], abs=1e-4)
    assert found.before.cosine == pytest.approx([1.0, 1.0, 1.0], abs=0.02)
    assert np.shape(found.after.cka) == (2, 3) and found.after.cosine[-1] < 0.9
