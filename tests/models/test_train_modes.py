"""`train()`: which parts train, which mode they are in, and what is refused without a change."""

import copy
from collections.abc import Callable
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from cornstarch import CornstarchError, ModalEncoderModule, MultimodalModel
from tests import parts, tiny
from tests.tiny import IMAGE, SOUND, trainable

PARTS = {
    "vision encoder": "vision_encoder.module",
    "vision projector": "vision_encoder.projector",
    "audio encoder": "audio_encoder.module",
    "audio projector": "audio_encoder.projector",
    "llm": "language_model",
}
ENCODERS = {"vision encoder", "vision projector", "audio encoder", "audio projector"}
EVERYTHING = ENCODERS | {"llm"}


def composed(lm: Any = None, vision: Any = None) -> MultimodalModel:
    """Images, sounds and a language model, with dropout in every part that has some."""
    vision = tiny.encoder("clip", drop=0.5) if vision is None else vision
    encoders = {"vision": ModalEncoderModule(vision), "audio": ModalEncoderModule(tiny.encoder("whisper", drop=0.5))}
    model = MultimodalModel(encoders, tiny.language_model("opt", drop=0.5) if lm is None else lm)
    model.set_modality_token_ids({"vision": IMAGE, "audio": SOUND})
    return model


def state(model: nn.Module) -> tuple[dict[str, bool], dict[str, bool], set[str]]:
    """What requires a gradient, what is in training mode, what holds a gradient."""
    return (
        {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        {name: module.training for name, module in model.named_modules()},
        {name for name, parameter in model.named_parameters() if parameter.grad is not None},
    )


def never_trained(part: nn.Module) -> set[str]:
    """Positions that Hugging Face itself never trains (Whisper's sinusoids); thawing them is as PyTorch does it."""
    return {name for name in dict(part.named_parameters()) if "embed_positions" in name}


def assert_trains(model: MultimodalModel, parts: set[str], mode: bool = True) -> None:
    """Exactly these parts require gradients; they are in `mode`, and every module of the others is in eval mode."""
    for name, path in PARTS.items():
        part = model.get_submodule(path)
        if name in parts:
            assert trainable(part) | never_trained(part) == set(dict(part.named_parameters())) | never_trained(part), (
                name
            )
            assert all(module.training is mode for module in part.modules()), name
        else:
            assert trainable(part) == set(), name
            assert not any(module.training for module in part.modules()), name
    assert model.training is mode


# --- which parts train ------------------------------------------------------------------------------------------------


def test_everything_trains_as_built() -> None:
    """A model made of parts in training mode trains in every part."""
    assert_trains(composed(), EVERYTHING)


@pytest.mark.parametrize("encoder", [True, False])
@pytest.mark.parametrize("projector", [True, False])
@pytest.mark.parametrize("llm", [True, False])
@pytest.mark.parametrize("before", [True, False])
def test_named_parts(encoder: bool, projector: bool, llm: bool, before: bool) -> None:
    """`encoders_mode` and `llm_mode` decide, whatever trained before; an encoder not named stays as it is."""
    model = composed().train(llm_mode=before)
    assert_trains(model, EVERYTHING if before else set())
    model.train(encoders_mode={"vision": (encoder, projector)}, llm_mode=llm)
    expected = {"audio encoder", "audio projector"} if before else set()
    expected |= {"vision encoder"} if encoder else set()
    expected |= {"vision projector"} if projector else set()
    assert_trains(model, expected | ({"llm"} if llm else set()))


@pytest.mark.parametrize("llm", [True, False])
def test_without_encoders_mode_all_follow_llm_mode(llm: bool) -> None:
    """`train(llm_mode=x)` equals naming every encoder and projector with x."""
    model, named = composed().train(llm_mode=not llm), composed().train(llm_mode=not llm)
    model.train(llm_mode=llm)
    named.train(dict.fromkeys(named.encoders, (llm, llm)), llm_mode=llm)
    assert_trains(model, EVERYTHING if llm else set())
    assert state(model) == state(named)


@pytest.mark.parametrize("llm", [True, False])
def test_without_llm_mode_the_language_model_stays_as_it_is(llm: bool) -> None:
    """`llm_mode=None`, given or left out, changes nothing in the language model."""
    model = composed().train(llm_mode=llm)
    model.train({"vision": (True, False), "audio": (False, True)})
    expected = {"vision encoder", "audio projector"} | ({"llm"} if llm else set())
    assert_trains(model, expected)
    assert_trains(model.train({"vision": (True, False)}, llm_mode=None), expected)


def test_no_encoder_named() -> None:
    """An empty `encoders_mode` is given, so encoders do not follow `llm_mode`."""
    assert_trains(composed().train(encoders_mode={}, llm_mode=False), ENCODERS)
    assert_trains(composed().train({}, llm_mode=False), ENCODERS)


def test_first_dict_means_encoders_mode() -> None:
    """A dict in first position and as a keyword do the same; lists serve as pairs."""
    first, keyword = composed(), composed()
    first.train({"vision": (False, True)}, llm_mode=False)
    keyword.train(encoders_mode={"vision": [False, True]}, llm_mode=False)  # type: ignore[dict-item]
    assert state(first) == state(keyword)


def test_freezing_and_switching_in_one_call() -> None:
    """`mode=False` beside `encoders_mode` freezes what is named and puts all in eval mode."""
    model = composed()
    model.train({"vision": (False, True)}, mode=False)
    assert_trains(model, EVERYTHING - {"vision encoder"}, mode=False)
    assert_trains(model.train(), EVERYTHING - {"vision encoder"})


def test_callbacks_that_are_modules_belong_to_their_half() -> None:
    """Callbacks before the projector follow the encoder's flag, the one behind it the projector's."""

    class Callback(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

    encoder = ModalEncoderModule(
        tiny.encoder(),
        preprocess_callback=Callback(),
        postprocess_module_callback=Callback(),
        postprocess_projector_callback=Callback(),
    )
    model = tiny.model(encoder).train({"vision": (False, True)})
    names = ("preprocess_callback", "postprocess_module_callback", "postprocess_projector_callback")
    frozen = {
        name: not trainable(getattr(encoder, name)) and not getattr(encoder, name).layer.training for name in names
    }
    assert frozen == dict(zip(names, (True, True, False), strict=True))
    model.train({"vision": (True, False)})
    assert [bool(trainable(getattr(encoder, name))) for name in names] == [True, True, False]


class Noise(nn.Module):
    """A callback after the encoder or after the projector that has no weights, only dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, inputs: Any, output: Any) -> torch.Tensor:
        return self.dropout(output if isinstance(output, torch.Tensor) else output.last_hidden_state)


@pytest.mark.parametrize("encoder, projector", [(True, False), (False, True), (False, False)])
def test_callbacks_without_weights_follow_their_half(encoder: bool, projector: bool) -> None:
    """Dropout alone has nothing to freeze: its mode equals its half's flag, and everything frozen repeats bits."""
    modal = ModalEncoderModule(
        tiny.encoder(), postprocess_module_callback=Noise(), postprocess_projector_callback=Noise()
    )
    model = tiny.model(modal).train({"vision": (encoder, projector)}, llm_mode=False).train()
    noises = (modal.postprocess_module_callback, modal.postprocess_projector_callback)
    assert [noise.dropout.training for noise in noises] == [encoder, projector]
    inputs = tiny.vision_batch()
    same = torch.equal(model(**inputs).loss, model(**inputs).loss)
    assert same is not (encoder or projector)


@pytest.mark.parametrize("llm", [True, False])
@pytest.mark.parametrize("switch", [True, False])
def test_a_callback_before_the_language_model_follows_llm_mode(llm: bool, switch: bool) -> None:
    """Its weights train and its dropout runs as `llm_mode` says; None leaves both; all frozen, losses equal bits."""

    class Callback(nn.Module):
        def __init__(self, *layers: nn.Module) -> None:
            super().__init__()
            self.layers = nn.Sequential(*layers)

        def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
            return {**inputs, "inputs_embeds": self.layers(inputs["inputs_embeds"])}

    inputs = tiny.vision_batch()
    for layers in ([nn.Linear(32, 32), nn.Dropout(0.5)], [nn.Dropout(0.5)]):
        vision = ModalEncoderModule(tiny.encoder())
        model = MultimodalModel({"vision": vision}, tiny.language_model(), preprocess_llm_callback=Callback(*layers))
        model.set_modality_token_ids({"vision": IMAGE})
        model.train({"vision": (False, False)}, llm_mode=llm)
        model.train({"vision": (False, False)}, llm_mode=None).train(switch)
        callback = model.preprocess_llm_callback
        assert bool(trainable(callback)) is (llm and len(layers) == 2)
        assert all(module.training is (llm and switch) for module in callback.modules())
        first, second = model(**inputs).loss, model(**inputs).loss
        assert torch.equal(first, second) is not (llm and switch)
        assert first.requires_grad is llm


# --- the mode as everywhere in PyTorch --------------------------------------------------------------------------------

SWITCHES: dict[str, tuple[Callable[[MultimodalModel], Any], bool]] = {
    "train()": (lambda model: model.train(), True),
    "train(True)": (lambda model: model.train(True), True),
    "train(mode=True)": (lambda model: model.train(mode=True), True),
    "train(False)": (lambda model: model.train(False), False),
    "train(mode=False)": (lambda model: model.train(mode=False), False),
    "eval()": (lambda model: model.eval(), False),
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_switching_neither_freezes_nor_thaws(switch: str) -> None:
    """Frozen parts stay frozen and in eval mode, others follow the mode; `requires_grad` stays; self is returned."""
    call, mode = SWITCHES[switch]
    model = composed().train({"vision": (False, True), "audio": (True, False)}, llm_mode=False)
    before = state(model)[0]
    assert call(model) is model
    assert state(model)[0] == before
    assert_trains(model, {"vision projector", "audio encoder"}, mode)
    assert_trains(model.train(), {"vision projector", "audio encoder"})


@pytest.mark.parametrize("switch", SWITCHES)
def test_switching_with_nothing_frozen_is_pytorchs_own(switch: str) -> None:
    """With nothing frozen, every module's mode equals that of the same modules in a plain `nn.ModuleDict`."""
    call, mode = SWITCHES[switch]
    model = composed()
    call(model)
    plain = nn.ModuleDict(
        {"a": model.vision_encoder, "b": model.audio_encoder, "c": copy.deepcopy(model.language_model)}
    )
    assert all(module.training is mode for module in model.modules())
    plain.train(not mode)
    call(model)
    assert all(module.training is mode for module in model.modules())


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.train({}),
        lambda model: model.train({"vision": (False, True)}),
        lambda model: model.train({"vision": (False, True)}, mode=False, llm_mode=None),
        lambda model: model.train(encoders_mode={"vision": (False, True)}),
        lambda model: model.train(False, encoders_mode={"vision": (True, True)}, llm_mode=True),
        lambda model: model.train(llm_mode=False),
        lambda model: model.train(encoders_mode={}, llm_mode=True, mode=False),
    ],
)
def test_returns_self(call: Callable[[MultimodalModel], Any]) -> None:
    """Every way to call `train` returns the model."""
    model = composed()
    assert call(model) is model


def test_gradients_of_frozen_parts_are_dropped_and_others_kept() -> None:
    """Freezing drops `.grad` of what it freezes and of nothing else; switching the mode drops none."""
    model = composed()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.train().eval().train()
    assert state(model)[2] == set(dict(model.named_parameters()))
    model.train({"vision": (False, True)})
    assert {name for name, parameter in model.named_parameters() if parameter.grad is None} == {
        f"vision_encoder.module.{name}" for name, _ in model.vision_encoder.module.named_parameters()
    }


def test_thawing_trains_what_hugging_face_trains() -> None:
    """Freezing and thawing gives back what a fresh model trains: the sinusoids of Whisper are no weights to learn."""
    model = composed()
    fresh = trainable(model.audio_encoder)
    assert "module.embed_positions.weight" not in fresh
    model.train({"audio": (False, False)})
    model.train({"audio": (True, True)})
    assert trainable(model.audio_encoder) == fresh


def test_what_is_frozen_is_read_off_requires_grad() -> None:
    """A part that a user's loop freezes or thaws by hand is treated so at the next call."""
    model = composed()
    model.language_model.requires_grad_(False)
    model.vision_encoder.projector.requires_grad_(False)
    assert_trains(model.train(), EVERYTHING - {"llm", "vision projector"})
    model.language_model.requires_grad_(True)
    assert_trains(model.train(), EVERYTHING - {"vision projector"})


def test_a_part_with_one_trainable_weight_is_not_frozen() -> None:
    """A partly frozen part trains: it follows the mode, and thawing it thaws the rest."""
    model = composed()
    model.language_model.requires_grad_(False)
    model.language_model.lm_head.weight.requires_grad_(True)
    model.train()
    assert model.language_model.training
    assert trainable(model.language_model) == {"lm_head.weight"}
    assert_trains(model.train({}, llm_mode=True), EVERYTHING)


# --- refused, without a change ----------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Callable[[MultimodalModel], Any], bool]] = {  # the call, and whether keys must be listed
    "a string": (lambda model: model.train("vision"), True),
    "a string beside a mode": (lambda model: model.train("non_existing_encoder", mode=False), True),
    "a string beside encoders_mode": (
        lambda model: model.train("vision", encoders_mode={"vision": (True, True)}),
        True,
    ),
    "a string beside llm_mode": (lambda model: model.train("vision", llm_mode=False), True),
    "a string as mode": (lambda model: model.train(mode="vision"), True),
    "a list": (lambda model: model.train(["vision"]), True),
    "a number": (lambda model: model.train(1), True),
    "None": (lambda model: model.train(None), True),
    "None beside a mode": (lambda model: model.train(None, mode=False), True),
    "mode as a number": (lambda model: model.train(mode=0), True),
    "an unknown key": (lambda model: model.train({"video": (False, False)}), True),
    "an unknown key as a keyword": (lambda model: model.train(encoders_mode={"video": (False, False)}), True),
    "an unknown key behind a known one": (
        lambda model: model.train({"vision": (False, False), "vison": (False, False)}, llm_mode=False),
        True,
    ),
    "a string as encoders_mode": (lambda model: model.train(encoders_mode="vision"), False),
    "a flag instead of a pair": (lambda model: model.train({"vision": False}), False),
    "None instead of a pair": (lambda model: model.train({"vision": None}), False),
    "a string instead of a pair": (lambda model: model.train({"vision": "ab"}), False),
    "a set instead of a pair": (lambda model: model.train({"vision": {True, False}}), False),
    "a pair of numbers": (lambda model: model.train({"vision": (1, 0)}), False),
    "a pair too short": (lambda model: model.train({"vision": (False,)}, llm_mode=False), False),
    "a bad pair behind a good one": (lambda model: model.train({"vision": (False, False), "audio": "no"}), False),
    "a list of items as encoders_mode": (lambda model: model.train(encoders_mode=[("vision", (False, True))]), False),
    "a flag as encoders_mode": (lambda model: model.train(encoders_mode=False), False),
    "a bad mode beside good encoders": (lambda model: model.train({"vision": (False, True)}, mode=1), True),
    "llm_mode as a number": (lambda model: model.train(llm_mode=0), False),
    "a pair too long": (lambda model: model.train({"vision": (False, True, True)}), False),
    "a pair of no flags": (lambda model: model.train({"audio": (False, True), "vision": (None, True)}), False),
    "llm_mode of another type": (lambda model: model.train({"vision": (False, True)}, llm_mode="frozen"), False),
    "encoders_mode twice": (
        lambda model: model.train({"vision": (False, True)}, encoders_mode={"audio": (False, True)}),
        False,
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_without_a_change(case: str) -> None:
    """A `ValueError` with the known keys where it must; flags and modes equal, gradients the same, bit for bit."""
    call, lists_keys = REFUSED[case]
    listed = r"(?s)vision.*audio" if lists_keys else None
    model = composed().train({"audio": (False, True)})
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
    held = {name: parameter.grad for name, parameter in model.named_parameters()}
    values = {name: gradient.clone() for name, gradient in held.items() if gradient is not None}
    before = state(model)
    with pytest.raises(ValueError, match=listed) as caught:
        call(model)
    assert isinstance(caught.value, CornstarchError)
    assert state(model) == before
    assert all(parameter.grad is held[name] for name, parameter in model.named_parameters())
    assert all(torch.equal(held[name], value) for name, value in values.items())


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.train(first=True),
        lambda model: model.train({"vision": (False, True)}, False),
        lambda model: model.train(True, vision=False),
    ],
)
def test_not_in_the_signature(call: Callable[[MultimodalModel], Any]) -> None:
    """The first argument is positional only, the others keywords: a `TypeError` that changes nothing."""
    model = composed()
    before = state(model)
    with pytest.raises(TypeError):
        call(model)
    assert state(model) == before


# --- adapters ---------------------------------------------------------------------------------------------------------

ADAPTERS: dict[str, tuple[str, Callable[[], Any]]] = {
    "lora": ("qwen2", lambda: LoraConfig(r=2)),
    "lora-causal": ("qwen2", lambda: LoraConfig(r=2, task_type="CAUSAL_LM")),
    "lora-bias-all": ("opt", lambda: LoraConfig(r=2, bias="all")),
    "lora-bias-all-qwen2": ("qwen2", lambda: LoraConfig(r=2, bias="all")),
    "lora-bias-lora_only": ("opt", lambda: LoraConfig(r=2, bias="lora_only")),
    "lora-bias-lora_only-qwen2": ("qwen2", lambda: LoraConfig(r=2, bias="lora_only")),
    "lora-own-bias": ("qwen2", lambda: LoraConfig(r=2, lora_bias=True)),
    "lora-modules-to-save": ("qwen2", lambda: LoraConfig(r=2, modules_to_save=["lm_head", "embed_tokens"])),
    "lora-bias-all-modules-to-save": ("opt", lambda: LoraConfig(r=2, bias="all", modules_to_save=["final_layer_norm"])),
    "lora-bias-only-modules-to-save": ("opt", lambda: LoraConfig(r=2, bias="lora_only", modules_to_save=["fc2"])),
    "lora-embedding": ("llama", lambda: LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"])),
    "lora-token-rows": ("llama", lambda: LoraConfig(r=2, trainable_token_indices=[5, 6])),
    "dora": ("llama", lambda: LoraConfig(r=2, use_dora=True, target_modules="all-linear")),
    "ia3": ("llama", lambda: peft.IA3Config()),
    "loha": ("llama", lambda: peft.LoHaConfig(r=2, target_modules=["q_proj"])),
    "lokr": ("llama", lambda: peft.LoKrConfig(r=2, target_modules=["q_proj"])),
    "vera": ("llama", lambda: peft.VeraConfig(r=2, target_modules=["q_proj"])),
    "oft": ("llama", lambda: peft.OFTConfig(oft_block_size=4, target_modules=["q_proj"])),
    "norms": ("llama", lambda: peft.LNTuningConfig(target_modules=["input_layernorm"])),
    "token-rows": ("llama", lambda: peft.TrainableTokensConfig(token_indices=[5, 6])),
    "adalora": ("llama", lambda: peft.AdaLoraConfig(total_step=10, target_modules=["q_proj"])),
    "prompt": ("llama", lambda: peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")),
    "prefix": ("llama", lambda: peft.PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")),
    "p-tuning": ("llama", lambda: peft.PromptEncoderConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")),
}


@pytest.mark.filterwarnings("ignore:Unsupported layer type")  # PEFT's opinion of Llama's norms
@pytest.mark.parametrize("name", ADAPTERS)
def test_thawing_a_wrapped_language_model_trains_what_peft_trains(name: str) -> None:
    """After freezing and thawing, the parameters that require gradients are those PEFT itself had chosen."""
    family, config = ADAPTERS[name]
    wrapped = get_peft_model(tiny.language_model(family), config())
    expected = trainable(wrapped)
    assert expected
    model = composed(lm=wrapped)
    assert trainable(model.language_model) == expected
    model.train(llm_mode=False)
    assert trainable(model) == set()
    assert not any(module.training for module in model.language_model.modules())
    model.train({}, llm_mode=True)
    assert trainable(model.language_model) == expected
    assert model.language_model.training
    model.train({}, llm_mode=True)  # thawing what trains changes nothing
    assert trainable(model.language_model) == expected
    model.train({"vision": (True, True)}, llm_mode=None)
    assert trainable(model.language_model) == expected


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
@pytest.mark.parametrize("task", [None, "FEATURE_EXTRACTION"])
def test_thawing_a_wrapped_encoder_trains_what_peft_trains(bias: str, task: str | None) -> None:
    """The same on an encoder, whose biases (convolution, norms) are many."""
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], bias=bias, task_type=task)  # type: ignore[arg-type]
    wrapped: Any = get_peft_model(tiny.encoder(), config)
    expected = trainable(wrapped)
    model = composed(vision=wrapped)
    model.train({"vision": (False, True)})
    assert not trainable(model.vision_encoder.module)
    assert not any(module.training for module in model.vision_encoder.module.modules())
    model.train({"vision": (True, True)})
    assert trainable(model.vision_encoder.module) == expected
    assert all(module.training for module in model.vision_encoder.module.modules())


@pytest.mark.parametrize("where", ["llm", "vision"])
def test_thawing_with_adapters_that_hugging_face_put_inside(where: str) -> None:
    """Adapters of transformers' own `add_adapter`, which wraps nothing: thawing trains them, not the base."""
    part = tiny.language_model() if where == "llm" else tiny.encoder()
    parts.add_adapter(part, LoraConfig(r=2, target_modules=["q_proj"]))
    expected = trainable(part)
    model = composed(lm=part) if where == "llm" else composed(vision=part)
    model.train(llm_mode=False)
    assert not trainable(part)
    model.train({"vision": (True, True)}, llm_mode=True)
    assert trainable(part) == expected


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
@pytest.mark.parametrize("saved", ["post_layernorm", "fc2"])
def test_thawing_a_wrapped_encoder_with_modules_to_save(bias: str, saved: str) -> None:
    """An encoder whose layers PEFT trains a copy of: what trains after thawing equals what PEFT had chosen."""
    config = LoraConfig(r=2, target_modules=["q_proj"], bias=bias, modules_to_save=[saved])  # type: ignore[arg-type]
    wrapped: Any = get_peft_model(tiny.encoder(), config)
    expected = trainable(wrapped)
    assert any("modules_to_save" in name for name in expected)
    model = composed(vision=wrapped).train({"vision": (False, False)})
    assert not trainable(model.vision_encoder)
    model.train({"vision": (True, True)})
    assert trainable(wrapped) == expected


@pytest.mark.parametrize("active", ["default", "second", "both"])
@pytest.mark.parametrize("part", ["language model", "encoder"])
@pytest.mark.parametrize("saved", [None, ["final_layer_norm", "post_layernorm"]])
def test_thawing_one_or_both_of_two_adapters(active: str, part: str, saved: list[str] | None) -> None:
    """The active one of two adapters, or both, on either part: what trains equals what PEFT's `set_adapter` left."""
    targets = ["q_proj", "v_proj"]
    wrapped: Any = get_peft_model(
        tiny.language_model("opt") if part == "language model" else tiny.encoder(),
        LoraConfig(r=2, target_modules=targets, modules_to_save=saved),
    )
    wrapped.add_adapter("second", LoraConfig(r=3, target_modules=targets[:1]))
    wrapped.base_model.set_adapter(["default", "second"] if active == "both" else active)
    expected = trainable(wrapped)
    model = composed(**{"lm" if part == "language model" else "vision": wrapped})
    model.train(llm_mode=False)
    assert trainable(model) == set()
    model.train(llm_mode=True)
    assert trainable(wrapped) == expected
    names = {"default", "second"} if active == "both" else {active}
    assert {name for name in ("default", "second") if any(f".{name}." in found for found in expected)} == names


def test_llm_mode_none_keeps_adapters_training() -> None:
    """Encoders named, `llm_mode` None or left out: adapters stay trainable, in train mode, and get their gradient."""
    model = composed(lm=get_peft_model(tiny.language_model("opt"), LoraConfig(r=2)))
    adapters = trainable(model.language_model)
    assert all("lora_" in name for name in adapters)
    for call in (
        lambda: model.train({"vision": (False, True)}),
        lambda: model.train({"vision": (False, True), "audio": (False, True)}, llm_mode=None),
        lambda: model.train(encoders_mode={"vision": (False, False), "audio": (False, False)}, llm_mode=None),
    ):
        call()
        assert trainable(model.language_model) == adapters
        assert all(module.training for module in model.language_model.modules())
    inputs = tiny.padded([tiny.text(6)])
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert state(model)[2] == {f"language_model.{name}" for name in adapters}


@pytest.mark.parametrize("active", ["default", "second"])
@pytest.mark.parametrize("bias", ["none", "all"])
def test_thawing_with_two_adapters(active: str, bias: str) -> None:
    """Of two adapters the active one trains, as after PEFT's own `set_adapter`."""

    def wrapped() -> Any:
        made = get_peft_model(tiny.language_model("opt"), LoraConfig(r=2, bias=bias))  # type: ignore[arg-type]
        made.add_adapter("second", LoraConfig(r=3, target_modules=["q_proj"]))
        made.set_adapter(active)
        return made

    reference, lm = wrapped(), wrapped()
    model = composed(lm=lm)
    model.train(llm_mode=False)
    model.train({}, llm_mode=True)
    adapters = {name for name in trainable(lm) if "lora_" in name}
    assert adapters == {name for name in trainable(reference) if "lora_" in name}
    assert adapters
    assert all(f".{active}." in name for name in adapters)
    if active == "default":
        assert trainable(lm) == trainable(reference)


def test_freezing_keeps_the_choice_of_the_adapter() -> None:
    """Freezing and thawing leaves the active adapter active and its output as it was, bit for bit."""
    lm: Any = get_peft_model(tiny.language_model(), LoraConfig(r=2, init_lora_weights=False))
    lm.add_adapter("second", LoraConfig(r=3, init_lora_weights=False))
    lm.set_adapter("second")
    model, inputs = composed(lm=lm).eval(), tiny.padded([tiny.text(6)])
    before = model(**inputs).logits
    model.train(llm_mode=False)
    assert lm.active_adapters == ["second"]
    assert torch.equal(model(**inputs).logits, before)
    model.train({}, llm_mode=True)
    assert lm.active_adapters == ["second"]
    assert torch.equal(model.eval()(**inputs).logits, before)


@pytest.mark.parametrize("where", ["llm", "vision"])
def test_a_step_after_thawing_moves_adapters_only(where: str) -> None:
    """One AdamW step over all parameters moves the adapters and the projectors; the base is bit-identical."""
    config = {"r": 2, "init_lora_weights": False, "target_modules": ["q_proj", "v_proj"]}
    lm = tiny.language_model()
    vision = tiny.encoder()
    if where == "llm":
        model = tiny.model(vision, get_peft_model(lm, LoraConfig(**config)))
    else:
        model = tiny.model(get_peft_model(vision, LoraConfig(**config)), lm)
    model.train(llm_mode=False)
    model.train({"vision": (where == "vision", True)}, llm_mode=True if where == "llm" else None)
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    model(**tiny.vision_batch()).loss.backward()
    optimizer.step()
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if "lora_" in name or "projector" in name}


# --- wrappers ---------------------------------------------------------------------------------------------------------


class Wrapper(nn.Module):
    """What a data-parallel or compiling wrapper looks like from outside."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inner = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


def test_a_wrapper_in_an_encoders_place_is_seen() -> None:
    """`encoders` is live: after a wrapper (or another encoder) took its place, `train` acts on what stands there."""
    model = composed()
    old = model.vision_encoder
    model.vision_encoder = Wrapper(old)
    assert model.encoders["vision"] is model.vision_encoder
    model.train({"vision": (False, True)})
    assert not trainable(old.module)
    assert not any(module.training for module in old.module.modules())
    model.train()
    assert not any(module.training for module in old.module.modules())
    assert trainable(old.projector)

    new = ModalEncoderModule(tiny.encoder(), old.projector)
    model.vision_encoder = new
    assert model.encoders["vision"] is new
    model.train({"vision": (False, False)})
    assert not trainable(new)


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("before", [True, False], ids=["wrapped-then-frozen", "frozen-then-wrapped"])
def test_switching_under_a_wrapper(switch: str, before: bool) -> None:
    """A frozen encoder under a wrapper equals one without: same flags and modes inside after every switch."""
    call, mode = SWITCHES[switch]
    model, plain = composed(), composed()
    frozen = {"vision": (False, True)}
    if before:
        model.vision_encoder = Wrapper(model.vision_encoder)
        model.train(frozen)
    else:
        model.train(frozen)
        model.vision_encoder = Wrapper(model.vision_encoder)
    plain.train(frozen)
    assert call(model) is model
    call(plain)
    inner = model.encoders["vision"].inner
    assert state(inner) == state(plain.vision_encoder)
    assert not any(module.training for module in inner.module.modules())
    assert not trainable(inner.module)
    assert model.encoders["vision"].training is mode
    assert trainable(inner.projector)


def test_an_unknown_key_under_a_wrapper_changes_nothing() -> None:
    """Keys are those of construction, whatever stands in an encoder's place: refused, with the keys, no change."""
    model = composed()
    model.vision_encoder = Wrapper(model.vision_encoder)
    before = state(model)
    with pytest.raises(ValueError, match=r"inner.*vision, audio"):
        model.train({"vision": (False, True), "inner": (False, True)})
    assert state(model) == before


def test_another_encoder_or_language_model_in_place_is_seen() -> None:
    """Replacing `module`, `projector` or `language_model`, by adapters or anew: the new one is frozen and thawed."""
    model = composed()
    model.vision_encoder.module = get_peft_model(
        model.vision_encoder.module, LoraConfig(r=2, target_modules=["q_proj"])
    )
    model.language_model = get_peft_model(model.language_model, LoraConfig(r=2))
    model.audio_encoder.projector = nn.Linear(24, 32)
    model.train(llm_mode=False)
    assert trainable(model) == set()
    model.train(llm_mode=True)
    assert {name for name in trainable(model) if "lora_" not in name} == {
        name for name in dict(model.named_parameters()) if "projector" in name or name.startswith("audio_encoder")
    } - {"audio_encoder.module.embed_positions.weight"}
    assert any("language_model" in name for name in trainable(model))


def test_keys_and_values_of_encoders() -> None:
    """`encoders` is a mapping with the keys of construction onto the submodules themselves; others are a KeyError."""
    model = composed()
    assert list(model.encoders) == ["vision", "audio"]
    assert len(model.encoders) == 2
    assert dict(model.encoders) == {"vision": model.vision_encoder, "audio": model.audio_encoder}
    assert "language" not in model.encoders
    with pytest.raises(KeyError):
        model.encoders["video"]
