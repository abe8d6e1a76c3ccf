"""The accelerator's kernels by Triton's interpreter, against float64. On an accelerator: tests/benchmarks/head.py."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed: no kernels to test")

CHECK = """
import itertools, json
import torch
import torch.nn.functional as F
from featkd.align import kernels
from featkd.align.output import Head

kernels.TILE, kernels.TOKENS, kernels.WIDTH, kernels.LANES = 16, 8, 16, 64

def case(vocabulary, taught, temperature, ce_weight, scale, biased, tokens):
    torch.manual_seed(0)
    dtype = torch.float16  # the interpreter multiplies bf16 wrongly
    x, weight = torch.randn(tokens, 40).to(dtype), torch.randn(vocabulary, 40).to(dtype)
    y, its_weight = torch.randn(tokens, 56).to(dtype), torch.randn(vocabulary, 56).to(dtype)
    x[1] *= 4  # far from the others, as some logits are
    bias, its_bias = ((torch.randn(vocabulary).to(dtype) - 30) if biased else None for _ in range(2))
    targets = torch.randint(vocabulary, (tokens,))
    head = Head(weight, bias, scale)
    teacher = (y, Head(its_weight, its_bias)) if taught else None
    work = kernels.Workspace(tokens + 3, vocabulary, taught, dtype, torch.device("cpu"))
    found, gradient = kernels.forward_kl(x, head, teacher, targets, temperature, ce_weight, work)

    z = (scale * F.linear(x.double(), weight.double(), None if bias is None else bias.double()))
    z.requires_grad_()
    loss = torch.zeros(tokens, dtype=torch.float64)
    if taught:
        u = F.linear(y.double(), its_weight.double(), None if its_bias is None else its_bias.double())
        log_p, log_q = F.log_softmax(u / temperature, -1), F.log_softmax(z / temperature, -1)
        loss = temperature**2 * F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    if ce_weight:
        loss = loss + ce_weight * F.cross_entropy(z, targets, reduction="none")
    loss.sum().backward()
    return [
        float((found - loss).norm() / loss.norm()),
        float((gradient.double() - z.grad).norm() / z.grad.norm()),
    ]

cases = itertools.product((9, 100), (True, False), (1.0, 2.0), (0.0, 0.5), (True, False))
cases = [(v, t, T, c, 0.5 if b else 1.0, b, 5 if b else 11) for v, t, T, c, b in cases if t or c]
print(json.dumps([[c, *case(*c)] for c in cases]))
"""


def test_losses_and_gradients_of_every_case_are_those_of_float64():
    done = subprocess.run(  # of its own: Triton asks for the interpreter when it is imported
        [sys.executable, "-c", CHECK], env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert not done.returncode, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 24
    for case, loss, gradient in found:
        assert loss < 1e-5, case
        assert gradient < 1e-3, case
