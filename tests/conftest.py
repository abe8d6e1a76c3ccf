"""Fixtures that several rooms share: exporting takes seconds, so it is done once."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

# helpers: tiny_models, recompute; example results: make_results, make_candidates
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "reports")]


# a window shorter than the texts, and heads that the attention op rotates itself; the others have neither
SHAPES = {"mistral": {"head_dim": 16, "sliding_window": 8}}


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """kind -> SimpleNamespace(hf, onnx, parity, probe): a tiny random model of that kind and its ONNX export."""
    import tiny_models

    from featkd.deploy.export import export

    made = {}

    def make(kind: str) -> SimpleNamespace:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            hf = tiny_models.save(kind, folder / "hf", **SHAPES.get(kind, {}))
            probe = tiny_models.probe(hf)
            parity = export(hf, folder / "onnx", probe, 1e-4, 2, graphs=folder / "graphs")
            paths = {"hf": hf, "onnx": folder / "onnx", "graphs": folder / "graphs"}
            made[kind] = SimpleNamespace(**paths, parity=parity, probe=probe)
        return made[kind]

    return make
