"""A text backbone with a head, against the model of transformers that it is the text side of."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from cornstarch import ModalEncoderModule, MultimodalModel
from cornstarch.errors import ArgumentError, CheckpointError
from cornstarch.models.multimodal_language_model import anatomy, freezing, library, parts
from cornstarch.models.multimodal_language_model.backbone import BackboneWithHead, with_head
from cornstarch.models.multimodal_language_model.pieces import pieces
from tests import tiny
from tests.tiny import assert_near

_TEXT = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "router_aux_loss_coef": 0.5}
_SMALL = {"depth": 1, "num_heads": 2, "patch_size": 4, "intermediate_size": 16}
_QWEN3_TOWER = {**_SMALL, "hidden_size": 8, "out_hidden_size": 32, "deepstack_visual_indexes": [0]}
_QWEN3_TOWER |= {"num_position_embeddings": 16}
# The whole's class, arguments of its text config, arguments of its tower's.
WHOLES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "qwen2-vl": ("Qwen2VLForConditionalGeneration", _MROPE, {**_SMALL, "embed_dim": 8, "hidden_size": 32}),
    "qwen2.5-vl": (
        "Qwen2_5_VLForConditionalGeneration",
        _MROPE,
        {**_SMALL, "hidden_size": 8, "out_hidden_size": 32, "fullatt_block_indexes": [0]},
    ),
    "qwen3-vl": ("Qwen3VLForConditionalGeneration", {**_MROPE, "head_dim": 8}, _QWEN3_TOWER),
    "qwen3-vl-moe": ("Qwen3VLMoeForConditionalGeneration", {**_MROPE, **_MOE, "head_dim": 8}, _QWEN3_TOWER),
}
# Models of transformers that have a causal language model of their own, for what their configs say of the head.
OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "capped": ("Gemma2ForCausalLM", {"head_dim": 8, "final_logit_softcapping": 0.5, "sliding_window": 4}),
    "multiplied": ("CohereForCausalLM", {"logit_scale": 0.3}),
    "divided": ("GraniteForCausalLM", {"logits_scaling": 3.0}),
    "experts": ("Qwen3MoeForCausalLM", {**_MOE, "head_dim": 8, "output_router_logits": True}),
    "local-experts": (
        "MixtralForCausalLM",
        {"num_local_experts": 4, "router_aux_loss_coef": 0.5, "output_router_logits": True},
    ),
}


def whole(name: str, tied: bool = False) -> Any:
    """A tiny multimodal model of transformers, fp64, in evaluation mode."""
    class_name, text, tower = WHOLES[name]
    cls = getattr(transformers, class_name)
    arguments = {"text_config": {**_TEXT, **text, "tie_word_embeddings": tied}, "tie_word_embeddings": tied}
    torch.manual_seed(0)
    made = tiny.loud(cls(cls.config_class(**arguments, vision_config=tower)), torch.float64).eval()
    if "num_experts" in text:
        made.set_experts_implementation("eager")  # grouped products have no fp64
    return made


def batch(labels: bool = True) -> dict[str, Tensor]:
    """Two rows of text, left-padded."""
    made = tiny.padded([tiny.text(9), tiny.text(6, 5)], "left")
    if labels:
        made["labels"] = made["input_ids"].masked_fill(made["attention_mask"] == 0, -100)
    return made


def positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("name", WHOLES)
def test_logits_and_loss_are_the_wholes(name: str, tied: bool) -> None:
    """Of text alone, with and without `num_items_in_batch`, to 1e-10 in fp64; every gradient, too."""
    reference = whole(name, tied)
    made = parts.language_model_of(copy.deepcopy(reference))
    assert isinstance(made, BackboneWithHead)
    given = {**batch(), "position_ids": positions(batch()["attention_mask"])}
    for more in ({}, {"num_items_in_batch": torch.tensor(7)}):
        expected, found = reference(**given, **more), made(**given, **more)
        assert_near(found.logits, expected.logits)
        assert_near(found.loss, expected.loss)
    expected.loss.backward()
    found.loss.backward()
    gradients = {id(body): body for body in reference.modules() if type(body) is made.backbone_class}
    (body,) = gradients.values()
    for (place, mine), theirs in zip(made.model.named_parameters(), body.parameters(), strict=True):
        assert_near(mine.grad, theirs.grad, what=place)
    assert (made.lm_head.weight is made.get_input_embeddings().weight) is tied
    assert made.get_output_embeddings() is made.lm_head


@pytest.mark.parametrize("name", OWN)
def test_what_the_config_says_of_the_head_is_done(name: str) -> None:
    """Scales, caps and the loss that balances experts equal those of transformers' own causal language model, of two
    rows of which one is padded; output's class too."""
    class_name, arguments = OWN[name]
    cls = getattr(transformers, class_name)
    torch.manual_seed(0)
    reference = tiny.loud(cls(cls.config_class(**_TEXT, **arguments)), torch.float64).eval()
    made = BackboneWithHead.of(copy.deepcopy(reference.model), copy.deepcopy(reference.lm_head))
    for model in (reference, made):
        if name.endswith("experts"):
            model.set_experts_implementation("eager")
    given = batch() if name.endswith("experts") else {name: row[:1] for name, row in batch().items()}
    expected, found = reference(**given), made(**given)
    assert type(found) is type(expected)
    assert_near(found.logits, expected.logits)
    assert_near(found.loss, expected.loss)
    if name.endswith("experts"):
        assert_near(found.aux_loss, expected.aux_loss)
        assert len(found.router_logits) == 2


def test_padding_has_no_part_in_the_loss_that_balances_experts() -> None:
    """The loss of one row, router loss included, equals that of the row padded on either side."""
    made = parts.language_model_of(whole("qwen3-vl-moe"))
    made.config.output_router_logits = True
    row = torch.tensor([tiny.text(6)])
    own = torch.cat([torch.tensor([[-100]]), row[:, 1:]], dim=1)  # nothing predicts the first token
    alone = made(input_ids=row, attention_mask=torch.ones_like(row), labels=own)
    assert alone.aux_loss > 0
    assert_near(alone.loss, made(input_ids=row, labels=row, output_router_logits=False).loss + 0.5 * alone.aux_loss)
    for pad in ((4, 0), (0, 4)):
        ids, mask = (torch.nn.functional.pad(value, pad) for value in (row, torch.ones_like(row)))
        labels = torch.nn.functional.pad(own, pad, value=-100)
        found = made(input_ids=ids, attention_mask=mask, labels=labels, position_ids=positions(mask))
        assert_near(found.aux_loss, alone.aux_loss, 1e-6)  # counted in fp32 by transformers
        assert_near(found.loss, alone.loss, 1e-6)


@pytest.mark.parametrize(
    "keep", [2, torch.tensor([0, 5]), torch.tensor([[1, 2], [4, 8]]), None], ids=["int", "same", "own", "mask"]
)
def test_logits_to_keep(keep: Any) -> None:
    """Those of the last positions, of the same positions of each sample, of its own, and where a mask is true."""
    made, given = parts.language_model_of(whole("qwen2-vl")), batch(labels=False)
    full = made(**given).logits
    if keep is None:
        keep = given["attention_mask"].bool()
        expected = full[keep]
    elif isinstance(keep, int):
        expected = full[:, -keep:]
    else:
        expected = (
            full[:, keep] if keep.dim() == 1 else torch.stack([row[at] for row, at in zip(full, keep, strict=True)])
        )
    assert_near(made(**given, logits_to_keep=keep).logits, expected)


def _greedy(made: Any, ids: Tensor, new: int, **more: Any) -> list[int]:
    """Token by token without a cache, each time on the whole sequence; positions of several axes go on from the
    highest."""
    where = more.pop("position_ids", None)
    for _ in range(new):
        given = {} if where is None else {"position_ids": where}
        logits = made(input_ids=ids, use_cache=False, **given, **more).logits[:, -1]
        logits[:, [2]] = -torch.inf
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
        if where is not None:
            where = torch.cat([where, (where.max() + 1).expand(*where.shape[:-1], 1)], dim=-1)
    return ids[0].tolist()


_GENERATE = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}


@pytest.mark.parametrize("name", WHOLES)
def test_generates(name: str) -> None:
    """A left-padded batch, cached, gives each row's greedy tokens; beams of one row equal the whole's."""
    reference = whole(name)
    made = parts.language_model_of(copy.deepcopy(reference))
    given = batch(labels=False)
    found = made.generate(**given, **_GENERATE)
    for row, ids, mask in zip(found, given["input_ids"], given["attention_mask"], strict=True):
        assert row[mask.numel() - mask.sum() :].tolist() == _greedy(made, ids[mask.bool()][None], 5)
    beams = {"num_beams": 3, **_GENERATE}
    assert made.generate(**given, **beams).tolist() == reference.generate(**given, **beams).tolist()


@pytest.mark.parametrize("beams", [1, 3])
def test_positions_of_three_axes_go_on_behind_the_highest(beams: int) -> None:
    """As those of Qwen2-VL do behind an image: a square of 2 x 2 takes two positions on, not four."""
    made = parts.language_model_of(whole("qwen2-vl"))
    rows = torch.tensor([tiny.text(8), tiny.text(8, 7)])
    square = torch.tensor([[0, 1, 2, 2, 2, 2, 4, 5], [0, 1, 2, 2, 3, 3, 4, 5], [0, 1, 2, 3, 2, 3, 4, 5]])
    ends_in_image = torch.tensor([[0, 1, 2, 3, 4, 4, 4, 4], [0, 1, 2, 3, 4, 4, 5, 5], [0, 1, 2, 3, 4, 5, 4, 5]])
    where = torch.stack([square, ends_in_image], dim=1)
    embeds = made.get_input_embeddings()(rows)
    given = {"input_ids": rows, "inputs_embeds": embeds, "position_ids": where}
    found = made.generate(**given, **_GENERATE, num_beams=beams)
    for index in range(2):
        alone = {
            name: value[:, index : index + 1] if name == "position_ids" else value[index : index + 1]
            for name, value in given.items()
        }
        assert made.generate(**alone, **_GENERATE, num_beams=beams)[0].tolist() == found[index].tolist()
        if beams == 1:
            expected = _greedy(made, rows[index : index + 1], 5, position_ids=where[:, index : index + 1])
            assert found[index].tolist() == expected
    plain = made.generate(input_ids=rows, **_GENERATE)
    assert plain.tolist() != found.tolist(), "positions change nothing"


@pytest.mark.parametrize("beams", [1, 2])
def test_features_behind_layers_go_with_the_prompt(beams: int) -> None:
    """Qwen3-VL's, in a batch of two with different numbers of them, under generate: each row as it is alone, and not
    as it is without them."""
    made = parts.language_model_of(whole("qwen3-vl"))
    rows = torch.tensor([tiny.text(8), tiny.text(8, 7)])
    where = torch.zeros(2, 8, dtype=torch.bool)
    where[0, 2:4] = where[1, 3:6] = True
    added = [torch.randn(5, 32, dtype=torch.float64) * 3]
    common = {**_GENERATE, "num_beams": beams}
    found = made.generate(input_ids=rows, visual_pos_masks=where, deepstack_visual_embeds=added, **common)
    for index, own in enumerate((slice(0, 2), slice(2, 5))):
        alone = made.generate(
            input_ids=rows[index : index + 1],
            visual_pos_masks=where[index : index + 1],
            deepstack_visual_embeds=[added[0][own]],
            **common,
        )
        assert alone[0].tolist() == found[index].tolist()
    assert made.generate(input_ids=rows, **common).tolist() != found.tolist()


def composed(name: str, dtype: torch.dtype = torch.float64) -> MultimodalModel:
    return tiny.model(tiny.encoder(dtype=dtype), parts.language_model_of(whole(name)).to(dtype), dtype)


@pytest.mark.parametrize("name", WHOLES)
def test_composes_and_is_checkpointed(name: str) -> None:
    """In a model with a vision tower: loss and gradients with and without checkpointing are the same, and the
    backbone's layers are found."""
    model, given = composed(name).train(), tiny.vision_batch(dtype=torch.float64)
    assert len(anatomy.layers(model.language_model)) == 2
    model(**given).loss.backward()
    expected = {place: p.grad for place, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(**given).loss.backward()
    found = {place: p.grad for place, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for place, gradient in expected.items():
        assert_near(found[place], gradient, what=place)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("name", WHOLES)
def test_saves_and_loads(name: str, tied: bool, tmp_path: Path) -> None:
    """In a model, and by itself: the same logits, ties and class."""
    language_model = parts.language_model_of(whole(name, tied))
    model = tiny.model(tiny.encoder(dtype=torch.float64), language_model, torch.float64).eval()
    given = tiny.vision_batch(dtype=torch.float64)
    model.save_pretrained(tmp_path / "model")
    again = MultimodalModel.from_pretrained(tmp_path / "model")
    if name.endswith("moe"):
        again.language_model.set_experts_implementation("eager")
    assert type(again.language_model) is type(language_model)
    assert (again.language_model.lm_head.weight is again.get_input_embeddings().weight) is tied
    assert again.all_tied_weights_keys == model.all_tied_weights_keys
    assert_near(again(**given).logits, model(**given).logits, 1e-12)

    language_model.save_pretrained(tmp_path / "alone")
    alone = parts.load_language_model(tmp_path / "alone", dtype=torch.float64)
    assert type(alone) is type(language_model)
    if name.endswith("moe"):
        alone.set_experts_implementation("eager")
    assert_near(alone(**batch()).logits, language_model(**batch()).logits, 1e-12)


@pytest.mark.parametrize("name", WHOLES)
def test_is_taken_out_of_a_multimodal_checkpoint(name: str, tmp_path: Path) -> None:
    """`load_language_model` of a folder that holds the whole gives backbone and head, with the whole's logits."""
    reference = whole(name)
    reference.save_pretrained(tmp_path)
    made = parts.load_language_model(tmp_path, dtype=torch.float64)
    assert isinstance(made, BackboneWithHead)
    if name.endswith("moe"):
        made.set_experts_implementation("eager")
    assert_near(made(**batch()).logits, reference(**batch()).logits, 1e-10)


def test_a_language_model_with_a_class_is_taken_out_in_that_class(tmp_path: Path) -> None:
    """Of a LLaVA checkpoint: LlamaForCausalLM with the whole's text logits."""
    config = transformers.LlavaConfig(
        vision_config=tiny.encoder_config(), text_config=tiny.language_model_config(), image_token_index=5
    )
    reference = tiny.loud(transformers.LlavaForConditionalGeneration(config)).eval()
    reference.save_pretrained(tmp_path)
    made = parts.load_language_model(tmp_path)
    assert type(made) is transformers.LlamaForCausalLM
    assert_near(made(**batch()).logits, reference(**batch()).logits, 1e-6)


def test_is_made_from_scratch() -> None:
    """`make_language_model` of a text config's model type, with the tokenizer's vocabulary."""

    class _Tokenizer:
        pad_token_id, bos_token_id, eos_token_id = 0, 1, 2

        def __len__(self) -> int:
            return 96

    values = {name: value for name, value in {**_TEXT, **_MROPE}.items() if not name.endswith("token_id")}
    made = parts.make_language_model({"model_type": "qwen2_vl_text", **values}, _Tokenizer())
    assert isinstance(made, BackboneWithHead)
    assert made.lm_head.out_features == 96
    assert torch.isfinite(made(**batch()).loss)


def test_adapters(tmp_path: Path) -> None:
    """LoRA on the backbone trains, alone, and is saved and loaded."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    wrapped = peft.get_peft_model(parts.language_model_of(whole("qwen3-vl")), config)
    model = tiny.model(tiny.encoder(dtype=torch.float64), wrapped.double(), torch.float64)
    given = tiny.vision_batch(dtype=torch.float64)
    model.train({"vision": (False, True)})
    model(**given).loss.backward()
    moved = {place for place, p in model.language_model.named_parameters() if p.grad is not None}
    assert moved
    assert all("lora" in place for place in moved)
    model.eval().save_pretrained(tmp_path)
    assert_near(MultimodalModel.from_pretrained(tmp_path)(**given).logits, model(**given).logits, 1e-12)


def test_is_copied_and_pickled() -> None:
    """A deep copy and a pickled one are of the same class, with weights of their own and the same logits."""
    made = parts.language_model_of(whole("qwen2.5-vl"))
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert type(other) is type(made)
        assert other.lm_head.weight is not made.lm_head.weight
        assert_near(other(**batch()).loss, made(**batch()).loss, 1e-12)


def test_says_its_arguments_and_pieces() -> None:
    """The backbone's own arguments reach it; pieces stand in the order in which they run."""
    made = parts.language_model_of(whole("qwen3-vl"))
    names = anatomy.language_model_arguments(made).names
    assert {"visual_pos_masks", "deepstack_visual_embeds", "position_ids", "labels"} <= set(names)
    order = ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "lm_head"]
    assert list(pieces(made)) == order
    assert freezing.unwrap(made) is made


def test_a_file_can_name_nothing_else() -> None:
    """A class around one that is not of transformers, or is no backbone, is refused."""
    path = library.path_of(with_head(type(whole("qwen2-vl").model.language_model)))
    assert library.find_class(path, "language_model").backbone_class.__name__ == "Qwen2VLTextModel"
    inner = "transformers.models.qwen2_vl.modeling_qwen2_vl.Qwen2VLTextModel"
    for other, message in (
        ("os.path.join", "no class of transformers"),
        ("transformers.models.clip.modeling_clip.CLIPVisionModel", "no backbone"),
        ("transformers.models.llama.modeling_llama.LlamaForCausalLM", "no backbone"),
        ("transformers.models.llama.modeling_llama.repeat_kv", "no backbone"),
    ):
        with pytest.raises(CheckpointError, match=message):
            library.find_class(path.replace(inner, other), "language_model")


def test_refuses_what_is_no_backbone_or_head() -> None:
    with pytest.raises(ArgumentError, match="CLIPVisionModel is no backbone"):
        BackboneWithHead.of(tiny.encoder(), torch.nn.Linear(4, 4, bias=False))
    with pytest.raises(ArgumentError, match="without a bias"):
        BackboneWithHead.of(tiny.language_model().model, torch.nn.Linear(4, 4))


def test_the_backbone_alone_is_refused_with_what_to_do() -> None:
    with pytest.raises(ArgumentError, match="BackboneWithHead"):
        MultimodalModel({"vision": ModalEncoderModule(tiny.encoder())}, whole("qwen2-vl").model.language_model)
