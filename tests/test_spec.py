"""The spec: what it refuses and how it says so; what its digest depends on."""

from pathlib import Path

import pytest
import yaml

from featkd import spec, specfile
from featkd.errors import InputError
from featkd.teaching import Distillation

SPECS = Path(__file__).parents[1] / "flows" / "specs"


def tree(**changes):
    base = {
        "name": "x",
        "data": {"files": ["/tmp/a.txt"]},
        "teacher": {"model": "/tmp/model"},
        "students": [{"name": "s", "layers": 2}],
        "training": {"tokens": 1000},
    }
    return {**base, **changes}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"dta": 1}, "dta: unknown key; the section takes name, title, data"),
        ({"data": {"files": ["a"], "fils": 1}}, "data.fils: unknown key; the section takes builtin, packages, files"),
        ({"training": {"tokens": "many"}}, "training.tokens: Input should be a valid integer"),
        ({"training": {}}, "training.tokens: missing"),
        ({"data": {}}, "give exactly one of builtin, files, hub"),
        ({"data": {"files": ["a"], "prompt_field": "q"}}, "prompt_field and response_field go together"),
        ({"teacher": {}}, "give exactly one of model, train"),
        ({"arms": ["logit-kd"]}, "sft is missing"),
        ({"seeds": [1, 1]}, "seeds: has a value twice"),
        (
            {"students": [{"name": "s", "layers": 2, "hidden_size": 8, "init": "copy"}]},
            "copy keeps the teacher's width",
        ),
        (
            {"students": [{"name": "s", "layers": 2, "init": "pca"}]},
            "give hidden_size, or write init: slice",
        ),
        ({"students": [{"name": "s"}]}, "students.0: give exactly one of layers (a shape) and model"),
        ({"students": [{"name": "s", "layers": 1, "model": "m"}]}, "students.0: give exactly one of layers (a shape)"),
        ({"students": [{"name": "s", "model": "m", "heads": 2}]}, "model: it has its own shape and weights"),
        ({"seeds": [0, 1], "students": [{"name": "s", "model": "m"}]}, "the same weights with every"),
        ({"gates": [{"metric": "quality.mmlu.retained", "at_least": 1}]}, "names a task that quality.tasks does not"),
        ({"gates": [{"metric": "speed", "at_least": 1}]}, "gates.0.metric"),
        ({"gates": [{"metric": "fidelity.mmlu.kl", "at_most": 1}]}, "names a task that quality.tasks does not"),
        (
            {"gates": [{"metric": "quality.mmlu.estimate", "at_least": 1, "against": "champion"}]},
            "is held against nothing",
        ),
        (
            {"gates": [{"metric": "fidelity.held_out.kl", "at_most": 1, "against": "champion"}]},
            "beside the teacher alone",
        ),
        (
            {"teacher": {"model": "x", "reference_perplexity": 9.0}, "quality": {"tasks": ["heldout_continuation"]}},
            "teacher.reference_perplexity: is held against heldout_perplexity; add it to quality.tasks",
        ),
        ({"audit": {"margins": {"speed": 1}}}, "no figure speed; write one of surprise, far_off"),
        ({"audit": {"limits": {"far_off": 1}}}, "write a limit of surprise"),
        ({"seeds": [0, 1], "students": [{"name": "s", "layers": 2, "init": "copy"}]}, "the same weights with every"),
        ({"seeds": [0, 1], "students": [{"name": "s", "layers": 2, "init": "slice"}]}, "the same weights with every"),
        ({"cost": {"utilisation": 1.5}}, "utilisation: 1.5 must be above 0 and at most 1"),
        ({"cost": {"price_per_hour": float("nan")}}, "cost.price_per_hour"),
        ({"quality": {"tasks": ["heldout_routing"]}}, "heldout_routing needs data.label_field"),
        ({"distillation": {"layer_pairs": "first"}}, "distillation.layer_pairs: write uniform, auto, last-2 or"),
        ({"distillation": {"layer_pairs": [[0]]}}, "distillation.layer_pairs: write uniform, auto, last-2 or"),
        ({"distillation": {"top_k": 3, "objective": "jsd"}}, "top_k: goes with objective: forward-kl"),
        ({"distillation": {"projector_rank": 3}}, "projector_rank: goes with projector: low-rank, not with auto"),
        (
            {"distillation": {"relation_weight": 1, "layer_pairs": [[1, 1], [0, 0]]}},
            "relation_weight: takes the last of layer_pairs, which has no block",
        ),
        (
            {"ablations": {"no-norm": {"norm_wait": 0}}},
            "ablations.no-norm.norm_wait: Extra inputs are not permitted",
        ),
        ({"ablations": {"all": {"direction_weight": 1}}}, "ablations.all: the same as feature-kd; change an option"),
        ({"ablations": {"a": {"norm_weight": 0}, "b": {"norm_weight": 0}}}, "ablations.b: the same as feature-kd-a"),
        ({"ablations": {"No": {"norm_weight": 0}}}, "ablations.No"),
        ({"arms": ["sft"], "ablations": {"a": {"norm_weight": 0}}}, "feature-kd is missing in arms"),
        ({"teacher_signal": {"outputs": "top_k"}}, "teacher_signal.outputs: Input should be 'online', 'top-k' or"),
        (
            {"teacher_signal": {"outputs": "top-k"}, "compute": {"processes": 2}},
            "teacher_signal: a cached one is read by one process; write compute.processes: 1, or online",
        ),
        (
            {"teacher_signal": {"outputs": "top-k"}, "distillation": {"objective": "jsd"}},
            "distillation.objective: jsd needs every logit, teacher_signal.outputs: top-k keeps some; write forward-kl",
        ),
        (
            {"teacher_signal": {"outputs": "top-k"}, "ablations": {"r": {"objective": "reverse-kl"}}},
            "ablations.r.objective: reverse-kl needs every logit",
        ),
        (
            {"teacher_signal": {"outputs": "top-k", "top_k": 8}, "ablations": {"k": {"top_k": 9}}},
            "ablations.k.top_k: 9 is above the 8 tokens that teacher_signal.top_k keeps",
        ),
        (
            {"teacher_signal": {"features": "int8"}, "ablations": {"qkv": {"relation_weight": 1}}},
            "ablations.qkv.relation_weight: Q, K and V are not kept; write teacher_signal.features: online, or 0",
        ),
        ({"training": {"tokens": 1, "batch_size": 8, "micro_batch_size": 3}}, "3 must divide batch_size 8"),
    ],
)
def test_wrong_specs_get_one_line_that_names_the_field(changes, expected):
    with pytest.raises(InputError) as raised:
        specfile.validate(tree(**changes))
    message = str(raised.value)
    assert expected in message
    assert "\n" not in message


def test_files_that_are_no_spec(tmp_path):
    missing, broken, listing = tmp_path / "no.yaml", tmp_path / "broken.yaml", tmp_path / "list.yaml"
    broken.write_text("a: [1,\n b: }")
    listing.write_text("- 1")
    for path, expected in [(missing, "no file"), (broken, "cannot be read as YAML"), (listing, "not a mapping")]:
        with pytest.raises(InputError, match=expected) as raised:
            specfile.load(path)
        assert "\n" not in str(raised.value)


def test_paths_are_relative_to_the_spec_and_overrides_apply(tmp_path):
    path = tmp_path / "poc.yaml"
    students = [{"name": "own", "model": "small"}, {"name": "hub", "model": "hub:a/b"}]
    changes = {"data": {"files": "docs/*.txt"}, "teacher": {"model": "teacher"}, "students": students}
    path.write_text(yaml.safe_dump(tree(**changes)))
    found = specfile.load(path, ["cost.price_per_hour=2.5", "training.tokens=7", "gates=[]"])
    assert found.data.files == [str(tmp_path / "docs/*.txt")]
    assert found.teacher.model == str(tmp_path / "teacher")
    assert [size.model for size in found.students] == [str(tmp_path / "small"), "hub:a/b"]
    assert found.cost.price_per_hour.value == 2.5
    assert found.training.tokens == 7
    for wrong in ("cost.price_per_hour", "=3", "name.x=1", "a=[1"):
        with pytest.raises(InputError, match="--set"):
            specfile.load(path, [wrong])


def test_a_home_that_is_nobody_s_is_told(tmp_path):
    path = tmp_path / "poc.yaml"
    path.write_text(yaml.safe_dump(tree(data={"files": ["~no-such-user/x"]})))
    with pytest.raises(InputError, match="~no-such-user/x: there is no such user"):
        specfile.load(path)


def test_the_digest_sees_every_value_and_no_order():
    one, same = specfile.validate(tree()), specfile.validate(dict(reversed(tree().items())))
    other = specfile.validate(tree(cost={"price_per_hour": 9}))
    assert one.digest() == same.digest() != other.digest()


def test_an_arm_depends_on_its_own_options_alone():
    plain, other = (Distillation(norm_weight=weight) for weight in (0.1, 0.2))
    assert plain.outputs_only() == other.outputs_only() != Distillation(top_k=3).outputs_only()
    assert not plain.outputs_only().has_features


def test_candidates_have_plain_names_with_one_size_and_full_names_with_several():
    assert [found.name for found in specfile.validate(tree()).candidates()] == ["sft", "logit-kd", "feature-kd"]
    several = tree(students=[{"name": "m", "layers": 3}, {"name": "s", "layers": 2}], arms=["sft", "logit-kd"])
    names = [found.name for found in specfile.validate(several).candidates()]
    assert names == ["sft-m-fp32", "logit-kd-m-fp32", "sft-s-fp32", "logit-kd-s-fp32"]


@pytest.mark.parametrize("name", ["default", "tiny"])
def test_the_specs_that_come_with_featkd_are_valid(name):
    assert specfile.load(SPECS / f"{name}.yaml").candidates()


def test_every_field_is_described():
    def check(model, path):
        for name, field in model.model_fields.items():
            section = specfile._section_of(field.annotation)
            if section is not None:
                check(section, f"{path}.{name}")
            else:
                assert field.description, f"{path}.{name} has no description"

    check(spec.Spec, "spec")
