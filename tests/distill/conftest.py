"""A teacher to learn from, and token blocks beside it."""

import numpy as np
import pytest
import tiny_models


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A teacher folder and token blocks beside it."""
    root = tmp_path_factory.mktemp("distill")
    tiny_models.save("llama", root / "teacher")
    rng = np.random.default_rng(0)
    for part, blocks in (("train", 24), ("valid", 16)):
        ids = rng.integers(1, 300, (blocks, 32), dtype=np.int32)
        np.save(root / f"{part}.npy", np.stack([ids, ids]))
    return root
