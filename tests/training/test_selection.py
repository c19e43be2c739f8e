"""What trains: every mode, through the config, against what really changes in training."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from cornstarch import ArgumentError, Batches, Loop, TrainsConfig, choose, make_schedule, parameter_groups, part_rows
from cornstarch.training import GroupConfig, OptimizerConfig, make_optimizer
from cornstarch.training.schedules import share_at
from tests.training import toy

PARTS = ("vision_encoder", "vision_projector", "language_model")


def changed(trains: dict[str, TrainsConfig], new_rows: list[int] | None = None, **options: Any) -> tuple[Any, set[str]]:
    """The model after three steps with weight decay, and the names of all parameters that moved."""
    model, collator = toy.model_and_collator(**options)
    choose(model, trains, new_rows)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    config = OptimizerConfig(learning_rate=1e-2, weight_decay=0.1)
    groups = parameter_groups(model, config, trains)
    Loop(model, make_optimizer(groups, config), Batches(toy.Colours(), collator, 8), steps=3).run()
    return model, {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


def named(model: Any, *prefixes: str) -> set[str]:
    return {name for name, _ in model.named_parameters() if name.startswith(prefixes)}


def frozen(**others: TrainsConfig) -> dict[str, TrainsConfig]:
    return {**dict.fromkeys(PARTS, TrainsConfig(mode="frozen")), **others}


LAYER = "language_model.model.layers.1."


def test_full_and_frozen() -> None:
    model, moved = changed(frozen(vision_projector=TrainsConfig(mode="full")))
    assert moved == named(model, "vision_encoder.projector.")
    assert [row["mode"] for row in part_rows(model)] == ["frozen", "full", "frozen"]


def test_the_last_layers() -> None:
    model, moved = changed(frozen(language_model=TrainsConfig(mode="partial", last_layers=1)))
    assert moved == named(model, LAYER)
    assert [row["mode"] for row in part_rows(model)] == ["frozen", "frozen", "partial"]


def test_norms() -> None:
    """All of the part: those of every layer, and the last one."""
    model, moved = changed(frozen(language_model=TrainsConfig(mode="partial", norms=True)))
    expected = {name for name in named(model, "language_model.") if "norm" in name}
    assert moved == expected
    assert len(expected) == 5


def test_parameters_by_name_and_everything_together() -> None:
    choice = TrainsConfig(mode="partial", parameters=["*k_proj*", "lm_head*"], last_layers=1)
    model, moved = changed(frozen(language_model=choice))
    assert moved == named(model, LAYER, "language_model.lm_head", "language_model.model.layers.0.self_attn.k_proj")


def test_lora() -> None:
    """Adapters only, in the encoder too; base weights stay bit-equal."""
    lora = TrainsConfig(mode="lora", lora={"r": 2})
    model, moved = changed(frozen(vision_encoder=lora, language_model=lora))
    assert moved == {name for name, _ in model.named_parameters() if "lora_" in name}
    assert any(name.startswith("vision_encoder.") for name in moved)
    assert [row["mode"] for row in part_rows(model)] == ["lora", "frozen", "lora"]


@pytest.mark.parametrize("mode", ["partial", "lora"])
def test_new_rows(mode: str) -> None:
    """Of the embedding table, the new rows move and no others do; in lora mode beside the adapters."""

    def table(model: Any) -> Tensor:
        weight = torch.arange(259)
        return model.get_input_embeddings()(weight).detach().clone()

    rows = [250, 255]
    before = table(toy.model_and_collator()[0])
    choice = TrainsConfig(mode=mode, new_rows=True, **({"lora": {"r": 2}} if mode == "lora" else {}))
    model, _ = toy.model_and_collator()
    choose(model, frozen(language_model=choice), rows)
    config = OptimizerConfig(learning_rate=1e-2, weight_decay=0.1)
    optimizer = make_optimizer(parameter_groups(model, config), config)
    tokens = torch.tensor([[5, 250, 255, 6]])
    for _ in range(3):
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    different = (table(model) != before).any(-1).nonzero().flatten().tolist()
    assert different == rows
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained < 24 * 259, "not the whole table"


def test_parts_that_are_not_named_stay() -> None:
    model, _ = toy.model_and_collator()
    model.train({"vision": (False, True)})
    choose(model, {"language_model": TrainsConfig(mode="frozen")})
    assert [row["mode"] for row in part_rows(model)] == ["frozen", "full", "frozen"]


@pytest.mark.parametrize(
    "part, choice, message",
    [
        ("sound_encoder", TrainsConfig(), r"no part 'sound_encoder'; its parts: vision_encoder, vision_projector"),
        ("vision_projector", TrainsConfig(mode="lora"), "a projector trains in full"),
        ("language_model", TrainsConfig(mode="lora", lora={"rr": 1}), r"trains.language_model: PEFT refuses lora"),
        ("language_model", TrainsConfig(mode="lora", lora={"target_modules": ["nope"]}), "PEFT refuses lora"),
        (
            "language_model",
            TrainsConfig(mode="partial", new_rows=True),
            "name tokens in model.language_model.added",
        ),
        (
            "vision_encoder",
            TrainsConfig(mode="partial", parameters=["nope"]),
            "no parameter is called nope; the first",
        ),
    ],
)
def test_choices_that_cannot_be(part: str, choice: TrainsConfig, message: str) -> None:
    model, _ = toy.model_and_collator()
    with pytest.raises(ArgumentError, match=message):
        choose(model, {part: choice})


def test_adapters_that_are_there_go_on() -> None:
    """Mode lora trains them; full would be another thing than it says, and is refused."""
    model, _ = toy.model_and_collator()
    choose(model, {"language_model": TrainsConfig(mode="lora", lora={"r": 2})})
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    choose(model, {"language_model": TrainsConfig(mode="frozen")})
    choose(model, {"language_model": TrainsConfig(mode="lora")})
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable
    with pytest.raises(ArgumentError, match="choose lora"):
        choose(model, {"language_model": TrainsConfig(mode="full")})


# --- learning rates ---------------------------------------------------------------------------------------------------


def rates(groups: list[dict[str, Any]]) -> dict[str, tuple[float, float, float]]:
    """(learning rate, weight decay, warm-up) of every parameter by name."""
    return {name: (g["peak"], g["weight_decay"], g["warmup"]) for g in groups for name in g["names"]}


def test_settings_per_part_and_pattern() -> None:
    """The first group that names a parameter has it, then the part, then the optimizer; vectors are not decayed."""
    model, _ = toy.model_and_collator()
    groups = [
        GroupConfig(parameters=["*norm*"], weight_decay=0.7),
        GroupConfig(parameters=["*layers.0*"], learning_rate=5e-5),
    ]
    trains = {"language_model": TrainsConfig(learning_rate=1e-4, warmup=0.5, groups=groups)}
    config = OptimizerConfig(learning_rate=1e-3, weight_decay=0.1)
    found = rates(parameter_groups(model, config, trains, warmup=0.1))
    assert set(found) == {f"{part}.{name}" for part, name in _names(model)}
    assert found["vision_projector.projection.weight"] == (1e-3, 0.1, 0.1)
    assert found["vision_projector.projection.bias"] == (1e-3, 0.0, 0.1)
    assert found["language_model.model.layers.0.input_layernorm.weight"] == (1e-4, 0.7, 0.5)
    assert found["language_model.model.layers.0.mlp.up_proj.weight"] == (5e-5, 0.1, 0.5)
    assert found["language_model.model.layers.1.mlp.up_proj.weight"] == (1e-4, 0.1, 0.5)


def _names(model: Any) -> list[tuple[str, str]]:
    from cornstarch.training.selection import parameters_of

    return [(part, name) for part, name, parameter in parameters_of(model) if parameter.requires_grad]


def test_layer_decay() -> None:
    """The head and the last layer have the part's rate, each layer before half of it, the embeddings a quarter."""
    model, _ = toy.model_and_collator()
    trains = {"language_model": TrainsConfig(layer_decay=0.5)}
    found = rates(parameter_groups(model, OptimizerConfig(learning_rate=1.0), trains))
    assert found["language_model.lm_head.weight"][0] == 1
    assert found["language_model.model.norm.weight"][0] == 1
    assert found["language_model.model.layers.1.mlp.up_proj.weight"][0] == 1
    assert found["language_model.model.layers.0.mlp.up_proj.weight"][0] == 0.5
    assert found["language_model.model.embed_tokens.weight"][0] == 0.25
    assert found["vision_projector.projection.weight"][0] == 1


def test_a_tied_head_is_trained_once() -> None:
    from tests import parts

    model, _ = toy.model_and_collator()
    model.language_model = parts.llama(tie=True)
    held = [id(p) for group in parameter_groups(model, OptimizerConfig()) for p in group["params"]]
    assert len(held) == len(set(held)) == sum(1 for _ in model.parameters())


def test_every_optimizer_of_torch_takes_a_step() -> None:
    """By name, with its own defaults; those that cannot are refused by name."""
    for name in torch.optim.__all__:
        cls = getattr(torch.optim, name)
        if not isinstance(cls, type) or name in ("Optimizer", "LBFGS", "SparseAdam", "Muon"):
            continue
        model, collator = toy.model_and_collator()
        config = OptimizerConfig(name=name)
        loop = Loop(
            model, make_optimizer(parameter_groups(model, config), config), Batches(toy.Colours(), collator, 4), steps=1
        )
        loop.run()


# --- schedules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, theirs", [("linear", "linear"), ("cosine", "cosine"), ("constant", "constant")])
def test_schedules_are_those_of_transformers(name: str, theirs: str) -> None:
    """Without warm-up, the share at every step equals `transformers.get_scheduler`'s, 1e-12."""
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(theirs, optimizer, num_warmup_steps=0, num_training_steps=20)
    for step in range(1, 21):
        expected = optimizer.param_groups[0]["lr"]
        assert share_at(step, 20, 0.0, make_schedule(name, {})) == pytest.approx(expected, abs=1e-12)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("name", ["constant", "linear", "cosine", "inverse_sqrt", "warmup_stable_decay"])
def test_warm_up_rises_to_the_highest_rate(name: str) -> None:
    """In a straight line that does not begin at 0, up to 1 at the first step behind it, and never above."""
    decay = make_schedule(name, {})
    shares = [share_at(step, 100, 0.1, decay) for step in range(1, 101)]
    assert shares[:10] == pytest.approx([step / 11 for step in range(1, 11)])
    assert shares[10] == max(shares) == 1.0
    assert all(later <= earlier for earlier, later in itertools.pairwise(shares[10:]))
    assert 0 < share_at(1, 1, 1.0, decay) <= 1


def test_floors() -> None:
    for name in ("linear", "cosine", "warmup_stable_decay"):
        last = share_at(1000, 1000, 0.0, make_schedule(name, {"floor": 0.1}))
        assert 0.1 <= last < 0.11
