"""Configuration: every shipped recipe loads, and every mistake is named on one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from fastrot.config import Config, known_keys, load_config
from fastrot.errors import UsageError
from fastrot.system.yaml_config import shipped_names


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_recipe_loads_and_says_how_to_run_it(name: str) -> None:
    load_config(name)
    head = (Path(__file__).parents[2] / "configs" / f"{name}.yaml").read_text()
    assert head.startswith("# ")
    assert "# Command:" in head


def test_published_recipe_setting_by_setting() -> None:
    config = load_config("resnet50_8xb16-steplr-70e")
    assert config.model.name == "resnet50" and config.model.sync_bn
    assert (config.train.global_batch, config.train.epochs) == (128, 70)
    assert config.optim.model_dump(include={"learning_rate", "momentum", "nesterov"}) == {
        "learning_rate": 0.2,
        "momentum": 0.9,
        "nesterov": False,
    }
    assert (config.optim.weight_decay, config.optim.decay_norm_and_bias) == (1e-4, True)
    assert config.data.crop == "random_resized" and config.data.scale == (0.08, 1.0)
    assert config.data.flip == 0.5 and config.pretext.views == "all"


def test_resolved_configuration_loads_back_unchanged(tmp_path: Path) -> None:
    config = load_config("digits", ["train.epochs=1.5", "optim.learning_rate=1e-3"])
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert load_config(str(path)) == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", "unknown key 'train.epoch'; the nearest known key is 'train.epochs'"),
        ("epochs=3", "the nearest known key is 'train.epochs'"),
        ("optim.lr=3", "unknown key 'optim.lr'"),
        ("train.epochs", "write section.key=value"),
        ("train.epochs=many", "train.epochs='many'"),
        ("train.epochs=-1", "greater than 0"),
        ("optim.milestones=[3,1]", "must increase"),
        ("data.scale=[0.5,2]", "must not exceed 1"),
        ("data.loader=fast", "data.loader='fast'"),
        ("data.resolution=[", "not valid YAML"),
        ("train.seed=-1", "greater than or equal to 0"),
        ("data.std=[.inf,1,1]", "data.std.0=inf: input should be a finite number"),
        ("data.mean=[0,.nan,0]", "data.mean.1=nan: input should be a finite number"),
        ("optim.learning_rate=inf", "optim.learning_rate=inf"),
        ("data.padding=33", "must not exceed data.resolution=32"),
        (
            "data.mean=[123.675,116.28,103.53]",
            "255: --set 'data.mean=[0.485,0.456,0.406]'",
        ),
        ("data.std=[58.395,57.12,57.375]", "divide by 255: --set 'data.std=[0.229,0.224,0.225]'"),
        ("data.mean=[-0.1,0,0]", "must be in [0, 1]"),
        ("data.std=[300,1,1]", "must be in (0, 1]"),
        ("data.mean=0.5", "write a list, e.g. --set 'data.mean=[0.5,0.5,0.5]'"),
        ("optim.milestones=3,5", "write a list, e.g. --set 'optim.milestones=[3,5]'"),
        ("data.progressive=[3]", "write a list, e.g. --set 'data.progressive=[...]'"),
        ("data.scale=[8,100]", "not percentages"),
        ("optim.gamma=10", "--set optim.gamma=0.1"),
    ],
)
def test_wrong_override_is_named_on_one_line(override: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_config("digits", [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {epoch: 3}", "nearest known key is 'train.epochs'"),
        ("a: &x [1]\nb: *x", "aliases are not allowed"),
        ("a: " + "[" * 30_000, "nested deeper than 16 levels"),
        ("optim: {learning_rate: 2001-99-99}", "month must be in 1..12"),
        ("train: {seed: " + "9" * 5000 + "}", "not valid YAML"),
        ("- 1", "a recipe is a mapping"),
        ("train: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("train: [", "not valid YAML"),
    ],
)
def test_wrong_recipe_is_named_on_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_config(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "what"), [("a.py", "a Python config"), ("a.txt", "not a .yaml")])
def test_another_file_is_told_from_a_recipe(tmp_path: Path, name: str, what: str) -> None:
    (tmp_path / name).write_text("x = 1")
    with pytest.raises(UsageError, match=f"{what}.*; give a .yaml file or the name"):
        load_config(str(tmp_path / name))


def test_a_bare_value_is_a_list_of_one(tmp_path: Path) -> None:
    assert load_config("digits", ["optim.milestones=3"]).optim.milestones == (3.0,)
    path = tmp_path / "recipe.yaml"
    path.write_text("optim: {milestones: 3}")
    assert load_config(str(path)).optim.milestones == (3.0,)


def test_a_run_that_was_trained_with_a_slip_still_loads(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("data: {mean: [123.675, 116.28, 103.53]}")
    assert load_config(str(path), recorded=True).data.mean[0] == 123.675


def test_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"did you mean 'digits'.*resnet50_8xb16-steplr-70e"):
        load_config("digit")


def test_every_field_is_documented() -> None:
    for section in Config.model_fields.values():
        model = section.annotation
        assert isinstance(model, type) and issubclass(model, BaseModel)
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name} has no doc string"
    assert "train.global_batch" in known_keys()
