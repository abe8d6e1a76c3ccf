"""A signal from a cache: what it holds against what the teacher says, what the teacher need not do, what is refused."""

import json

import numpy as np
import pytest
import tiny_models
import torch
from test_engine import RUN, TRAINING, apart, blocks_of, same, students, weights
from test_resume import Ended, ended_after

from featkd.align.relations import blocks_of as layers_of
from featkd.distill import compress, engine, make_cache
from featkd.distill.batches import IGNORED, batches, first_epoch, learned, on_device
from featkd.distill.cache import Cache
from featkd.distill.checkpoint import Checkpoints
from featkd.distill.forward import Forward
from featkd.errors import InputError
from featkd.models import given
from featkd.teaching import Distillation, TeacherSignal

ALL = 300
PARTS = {
    "last-hidden": {"kind": "last-hidden"},
    "top": {"kind": "top-k", "k": ALL, "temperature": 1.0},
    "top-2": {"kind": "top-k", "k": 5, "temperature": 2.0},
    "layer-0": {"kind": "layer", "layer": 0, "dimensions": 32},
    "layer-1": {"kind": "layer", "layer": 1, "dimensions": 8},
    "layer-2": {"kind": "layer", "layer": 2, "dimensions": 32},
}
WANTED = Distillation(layer_pairs=[(0, 0), (1, 2)])
EPOCHS = TRAINING.model_copy(update={"tokens": 12 * 4 * 32, "micro_batch_size": 2})  # two epochs


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory):
    """Part to (folder, identity), and what was told of each. Every block holds two documents, and every third a prompt,
    which is not learned."""
    out = tmp_path_factory.mktemp("cache")
    teacher, (blocks, _) = given.load(folder / "teacher"), masked(folder)
    parts = {name: {**part, "identity": "x"} for name, part in PARTS.items()}
    chosen = first_epoch(blocks.shape[1], EPOCHS, blocks.shape[2])
    told = make_cache.make(parts, teacher, ALL, blocks, chosen, RUN, out)
    return {name: (out / name, "x") for name in parts}, told


def masked(folder):
    blocks, valid = blocks_of(folder)
    blocks[1][::3, :10] = IGNORED
    blocks[2][:, 16:] -= 16
    return blocks, valid


def train(folder, made, signal, arms, wanted=WANTED, names=PARTS, **options):
    """Weights by arm. signal: of the spec; None: all online."""
    teacher, learners = students(folder, arms, training=EPOCHS, distillation=wanted)
    cache = Cache(TeacherSignal(**signal), {name: made[0][name] for name in names}) if signal else None
    engine.train(learners, teacher, *masked(folder), RUN, lambda **fields: None, cache=cache, **options)
    return {learner.name: weights(learner) for learner in learners}


def test_every_block_of_the_batches_is_kept_once():
    for tokens in (3 * 4 * 32, 50 * 4 * 32):
        training = EPOCHS.model_copy(update={"tokens": tokens})
        taken = np.concatenate(list(batches(24, 4, tokens // 128)))
        found = first_epoch(24, training, 32)
        assert len(found) == len(set(found)) and set(found) == set(taken)
        assert list(found[:12]) == list(taken[:12]), "in the order of the batches"


@pytest.mark.parametrize(
    ("signal", "names", "within"),
    [
        ({"outputs": "last-hidden"}, ["last-hidden"], 2e-2),
        ({"outputs": "top-k", "top_k": ALL}, ["top"], 2e-3),
        ({"features": "int8"}, ["layer-0", "layer-2"], 5e-2),
    ],
    ids=str,
)
def test_students_of_a_cache_are_those_of_the_teacher_nearly(folder, made, signal, names, within):
    start = weights(students(folder, ["feature-kd"])[1][0])
    live, kept = (train(folder, made, found, ["feature-kd"], names=names)["feature-kd"] for found in (None, signal))
    assert 0 < apart(live, kept) < within * apart(live, start)


@pytest.fixture(scope="module")
def read(folder, made):
    """What the cache says of three blocks, the teacher's own logits and states there, and which positions count."""
    teacher, (blocks, _) = given.load(folder / "teacher").eval(), masked(folder)
    numbers = np.array([7, 0, 21])
    ids, labels, positions = on_device(blocks[:, numbers], RUN)
    keep, targets = learned(labels)
    batch = engine.MicroBatch(0, ids, positions, labels != IGNORED, keep, targets, 1.0, True, numbers)
    with torch.no_grad():
        said = teacher(input_ids=ids, position_ids=positions, output_hidden_states=True, use_cache=False)
    found = {}
    for outputs, names in {"last-hidden": ["last-hidden"], "top-k": ["top", "top-2"]}.items():
        signal = TeacherSignal(outputs=outputs, features="int8", top_k=ALL)
        cache = Cache(signal, {name: made[0][name] for name in [*names, "layer-1", "layer-2"]})
        found[outputs] = cache.signal(Forward(teacher), batch, {1, 2}, set(), RUN)
    return found, said, batch


def test_outputs_are_the_teacher_s(read):
    found, said, batch = read
    exact = said.logits[batch.keep]
    kept = found["last-hidden"].outputs_for(WANTED, ALL).hidden
    assert (kept - exact).abs().max() < 2**-8 * 10 * exact.std()
    log_p, ids = found["top-k"].outputs_for(WANTED, ALL)
    assert torch.allclose(log_p, exact.log_softmax(-1).gather(-1, ids), atol=1e-5) and log_p.shape[1] == ALL
    softer = Distillation(temperature=2.0, top_k=3)
    log_p, ids = found["top-k"].outputs_for(softer, ALL)
    expected = (exact.double() / 2).log_softmax(-1).topk(3, dim=-1)
    assert torch.equal(ids, expected.indices) and torch.allclose(log_p.double(), expected.values, atol=1e-5)


def test_hidden_states_have_their_norm_and_nearly_their_direction(read, made):
    found, said, batch = read
    for layer, least in ((1, 0.6), (2, 0.999)):
        exact, kept = said.hidden_states[layer][batch.valid], found["top-k"].hidden[layer]
        assert torch.allclose(kept[batch.valid].norm(dim=-1), exact.norm(dim=-1), rtol=1e-5)
        cosine = torch.cosine_similarity(kept[batch.valid], exact, dim=-1)
        assert least < cosine.mean() and (layer == 1 or least < cosine.min())
        assert not kept[~batch.valid].any()
        assert made[1][f"layer-{layer}"]["cosine"] == pytest.approx(float(cosine.mean()), abs=0.05)


def test_what_is_told_of_a_part(folder, made):
    blocks, _ = masked(folder)
    (folders, told), text = made, int((blocks[1] != IGNORED).sum())
    assert told["layer-1"]["bytes_per_token"] == 8 + 4 and told["layer-1"]["tokens"] == text
    assert told["last-hidden"]["bytes_per_token"] == 64
    assert told["last-hidden"]["tokens"] == int((blocks[1][:, 1:] != IGNORED).sum())
    assert told["top-2"]["bytes_per_token"] == 5 * (4 + 2), "ids of a small vocabulary take two bytes"
    assert told["layer-0"]["bytes"] == sum(file.stat().st_size for file in folders["layer-0"][0].iterdir())
    assert told["top"]["coverage"] == pytest.approx(1, abs=1e-4) and 0 < told["top-2"]["coverage"] < 0.5
    assert 0 < told["last-hidden"]["kl"] < 1e-4 and told["layer-0"]["norm_error"] < 1e-5


def test_states_of_any_size_pass_through_a_byte():
    """All directions, and a few tokens a thousand times as large as the others, as in real models."""
    torch.manual_seed(0)
    states = torch.randn(4000, 48) @ torch.diag(torch.logspace(0, -2, 48)) @ torch.randn(48, 48)
    states[::100] = 1000 * (states[0] + 0.1 * states[::100])
    codec = compress.fit(states[:3000], 48)
    again = compress.decode(codec, *compress.encode(codec, states))
    assert torch.cosine_similarity(again, states, dim=-1).min() > 0.999
    assert torch.allclose(again.norm(dim=-1), states.norm(dim=-1), rtol=1e-5)
    half = compress.fit(states[:3000], 24)
    assert torch.cosine_similarity(compress.decode(half, *compress.encode(half, states)), states, dim=-1).mean() > 0.99
    nothing = torch.zeros(3, 48)
    assert torch.equal(compress.decode(codec, *compress.encode(codec, nothing)), nothing)


@pytest.mark.parametrize(
    ("signal", "names", "arms", "runs"),
    [
        (None, [], ["feature-kd"], [1, 1]),
        ({"outputs": "last-hidden"}, ["last-hidden"], ["feature-kd"], [1, 0]),
        ({"outputs": "last-hidden"}, ["last-hidden"], ["logit-kd"], [0, 0]),
        ({"outputs": "top-k"}, ["top"], ["feature-kd"], [1, 0]),
        ({"features": "int8"}, ["layer-0", "layer-2"], ["feature-kd"], [1, 1]),
        ({"outputs": "top-k", "features": "int8"}, ["top", "layer-0", "layer-2"], ["feature-kd"], [0, 0]),
    ],
    ids=str,
)
def test_the_teacher_does_no_more_than_is_asked_of_it(folder, made, signal, names, arms, runs):
    """Passes of its two blocks per micro-batch, before hidden states fade; where none is left its weights are gone."""
    wanted = Distillation(layer_pairs=[(0, 0), (1, 1)], decay=0)
    if signal and signal.get("features"):
        wanted = WANTED.model_copy(update={"decay": 0})
    teacher, learners = students(folder, arms, training=EPOCHS, distillation=wanted)
    passes = [0, 0]

    def count(number):
        def hook(*_):
            passes[number] += 1

        return hook

    cache = Cache(TeacherSignal(**signal), {name: made[0][name] for name in names}) if signal else None
    forward = engine._ready(teacher, learners, masked(folder)[0], RUN, cache)
    (batch,) = engine.micro_batches(masked(folder)[0][:, :4], None, RUN)
    engine._signal(forward, learners, batch, 0.5, RUN, cache)  # tries on a probe whether it may stop
    for number, block in enumerate(layers_of(teacher)):
        block.register_forward_hook(count(number))
    said = engine._signal(forward, learners, batch, 0.5, RUN, cache)
    needed = {layer for _, layer in wanted.layer_pairs} if "feature-kd" in arms else set()
    assert set(said.hidden) == needed, "and no other layer"
    assert passes == runs
    gone = [parameter.is_meta for parameter in teacher.parameters()]
    assert all(gone) if runs == [0, 0] else not any(gone)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "gemma3_text", "qwen2", "mistral", "cohere", "granite"])
def test_states_of_some_layers_are_those_of_all_in_any_family(kind, tmp_path):
    forward = Forward(given.load(tiny_models.save(kind, tmp_path, layers=3)).eval())
    ids, keep = torch.arange(12).reshape(2, 6) + 1, torch.ones(2, 6, dtype=torch.bool)
    assert forward._readable
    with torch.no_grad():
        whole = forward(ids, keep, hidden=True)
        for layers in ({0, 2}, {3}, {1, 3}):
            for outputs in (True, False):
                found = forward.at_layers(ids, keep, None, layers, outputs)
                assert set(found.hidden) == layers
                assert all(torch.equal(found.hidden[layer], whole.hidden[layer]) for layer in layers)
                assert torch.equal(found.states, whole.states) if outputs else found.states is None


def test_a_family_whose_blocks_are_not_found_goes_the_whole_way(folder, monkeypatch):
    teacher = given.load(folder / "teacher").eval()
    forward, ids = Forward(teacher), torch.arange(12).reshape(2, 6) + 1
    monkeypatch.setattr("featkd.distill.forward.blocks_of", lambda model: None)
    with torch.no_grad():
        found = forward.at_layers(ids, torch.ones(2, 6, dtype=torch.bool), None, {1}, outputs=False)
        expected = teacher(input_ids=ids, output_hidden_states=True).hidden_states[1]
    assert list(found.hidden) == [1] and torch.equal(found.hidden[1], expected)


def test_several_learners_micro_batches_and_going_on_work_as_online(folder, made, tmp_path):
    signal, names = {"outputs": "top-k", "features": "int8", "top_k": ALL}, ["top", "layer-0", "layer-2"]
    arms = ["sft", "logit-kd", "feature-kd"]
    together = train(folder, made, signal, arms, names=names)
    assert same(together["feature-kd"], train(folder, made, signal, ["feature-kd"], names=names)["feature-kd"])
    assert same(together["sft"], train(folder, made, None, ["sft"])["sft"])
    found = {}
    for end in (7, None):
        teacher, learners = students(folder, arms, training=EPOCHS, distillation=WANTED)
        cache = Cache(TeacherSignal(**signal), {name: made[0][name] for name in names})
        on_step = ended_after(end) if end else lambda **fields: None
        try:
            engine.train(
                learners, teacher, *masked(folder), RUN, on_step, Checkpoints(tmp_path, "x", every_s=0), cache=cache
            )
        except Ended:
            continue
        found = {learner.name: weights(learner) for learner in learners}
    assert all(same(found[arm], together[arm]) for arm in arms)


def test_a_part_of_another_teacher_or_text_is_refused(made, tmp_path):
    folder = made[0]["top"][0]
    with pytest.raises(InputError, match=r"teacher_signal: .*top is of another teacher, tokenizer, data, spec or vers"):
        Cache(TeacherSignal(outputs="top-k"), {"top": (folder, "y")})
    assert json.loads((folder / "part.json").read_text())["identity"] == "x"


def test_logits_that_do_not_follow_from_the_last_state_are_refused(folder, tmp_path, monkeypatch):
    teacher = given.load(folder / "teacher")
    own = type(teacher.lm_head).forward
    monkeypatch.setattr(type(teacher.lm_head), "forward", lambda self, x: own(self, x) ** 3)
    part = {"last-hidden": {"kind": "last-hidden", "identity": "x"}}
    with pytest.raises(InputError, match="teacher_signal.outputs: the logits of llama are not made of its last state"):
        make_cache.make(part, teacher, ALL, masked(folder)[0], np.arange(4), RUN, tmp_path)
