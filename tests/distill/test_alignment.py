"""Feature terms in training: every option learns, what is masked counts for nothing, the guard drops what hurts."""

import numpy as np
import pytest
import tiny_models
import torch
from test_engine import RUN, TRAINING, blocks_of, same, students, train, weights

from featkd import spec
from featkd.distill import alignment, batches, engine
from featkd.distill.alignment import Alignment
from featkd.distill.learner import Learner
from featkd.errors import InputError, RunError
from featkd.models import given, student
from featkd.teaching import Distillation

ALONE = {"l2_weight": 0, "direction_weight": 0, "norm_weight": 0}


@pytest.fixture(scope="module")
def logit_kd(folder):
    return weights(train(folder, ["logit-kd"])["logit-kd"])


@pytest.mark.parametrize(
    "options",
    [
        {"projector": "orthonormal"},
        {"projector": "pca"},
        {"projector": "pca", "projector_frozen": 0},
        {"projector": "low-rank", "projector_rank": 3},
        {"projector": "mlp"},
        {**ALONE, "norm_weight": 1},
        {**ALONE, "nd_weight": 1},
        {**ALONE, "gram_weight": 1},
        {**ALONE, "cka_weight": 1},
        {**ALONE, "relation_weight": 1, "relation_heads": 2, "layer_pairs": [[1, 1]]},
        {"balance": "dynamic"},
        {"layer_pairs": "last-1"},
    ],
    ids=str,
)
def test_every_option_teaches(folder, logit_kd, options):
    size = spec.Student(name="s", layers=2, hidden_size=16, heads=2, intermediate_size=32)
    base = weights(train(folder, ["logit-kd"], size=size)["logit-kd"])
    found = train(folder, ["feature-kd"], size=size, distillation=Distillation(**options))["feature-kd"]
    assert not same(weights(found), base)
    assert all(torch.isfinite(value).all() for value in weights(found).values())


def test_a_fitted_projector_stays_until_its_share_of_training_is_over(folder):
    frozen, freed = (
        train(folder, ["feature-kd"], distillation=Distillation(projector="pca", projector_frozen=share))
        for share in (1.0, 0.5)
    )
    (kept,), (moved,) = (list(found["feature-kd"].alignment.projectors)[:1] for found in (frozen, freed))
    eye = torch.eye(16)
    assert torch.allclose(kept.weight.T @ kept.weight, eye, atol=1e-5)
    assert not torch.allclose(moved.weight.T @ moved.weight, eye, atol=1e-5)


def test_auto_pairs_are_recorded_with_their_similarity(folder):
    record = train(folder, ["feature-kd"], distillation=Distillation(layer_pairs="auto"))[
        "feature-kd"
    ].alignment.record()
    assert (record["layer_map"], record["projector"]) == ("auto", "linear")
    assert len(record["similarity"]) == len(record["layer_pairs"]) == 1
    assert all(t < 2 for _, t in record["layer_pairs"]), "the teacher's last block is not matched"


@pytest.mark.parametrize(
    "families", [("gpt2", "llama"), ("qwen2", "gemma2"), ("gemma3_text", "mistral"), ("llama", "gpt2")]
)
def test_teacher_and_student_of_any_two_families(families, tmp_path, folder):
    made = [
        given.load(tiny_models.save(kind, tmp_path / kind, layers=n)) for kind, n in zip(families, (4, 3), strict=True)
    ]
    narrow = spec.Student(name="s", layers=3, hidden_size=16, heads=2, intermediate_size=24)
    small, _ = student.build(narrow, made[1], 0)
    wanted = Distillation(relation_weight=0.1, gram_weight=0.1, relation_heads=2, guard=False)
    learner = Learner("feature-kd", small, 0, wanted, TRAINING)
    before = weights(learner)
    engine.train([learner], made[0], *blocks_of(folder), RUN, lambda **fields: None)
    assert learner.alignment.pairs == [(0, 0), (1, 1), (2, 3)]
    assert np.isfinite(learner.curve[-1]["validation_loss"])
    assert not any(torch.equal(value, before[name]) for name, value in weights(learner).items() if value.ndim > 1)


def test_the_last_token_of_a_prompt_is_learned_from_and_the_last_of_all_is_not():
    """A label mask that is not shifted would do the opposite (two peers)."""
    prompt = batches.IGNORED
    keep, targets = batches.learned(torch.tensor([[prompt, prompt, 7, 8], [5, 6, prompt, prompt]]))
    assert keep.tolist() == [[False, True, True, False], [True, False, False, False]]
    assert targets.tolist() == [7, 8, 6]


@pytest.mark.parametrize(
    "options", [{}, {"gram_weight": 1, "cka_weight": 1}, {"relation_weight": 1, "layer_pairs": [[1, 1]]}]
)
def test_padding_changes_nothing_whatever_it_holds(folder, options):
    """Losses on hidden states of two peers count it."""
    found = []
    for garbage in (1, 200):
        made, (learner,) = students(folder, ["feature-kd"], distillation=Distillation(**options))
        ids = np.load(folder / "train.npy")[0].copy()
        labels = ids.copy()
        labels[:, 20:], ids[:, 20:] = batches.IGNORED, garbage
        valid = np.load(folder / "valid.npy")
        engine.train([learner], made, tiny_models.blocks_of(ids, labels), valid, RUN, lambda **fields: None)
        found.append(weights(learner))
    for name in found[0]:
        assert torch.allclose(found[0][name], found[1][name], atol=1e-6), name


@pytest.fixture(scope="module")
def counting(tmp_path_factory):
    """A teacher folder and blocks that count upwards: something to learn."""
    root = tmp_path_factory.mktemp("counting")
    tiny_models.save("llama", root / "teacher")
    for part, blocks in (("train", 24), ("valid", 16)):
        ids = (np.arange(32)[None] + np.arange(blocks)[:, None] * 7).astype(np.int32) % 60 + 1
        np.save(root / f"{part}.npy", tiny_models.blocks_of(ids))
    return root


LONG = spec.Optimisation(tokens=48 * 4 * 32, batch_size=4, learning_rate=3e-3)
HARMFUL = Distillation(**ALONE | {"cka_weight": 1e4}, decay=0.1, ce_weight=1)


def test_the_guard_drops_terms_that_hurt_and_training_recovers(counting):
    guarded, unguarded = (
        train(counting, ["feature-kd"], training=LONG, distillation=HARMFUL.model_copy(update={"guard": on}))[
            "feature-kd"
        ]
        for on in (True, False)
    )
    assert 0.25 < guarded.alignment.dropped_at < 0.9 and unguarded.alignment.dropped_at is None
    assert guarded.curve[-1]["validation_loss"] < unguarded.curve[-1]["validation_loss"]


def test_the_guard_decides_the_same_alone_and_beside_logit_kd(counting):
    alone = train(counting, ["feature-kd"], training=LONG, distillation=HARMFUL)
    beside = train(counting, ["sft", "logit-kd", "feature-kd"], training=LONG, distillation=HARMFUL)
    assert list(alone) == ["feature-kd"], "its twin is nobody's candidate"
    assert same(weights(alone["feature-kd"]), weights(beside["feature-kd"]))


def test_one_bad_look_is_no_reason_to_drop():
    made = Alignment(Distillation(), [(0, 0)], "none", torch.nn.ModuleList())
    good, bad = np.linspace(1, 2, 16), np.linspace(1, 2, 16) + 0.1 + 0.01 * (np.arange(16) % 2)
    for progress, own in ((0.1, bad), (0.2, bad), (0.3, bad), (0.4, good), (0.5, bad), (0.9, bad)):
        made.judge(own, good, progress)
    assert made.dropped_at is None
    made.judge(bad, good, 0.6)
    assert made.dropped_at == 0.6 and made.strength(0.65) == 0 and made.record()["guarded"]
    few = Alignment(Distillation(), [(0, 0)], "none", torch.nn.ModuleList())
    for progress in (0.4, 0.5, 0.6):
        few.judge(bad[: alignment.FEWEST_BLOCKS - 1], good[: alignment.FEWEST_BLOCKS - 1], progress)
    assert few.dropped_at is None and not few.record()["guarded"]


def test_without_a_learned_token_there_is_no_training(folder):
    ids = np.load(folder / "train.npy")[0]
    nothing = tiny_models.blocks_of(ids, np.full_like(ids, batches.IGNORED))
    made, learners = students(folder, ["sft"])
    with pytest.raises(RunError, match="no token is learned: all labels are masked"):
        engine.train(learners, made, nothing, nothing, RUN, lambda **fields: None)


def test_a_teacher_with_infinite_logits_is_named(folder):
    made, learners = students(folder, ["logit-kd"])
    made.lm_head.weight.data[7] = float("inf")
    with pytest.raises(RunError, match="teacher.model: its outputs are not finite at step 1 of"):
        engine.train(learners, made, *blocks_of(folder), RUN, lambda **fields: None)


def test_a_student_with_more_padding_than_its_teacher(folder):
    made, learners = students(folder, ["feature-kd"])
    for learner in learners:
        learner.model.resize_token_embeddings(made.config.vocab_size + 7)
    engine.train(learners, made, *blocks_of(folder), RUN, lambda **fields: None)
    assert np.isfinite(learners[0].curve[-1]["validation_loss"])


def test_relation_heads_that_do_not_divide_are_named(folder):
    wanted = Distillation(relation_weight=1, relation_heads=5, layer_pairs=[[1, 1]])
    with pytest.raises(InputError, match="distillation.relation_heads: 5 does not divide"):
        train(folder, ["feature-kd"], distillation=wanted)
