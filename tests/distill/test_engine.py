"""The engine: fair, repeatable, arms independent of each other, nothing of the loss left in the student."""

import json

import numpy as np
import pytest
import tiny_models
import torch

from featkd import spec
from featkd.child import run_child
from featkd.distill import batches, engine
from featkd.distill.batches import mean_loss
from featkd.distill.forward import Forward
from featkd.distill.learner import Learner, mean_square
from featkd.distill.runtime import Runtime
from featkd.errors import RunError
from featkd.models import given, student
from featkd.teaching import Distillation, recipes

TRAINING = spec.Optimisation(tokens=8 * 4 * 32, batch_size=4, learning_rate=3e-3)
RUN = Runtime("cpu", bf16=False)


SMALL = spec.Student(name="s", layers=1, hidden_size=16, heads=2, intermediate_size=32)


def students(folder, arms, size=SMALL, training=TRAINING, distillation=None, ablations=None):
    made = given.load(folder / "teacher")
    wanted = recipes(arms, distillation or Distillation(), ablations or {})
    return made, [
        Learner(arm, student.build(size, made, 0)[0], 0, recipe, training, size.name) for arm, recipe in wanted.items()
    ]


def blocks_of(folder):
    return [np.load(folder / f"{part}.npy") for part in ("train", "valid")]


def train(folder, arms, size=SMALL, training=TRAINING, distillation=None, ablations=None, **options):
    made, learners = students(folder, arms, size, training, distillation, ablations)
    engine.train(learners, made, *blocks_of(folder), RUN, lambda **fields: None, **options)
    return {learner.name: learner for learner in learners}


def weights(learner):
    return {name: value.clone() for name, value in learner.model.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_an_arm_has_the_same_weights_alone_and_beside_others(folder):
    together = train(folder, ["sft", "logit-kd", "feature-kd"])
    for arm in together:
        assert same(weights(train(folder, [arm])[arm]), weights(together[arm])), arm
    assert not same(weights(together["logit-kd"]), weights(together["feature-kd"]))
    assert not same(weights(together["logit-kd"]), weights(together["sft"]))


def test_all_arms_start_from_the_same_weights(folder):
    _, learners = students(folder, ["sft", "logit-kd", "feature-kd"])
    assert same(weights(learners[0]), weights(learners[1])) and same(weights(learners[0]), weights(learners[2]))


def test_without_weights_feature_kd_is_logit_kd(folder):
    none = Distillation(l2_weight=0, direction_weight=0, norm_weight=0)
    found = train(folder, ["logit-kd", "feature-kd"], distillation=none)
    assert same(weights(found["logit-kd"]), weights(found["feature-kd"]))


def test_distillation_brings_the_student_nearer_to_the_teacher(folder):
    long = spec.Optimisation(tokens=100 * 4 * 32, batch_size=4, learning_rate=3e-3)
    found = train(folder, ["sft", "logit-kd"], training=long)
    made = given.load(folder / "teacher").eval()
    ids = torch.from_numpy(np.load(folder / "valid.npy")[0].astype(np.int64))
    with torch.no_grad():
        target = made(input_ids=ids).logits.log_softmax(-1)
        distance = {
            arm: float(
                (target.exp() * (target - learner.model.eval()(input_ids=ids).logits.log_softmax(-1))).sum(-1).mean()
            )
            for arm, learner in found.items()
        }
    assert distance["logit-kd"] < distance["sft"]


def test_the_teacher_does_not_change(folder):
    made, learners = students(folder, ["feature-kd"])
    before = {name: value.clone() for name, value in made.state_dict().items()}
    engine.train(learners, made, *blocks_of(folder), RUN, lambda **fields: None)
    assert same(before, made.state_dict())


def test_positions_that_are_not_learned_count_for_nothing(folder):
    ids = np.load(folder / "valid.npy")[0][:2]
    labels = ids.copy()
    labels[:, :20] = batches.IGNORED
    model = students(folder, ["sft"])[1][0].model
    full = mean_loss(batches.block_losses(Forward(model), tiny_models.blocks_of(ids, labels), RUN, batch_size=16))
    by_hand = torch.nn.functional.cross_entropy(
        model(input_ids=torch.from_numpy(ids.astype(np.int64))).logits[:, 19:-1].reshape(-1, model.config.vocab_size),
        torch.from_numpy(ids[:, 20:].astype(np.int64)).reshape(-1),
    )
    assert full == pytest.approx(float(by_hand.detach()), rel=1e-5)


def test_blocks_without_a_learned_token_are_passed_over(folder):
    ids = np.load(folder / "valid.npy")[0]
    labels = ids.copy()
    labels[2:] = batches.IGNORED
    forward = Forward(students(folder, ["sft"])[1][0].model)
    blocks = tiny_models.blocks_of(ids, labels)
    part = mean_loss(batches.block_losses(forward, blocks[:, :2], RUN, batch_size=2))
    assert mean_loss(batches.block_losses(forward, blocks, RUN, batch_size=2)) == pytest.approx(part)


def test_validation_takes_no_larger_batch_than_training(folder, monkeypatch):
    taken = []
    nothing = np.ones((1, 2))
    monkeypatch.setattr(engine, "block_losses", lambda forward, blocks, run, size: taken.append(size) or nothing)
    train(folder, ["sft"])
    assert set(taken) == {TRAINING.batch_size}


def test_an_accelerator_is_waited_for_before_the_clock_is_read(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(True))
    RUN.clock()
    assert not waited
    Runtime("cuda", bf16=False).clock()
    assert waited


def test_nan_ends_with_one_line_that_names_arm_and_step_and_the_batch_is_kept(folder, tmp_path):
    wild = spec.Optimisation(tokens=50 * 4 * 32, batch_size=4, learning_rate=1e30, grad_clip=1e30)
    expected = r"the loss of sft is (nan|inf) at step \d+ of 50; lower the learning_rate .* the batch is in .*batch.npy"
    with pytest.raises(RunError, match=expected):
        train(folder, ["sft"], training=wild, failed=tmp_path / "batch.npy")
    assert np.load(tmp_path / "batch.npy").shape == (3, 4, 32)


def test_an_ablation_is_feature_kd_with_other_options(folder):
    found = train(
        folder,
        ["sft", "feature-kd"],
        ablations={"no-direction": {"direction_weight": 0}, "mlp": {"projector": "mlp", "decay": 0}},
    )
    alone = train(folder, ["feature-kd"], distillation=Distillation(projector="mlp", decay=0))
    assert list(found) == ["sft", "feature-kd", "feature-kd-no-direction", "feature-kd-mlp"]
    assert same(weights(found["feature-kd-mlp"]), weights(alone["feature-kd"]))
    assert not same(weights(found["feature-kd-no-direction"]), weights(found["feature-kd"]))


@pytest.mark.parametrize("masked", [False, True])
def test_micro_batches_give_the_weights_of_the_whole_batch(folder, masked):
    """Weighed by their learned tokens: with masked text a mean of means would be another gradient."""
    learned = np.load(folder / "train.npy")
    if masked:
        learned[1][::2, :27] = batches.IGNORED
    found = []
    for size in (None, 1):
        training = TRAINING.model_copy(update={"micro_batch_size": size})
        made, learners = students(folder, ["sft", "logit-kd"], training=training)
        start = weights(learners[0])
        engine.train(learners, made, learned, np.load(folder / "valid.npy"), RUN, lambda **fields: None)
        found.append([weights(learner) for learner in learners])
    for whole, parts in zip(*found, strict=True):
        assert apart(whole, parts) < 1e-2 * apart(whole, start)


def test_feature_terms_of_micro_batches_add_up_too(folder):
    """But for the norm term, whose scale is that of the micro-batch."""
    found = []
    for size in (None, 2):
        training = TRAINING.model_copy(update={"micro_batch_size": size})
        learner = train(folder, ["feature-kd"], training=training, distillation=Distillation(norm_weight=0))
        found.append(weights(learner["feature-kd"]))
    assert apart(*found) < 1e-2 * apart(found[0], weights(students(folder, ["feature-kd"])[1][0]))


def apart(a, b):
    """Adam turns rounding errors of gradients that are nearly nothing into steps: weights are compared as a whole."""
    return sum(float((a[name] - b[name]).square().sum()) for name in a) ** 0.5


def test_the_activation_penalty_is_the_mean_square_below_the_last_block_in_every_arm(folder):
    hidden = tuple(torch.randn(2, 5, 3, dtype=torch.float64) for _ in range(4))
    valid = torch.rand(2, 5) > 0.3
    by_hand = np.mean([np.mean([np.sum(row.numpy() ** 2) / 3 for row in state[valid]]) for state in hidden[:3]])
    assert float(mean_square(hidden, valid)) == pytest.approx(by_hand, rel=1e-5)
    ids = torch.from_numpy(np.load(folder / "valid.npy")[0].astype(np.int64))
    arms = ["sft", "logit-kd", "feature-kd"]
    free = train(folder, arms)
    held = train(folder, arms, training=TRAINING.model_copy(update={"activation_penalty": 1000.0}))
    for arm in arms:
        sizes = []
        for learner in (free[arm], held[arm]):
            with torch.no_grad():
                states = learner.model.eval()(input_ids=ids, output_hidden_states=True).hidden_states
            sizes.append(float(mean_square(states, torch.ones_like(ids, dtype=torch.bool))))
        assert sizes[1] < 0.95 * sizes[0], arm


@pytest.mark.parametrize(("padding", "kind"), [(20, "gpt2"), (0, "qwen2")])
def test_a_given_student_of_another_family_learns_the_tokens_that_both_have(tmp_path, folder, padding, kind):
    made = given.load(tiny_models.save("llama", tmp_path / "teacher", seed=1, padding=20 - padding))
    own = spec.Student(name="own", model=str(tiny_models.save(kind, tmp_path / kind, padding=padding)))
    runs = []
    for others in ([], [spec.Student(name="s", layers=1)]):
        learners = [
            Learner(x.name, student.build(x, made, 0)[0], 0, Distillation(), TRAINING, x.name) for x in [own, *others]
        ]
        before = weights(learners[0])
        engine.train(learners, made, *blocks_of(folder), RUN, lambda **fields: None)
        runs.append(weights(learners[0]))
    assert same(*runs), "its vocabulary is its own affair, whoever learns beside it"
    head = learners[0].model.get_output_embeddings().weight
    assert len(head) == 300 + padding
    change = (head / before["lm_head.weight"]).detach()
    assert change[:300].std() > 1e-2
    if padding:
        assert change[300:].std() < 1e-3, "padding is decayed, and learns nothing"
    assert learners[0].curve[-1]["validation_loss"] < learners[0].curve[0]["validation_loss"]


def test_the_child_writes_plain_checkpoints_twice_the_same(folder, tmp_path):
    digests = []
    for attempt in ("one", "two"):
        out = tmp_path / attempt
        out.mkdir()
        job = {
            "mode": "students",
            "teacher": str(folder / "teacher"),
            "tokenizer": str(folder / "teacher"),
            "tokens": str(folder),
            "students": [
                {
                    "name": "feature-kd-s-0",
                    "recipe": {},
                    "seed": 0,
                    "size": {**SMALL.model_dump(), "init": "pca"},
                }
            ],
            "training": TRAINING.model_dump(mode="json"),
            "compute": {"threads": 2, "precision": "bf16"},
            "out": str(out),
        }
        events = []
        done = run_child("featkd.distill", job, out, on_event=events.append)
        meta = done["models"]["feature-kd-s-0"]
        digests.append(meta["weights_sha256"])
        assert events[-1]["step"] == events[-1]["steps"] == meta["steps"] == 8
        assert len(meta["curve"]) == 8
        assert meta["copied_share"] == 1.0
    assert digests[0] == digests[1]
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM, AutoTokenizer

    checkpoint = tmp_path / "one" / "feature-kd-s-0"
    AutoModelForCausalLM.from_pretrained(checkpoint)
    AutoTokenizer.from_pretrained(checkpoint)
    with safe_open(checkpoint / "model.safetensors", framework="pt") as file:
        assert not [name for name in file.keys() if "proj" in name and "model.layers" not in name]  # noqa: SIM118
    assert json.loads((checkpoint / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
