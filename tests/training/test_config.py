"""Configs: what is read, what is refused and with which words, and that help knows every field."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import cornstarch
from cornstarch import ArgumentError, TrainConfig, parse_config, read_config, to_yaml
from cornstarch.cli.train import field_help
from cornstarch.training import (
    LanguageModelConfig,
    ModelConfig,
    OptimizerConfig,
    PartConfig,
    TrainingConfig,
    TrainsConfig,
)
from cornstarch.training.reading import describe_fields

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
LEAST = "model: {language_model: {path: some/model}}\ntraining: {steps: 10}\n"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_examples_can_be_read_and_written_again(path: Path) -> None:
    """Every example is a config; written out resolved and read again it is the same one."""
    config = read_config(path)
    assert parse_config(to_yaml(config)) == config


def test_values_are_read_as_people_mean_them() -> None:
    """Numbers as JSON has them (1e-3 is one), true and false alone are booleans, the short form of a mode."""
    config = parse_config(
        LEAST + "optimizer: {learning_rate: 1e-3}\nrun: {folder: no}\ntrains: {language_model: frozen}"
    )
    assert config.optimizer.learning_rate == 1e-3
    assert config.run.folder == "no"
    assert config.trains["language_model"] == TrainsConfig(mode="frozen")
    with pytest.raises(ArgumentError, match=r"line 3: training.compile: must be a valid boolean, found 'yes'"):
        parse_config("model: {language_model: {path: a}}\ntraining:\n  compile: yes\n  steps: 1")


def test_the_command_line_overrides_the_file() -> None:
    words = [
        "--optimizer.learning_rate",
        "2e-3",
        "--trains.language_model.mode=lora",
        "--trains.language_model.lora={r: 4}",
    ]
    config = parse_config(LEAST + "trains: {language_model: frozen}", [*words, "--optimizer.max_grad_norm", "null"])
    assert config.optimizer.learning_rate == 2e-3
    assert config.optimizer.max_grad_norm is None
    assert config.trains["language_model"] == TrainsConfig(mode="lora", lora={"r": 4})


def test_what_an_alias_stands_for_is_changed_in_one_place() -> None:
    text = LEAST + "data: {train: &d {source: digits, split: train}, validation: *d}"
    config = parse_config(text, ["--data.validation.split", "validation"])
    assert (config.data.train.split, config.data.validation.split) == ("train", "validation")


def test_entries_of_lists_can_be_overridden() -> None:
    text = LEAST + "trains: {language_model: {groups: [{parameters: ['*norm*']}, {parameters: ['*.bias']}]}}"
    config = parse_config(text, ["--trains.language_model.groups.1.weight_decay", "0.5"])
    assert [group.weight_decay for group in config.trains["language_model"].groups] == [None, 0.5]


@pytest.mark.parametrize(
    "text, words, message",
    [
        ("optimzer: {}\n", [], r"config, line 3: optimzer: there is no such field; did you mean 'optimizer'\?"),
        ("optimizer:\n  lr: 1\n", [], r"line 4: optimizer.lr: there is no such field; did you mean 'learning_rate'\?"),
        ("optimizer:\n  steps: 1\n", [], r"line 4: optimizer.steps: .*did you mean 'training.steps'"),
        ("optimizer:\n  weight_decay: much\n", [], r"line 4: optimizer.weight_decay: must be a .*'much'"),
        ("training: {}\n", [], r"line 3: training stands there a second time"),
        ("optimizer: {learning_rate: -1}\n", [], r"line 3: optimizer.learning_rate: must be positive, found -1"),
        ("trains: {vision_encoder: frozen}\n", [], r"trains.vision_encoder: the model has no part 'vision_encoder'"),
        ("trains: {language_model: froozen}\n", [], r"trains.language_model.mode: must be 'frozen', 'full'.*'froozen'"),
        ("trains: {language_model: {lora: {r: 1}}}\n", [], r"language_model.lora: is for mode lora, found mode 'full'"),
        ("trains: {language_model: partial}\n", [], r"partial needs last_layers, norms, new_rows or parameters"),
        ("data: {train: {source: digit, split: train}}\n", [], r"line 3: data.train: .*'digits', 'digits_and_tones'"),
        ("data: {train: {source: digits, split: dev}}\n", [], r"line 3: data.train.split: must be 'train'"),
        ("run: {overwrite: true, resume: true}\n", [], r"run.resume: cannot go on from a run that is overwritten"),
        ("run: [\n", [], "is no YAML"),
        ("run: !!int abc\n", [], "is no YAML that a config can be"),
        ("run: {? [a] : 1}\n", [], "is no YAML that a config can be"),
        ("run: &a {folder: *a}\n", [], "is no YAML|is none that a config can have"),
        ("data: {workers: -1}\n", [], "data.workers: must not be negative"),
        ("data: {max_length: 0}\n", [], "data.max_length: must be above 0"),
        ("optimizer: {arguments: {lr: 1}}\n", [], "lr is optimizer.learning_rate; set it there"),
        ("evaluation: {generate: false}\nrun: {best_by: eval_exact_match}\n", [], "needs evaluation.generate"),
        ("", ["--optimizer.lr", "1"], r"command line, --optimizer.lr: .*did you mean 'learning_rate'"),
        ("", ["--optimizer.learning_rate"], r"command line: --optimizer.learning_rate needs a value"),
        ("", ["steps", "3"], r"command line: expected --key value, found 'steps'"),
        ("", ["--training.steps", "3", "--training.epochs", "2"], r"training.steps: give `steps` or `epochs`"),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_their_place(text: str, words: list[str], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        parse_config(LEAST + text, words)


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(ArgumentError) as caught:
        parse_config(LEAST + "optimizer: {nam: 1, learning_rate: x}\nrun: {foldr: x}\n")
    assert len(str(caught.value).splitlines()) == 3


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"nowhere.yaml cannot be read"):
        read_config(tmp_path / "nowhere.yaml")


def test_configs_made_in_python_are_checked_too() -> None:
    """With errors of the package's own tree, which are ValueErrors."""
    lm = LanguageModelConfig(path="x")
    for make, message in (
        (lambda: OptimizerConfig(lr=1), "lr: there is no such field"),
        (lambda: TrainingConfig(steps=0), "steps: must be above 0"),
        (lambda: PartConfig(), "give `path` or `config`"),
        (
            lambda: ModelConfig(encoders={"a b": {"path": "x"}}, language_model=lm),
            "identifier",
        ),
    ):
        with pytest.raises(ArgumentError, match=message):
            make()
    assert issubclass(ArgumentError, ValueError)


def test_configs_cannot_be_changed() -> None:
    config = parse_config(LEAST)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.optimizer.learning_rate = 1.0


def test_help_explains_every_field() -> None:
    """Each has a meaning of its own, a kind and a default; and every key of the examples is among them."""
    fields = list(describe_fields(TrainConfig))
    assert len(fields) > 80
    for keys, field in fields:
        assert len(field.text) > 8, f"{'.'.join(keys)} has no docstring"
        assert field.kind
    shown = field_help()
    for key in ("--training.steps", "--trains.<key>.layer_decay", "--data.train.blank", "--model.encoders.<key>.pool"):
        assert re.search(rf"^{re.escape(key)}  \(", shown, re.M), key
    assert "default 0.0001" in shown
    assert "must be given" in shown


def test_the_command_prints_help_and_mistakes(tmp_path: Path) -> None:
    """`--help` on standard output with code 0; a wrong config on standard error with code 1 and no traceback."""
    command = [sys.executable, "-m", "cornstarch.cli.main", "train"]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert "--optimizer.learning_rate  (number; default 0.0001)" in done.stdout
    path = tmp_path / "config.yaml"
    path.write_text(LEAST + "optimizer: {nam: 1}\n")
    done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {path}, line 3: optimizer.nam: ")
    assert "Traceback" not in done.stderr


def test_the_yaml_of_a_config_holds_every_field() -> None:
    values = yaml.safe_load(to_yaml(parse_config(LEAST)))
    for keys, _ in describe_fields(TrainConfig):
        if "<key>" in keys or "<n>" in keys:
            continue
        place = values
        for key in keys:
            if place is None:
                break
            assert key in place, keys
            place = place[key]


def test_train_is_at_the_top() -> None:
    assert cornstarch.train is cornstarch.training.run.train
