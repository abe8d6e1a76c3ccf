"""What a training is told to take, against what it takes: the tensors exactly, in a model that is counted by hand."""

import pytest
import tiny_models
from test_engine import SMALL, blocks_of, students

from featkd.align.head import BUDGET_BYTES
from featkd.distill.estimate import Need, held_parameters, parameters, passes, student_need, teacher_need
from featkd.distill.forward import Forward
from featkd.distill.runtime import Runtime
from featkd.errors import InputError
from featkd.models import given
from featkd.models.student import student_config
from featkd.spec import Compute, Optimisation
from featkd.teaching import Distillation, TeacherSignal

TRAINING = Optimisation(tokens=1, batch_size=4)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_parameters_are_counted_without_the_weights(kind, tmp_path):
    folder = tiny_models.save(kind, tmp_path)
    assert parameters(given.configuration(folder)) == sum(p.numel() for p in given.load(folder).parameters())


@pytest.mark.parametrize("recipe", [None, Distillation(layer_pairs=[(0, 0), (1, 1)])])
def test_what_a_student_holds_is_what_its_tensors_take(folder, recipe):
    made, (learner, *_) = students(folder, ["feature-kd" if recipe else "sft"], distillation=recipe)
    learner.prepare(made, blocks_of(folder)[0], Runtime("cpu", bf16=False))
    config, taught = student_config(SMALL, made.config), made.config
    for parameter in (p for group in learner.optimiser.param_groups for p in group["params"]):
        parameter.grad = parameter.detach().clone()
    learner.update(0, 10)
    need = student_need(config, taught, recipe, TRAINING, 32, "cpu", bf16=False)
    gradients = learner.memory_bytes() - sum(tensor.nbytes for tensor in learner.tensors().values())
    steps = 4 * len(learner.optimiser.state_dict()["state"])
    assert need.held == learner.memory_bytes() - gradients - steps
    in_parts = TRAINING.model_copy(update={"micro_batch_size": 1})
    parts = student_need(config, taught, recipe, in_parts, 32, "cpu", bf16=False)
    assert parts.held == need.held + gradients, "gradients wait for the last micro-batch"
    assert parts.at_work - BUDGET_BYTES["cpu"] == (need.at_work - gradients - BUDGET_BYTES["cpu"]) / 4


def test_a_teacher_s_states_count_where_someone_learns_from_them(folder):
    config = given.configuration(folder / "teacher")
    plain, features = (teacher_need(config, TRAINING, 32, wanted, bf16=False) for wanted in (False, True))
    assert plain.held == features.held == 4 * parameters(config)
    assert features.at_work - plain.at_work == (config.num_hidden_layers - 1) * 4 * 32 * config.hidden_size * 4


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_teacher_takes_half_under_bf16_but_for_its_embedding(kind, tmp_path):
    config = given.configuration(tiny_models.save(kind, tmp_path))
    model = given.load(tmp_path)
    forward = Forward(model)
    forward.round_once()
    tensors = {p.data_ptr(): p.nbytes for p in [*model.parameters(), forward.head.weight]}
    need, plain = (teacher_need(config, TRAINING, 32, False, bf16) for bf16 in (True, False))
    assert need.held == sum(tensors.values()) < plain.held
    assert need.at_first == plain.held == 4 * parameters(config)
    assert need.at_work == plain.at_work


def test_a_teacher_whose_signal_is_cached_goes_once_the_students_are_made(folder):
    config = given.configuration(folder / "teacher")

    def need(aligned=True, **signal):
        return teacher_need(config, TRAINING, 32, aligned, False, signal=TeacherSignal(**signal))

    online, whole = need(), 4 * parameters(config)
    assert need(outputs="top-k").held == need(features="int8").held == online.held == whole, "hidden states are online"
    gone, head = need(outputs="top-k", features="int8"), need(False, outputs="last-hidden")
    assert (gone.held, gone.at_first) == (0, whole)
    assert (head.held, head.at_first) == (4 * config.vocab_size * config.hidden_size, whole)
    assert online.at_work - gone.at_work == 4 * 32 * (4 * config.vocab_size - 12 * 64)
    student, room = Need(300, 10), 500_000_000
    assert passes(Need(0, 5, 1000), [student] * 2, room + 1200, "cpu") == [[0, 1]]
    assert passes(Need(0, 5, 1000), [student] * 2, room + 1199, "cpu") == [[0], [1]], "all are made while it is there"


def test_what_several_processes_hold(folder):
    config = given.configuration(folder / "teacher")
    embeddings, block = 2 * 300 * 32 + 32, 2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 64 + 2 * 32
    assert held_parameters(config, Compute(processes=2)) == (embeddings + 2 * block, 0)
    divided = Compute(processes=2, sharding="fsdp")
    assert held_parameters(config, divided) == (embeddings + block, block)
    one, two = (teacher_need(config, TRAINING, 32, True, False, compute) for compute in (Compute(), divided))
    assert two.at_work == one.at_work / 2 + 4 * block and one.held - two.held == 4 * block
    room = 2 * (500_000_000 + two.held + two.at_work)
    assert passes(two, [Need(0, 0)], room, "cpu", 2) == [[0]]
    with pytest.raises(InputError, match=r"need about 0.5 GB to train in each of 2 processes, there are 0.5; lower"):
        passes(two, [Need(0, 0)], room - 2, "cpu", 2)
    assert passes(two, [Need(0, 0)], room, "cuda", 2) == [[0]], "an accelerator is one process's own"
