"""The fused head on an accelerator against float64. CI has none: run by hand where there is one."""

import pytest
import torch
from test_head import case, exact, found

from featkd.align.head import Objective

DEVICE = "cuda"
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")

CASES = {
    "kl": (Objective(), {}),
    "hot, with cross-entropy": (Objective(temperature=2.0, ce_weight=0.3), {"bias": True, "scale": 0.5}),
    "cross-entropy": (None, {}),
    "capped": (Objective(), {"softcaps": (30.0, 30.0)}),
    "jsd": (Objective("jsd", temperature=2.0), {}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocabulary", [500, 5001])
def test_losses_and_gradients(name, dtype, vocabulary):
    objective, options = CASES[name]
    states, head, targets, teacher = case(300, (48, 80), vocabulary, **options)

    def moved(given):
        return tuple(x.to(DEVICE, dtype) if isinstance(x, torch.Tensor) else x for x in given)

    states, targets, head = states.to(DEVICE, dtype), targets.to(DEVICE), head._make(moved(head))
    teacher = objective and teacher._replace(
        hidden=teacher.hidden.to(DEVICE, dtype), head=teacher.head._make(moved(teacher.head))
    )
    objective = objective or Objective(ce_weight=1.0)
    loss, gradients = exact(states, head, targets, teacher, objective)
    its_loss, its_gradients = found(states, head, targets, teacher, objective, 10 << 20)
    assert abs(its_loss - loss) < 1e-5 * abs(loss)
    for own, its in zip(gradients, its_gradients, strict=True):
        assert float((its - own).norm() / own.norm()) < (1e-4 if dtype == torch.float32 else 1e-2)
