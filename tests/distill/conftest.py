"""A teacher to learn from, and token blocks beside it."""

import pytest
import tiny_models


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A teacher folder and token blocks beside it."""
    return tiny_models.save_with_blocks(tmp_path_factory.mktemp("distill"))
