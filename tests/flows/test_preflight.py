"""Wrong input is told in one line, from the spec and the teacher's config.json alone."""

import json

import pytest
import tiny_models

from featkd import specfile
from featkd.errors import InputError
from flows import preflight


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_models.save("llama", tmp_path_factory.mktemp("teacher"))


OWN = {
    "tokens": 1000,
    "vocab_size": 300,
    "shape": {"hidden_size": 32, "layers": 2, "heads": 4, "intermediate_size": 64},
}


def check(tmp_path, folder, **changes):
    tree = {
        "name": "x",
        "data": {"files": ["a.txt"]},
        "teacher": {"model": str(folder)} if folder else {"train": OWN},
        "students": [{"name": "s", "layers": 1}],
        "training": {"tokens": 1000},
        "block_size": 64,
        "latency": {"prompt_tokens": 16, "new_tokens": 16},
    }
    preflight.check(specfile.validate(tree | changes), tmp_path / ".featkd")


@pytest.mark.parametrize("own", [False, True], ids=["given", "own"])
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"students": [{"name": "c", "layers": 3, "init": "copy"}]},
            "students.c: 3 layers cannot be copied from a teacher with 2",
        ),
        (
            {"students": [{"name": "h", "layers": 1, "heads": 5}]},
            "students.h: 5 heads do not divide hidden_size 32 into even parts",
        ),
        ({"students": [{"name": "h", "layers": 1, "hidden_size": 12}]}, "students.h: 4 heads do not divide"),
        (
            {"students": [{"name": "h", "layers": 1, "hidden_size": 64, "init": "pca"}]},
            "students.h.hidden_size: 64 is above the teacher's 32",
        ),
        ({"distillation": {"layer_pairs": [[1, 3]]}}, r"distillation.layer_pairs: \(1, 3\) is out of range"),
        (
            {"distillation": {"layer_pairs": "last-2"}},
            "distillation.layer_pairs: last-2 needs 2 blocks before the last",
        ),
        (
            {"export": {"precisions": ["fp32", "fp16"]}, "compute": {"device": "cpu"}},
            "export.precisions: fp16 is for cuda",
        ),
        ({"distillation": {"projector": "linear"}}, "distillation.projector: linear between equal widths"),
    ],
)
def test_students_that_do_not_fit_the_teacher(tmp_path, teacher, own, changes, expected):
    check(tmp_path, None if own else teacher)
    with pytest.raises(InputError, match=expected) as raised:
        check(tmp_path, None if own else teacher, **changes)
    assert "\n" not in str(raised.value)


def test_layer_pairs_matter_to_feature_kd_alone(tmp_path, teacher):
    check(tmp_path, teacher, arms=["sft"], distillation={"layer_pairs": [[1, 3]]})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"block_size": 97}, "block_size: 97 is above the 96 positions of the teacher: lower it"),
        ({"latency": {"prompt_tokens": 90}}, "latency: prompt_tokens and new_tokens make"),
    ],
)
def test_sequences_longer_than_the_teacher_takes(tmp_path, teacher, changes, expected):
    with pytest.raises(InputError, match=expected):
        check(tmp_path, teacher, **changes)


def test_a_tokenizer_with_neither_end_nor_begin(tmp_path):
    folder = tiny_models.save("llama", tmp_path / "teacher")
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in settings.items() if name[1:] != "os_token"}))
    with pytest.raises(InputError, match="neither an end nor a begin token"):
        check(tmp_path, folder)


def test_a_configuration_that_cannot_be_read(tmp_path):
    folder = tiny_models.save("llama", tmp_path / "teacher")
    (folder / "config.json").write_text('{"model_type": "no-such-family"}')
    with pytest.raises(InputError, match="teacher.model: .*cannot be used") as raised:
        check(tmp_path, folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["t5", "gemma3", "vit"])
def test_a_model_that_is_no_causal_language_model_of_text_alone(tmp_path, kind):
    folder = tiny_models.save("llama", tmp_path / "teacher")
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(InputError, match=f"teacher.model: .* holds a {kind}, no causal language model"):
        check(tmp_path, folder)


def test_the_folder_of_the_user_s_tasks(tmp_path, teacher):
    tiny_models.write_tasks(tmp_path / "tasks", examples=2)
    quality = {"tasks": ["tiny_labels"], "include": str(tmp_path / "tasks")}
    check(tmp_path, teacher, quality=quality)
    with pytest.raises(InputError, match="quality.include: no folder"):
        check(tmp_path, teacher, quality=quality | {"include": str(tmp_path / "nowhere")})
    with pytest.raises(InputError, match=r"quality.include: .* contains .*\.featkd"):
        check(tmp_path, teacher, quality=quality | {"include": str(tmp_path)})


def test_a_given_student_has_the_teacher_s_tokenizer(tmp_path, teacher):
    def own(folder, **changes):
        check(tmp_path, teacher, students=[{"name": "own", "model": str(folder)}], **changes)

    own(tiny_models.save("gpt2", tmp_path / "gpt2", padding=12))
    with pytest.raises(InputError, match="students.own.model: no folder"):
        own(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"distillation.layer_pairs: \(3, 1\) is out of range"):
        own(tmp_path / "gpt2", distillation={"layer_pairs": [[3, 1]]})
    config = json.loads((tmp_path / "gpt2" / "config.json").read_text())
    (tmp_path / "gpt2" / "config.json").write_text(json.dumps(config | {"n_positions": 48}))
    with pytest.raises(InputError, match="block_size: 64 is above the 48 positions of students.own.model"):
        own(tmp_path / "gpt2")
    (tmp_path / "gpt2" / "config.json").write_text(json.dumps(config | {"vocab_size": 250}))
    with pytest.raises(InputError, match="students.own.model: the tokenizers have up to 300 tokens .* only 250 rows"):
        own(tmp_path / "gpt2")
    tokenizer = json.loads((tmp_path / "gpt2" / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:5]
    (tmp_path / "gpt2" / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="students.own.model: .* take a student of the teacher's family"):
        own(tmp_path / "gpt2")
    with pytest.raises(InputError, match="students.own.model: a teacher that is trained here"):
        check(tmp_path, None, students=[{"name": "own", "model": str(tmp_path / "gpt2")}])


def test_a_student_that_is_no_smaller_than_its_teacher_is_told(tmp_path, teacher, capsys):
    check(tmp_path, teacher, students=[{"name": "s", "layers": 1}, {"name": "l", "layers": 3}])
    said = capsys.readouterr().err
    assert "students.l: 0.05M parameters, the teacher has 0.04M: a student that is no smaller saves nothing" in said
    assert "students.s" not in said


def test_no_room_for_training_is_told_before_anything_is_made(tmp_path, teacher):
    with pytest.raises(InputError, match=r"compute.memory_gb: the teacher and one student need about 0.6 GB to train,"):
        check(tmp_path, teacher, compute={"memory_gb": 0.1})


def test_layer_pairs_of_an_ablation_are_checked_too(tmp_path, teacher):
    with pytest.raises(InputError, match=r"layer_pairs: \(1, 3\) is out of range"):
        check(tmp_path, teacher, ablations={"far": {"layer_pairs": [[1, 3]]}})


@pytest.mark.parametrize(("allowed", "told"), [(None, "may forbid distillation"), (False, "forbids training")])
def test_the_licence_of_a_given_teacher(tmp_path, teacher, capsys, allowed, told):
    own = {"model": str(teacher), "licence_allows_distillation": allowed}
    check(tmp_path, None, teacher=own)
    assert told in capsys.readouterr().err
    with pytest.raises(InputError, match=f"teacher.licence_allows_distillation: .*{told}"):
        check(tmp_path, None, teacher={**own, "if_licence_forbids": "stop"})
    check(tmp_path, None, teacher={**own, "licence_allows_distillation": True, "if_licence_forbids": "stop"})
    assert "licence" not in capsys.readouterr().err
