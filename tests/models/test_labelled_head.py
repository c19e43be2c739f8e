"""Head and loss on labelled positions alone, against the language model's plain forward: every one of the zoo."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from cornstarch.models.multimodal_language_model import freezing, labelled_head
from tests.tiny import assert_near
from tests.training.toy import exact_loss
from tests.zoo import making
from tests.zoo.table import LANGUAGE_MODELS

LENGTH = 7
_ROUNDED = {torch.float32: 1e-6, torch.float64: 0.0}


def language_model(name: str) -> Any:
    """In training mode without dropout, its loss in float64 where it lets it be exchanged."""
    part = making.language_model(name).train()
    for module in part.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    part.loss_function = exact_loss
    return part


def batch(part: Any) -> dict[str, Any]:
    """Two samples, one padded; a label here and there, also at the last position and at padding's edge."""
    torch.manual_seed(0)
    width = part.get_input_embeddings().weight.shape[1]
    labels = torch.randint(3, 90, (2, LENGTH))
    labels[:, :3], labels[0, 5] = -100, -100
    mask = torch.ones(2, LENGTH, dtype=torch.long)
    mask[1, 5:], labels[1, 5:] = 0, -100
    embeds = torch.randn(2, LENGTH, width, dtype=torch.float64).requires_grad_()
    return {"inputs_embeds": embeds, "attention_mask": mask, "labels": labels, "use_cache": False}


def gradients(part: nn.Module, given: dict[str, Any], loss: Tensor) -> dict[str, Tensor]:
    part.zero_grad()
    given["inputs_embeds"].grad = None
    loss.backward()
    found = {name: p.grad.clone() for name, p in part.named_parameters() if p.grad is not None}
    return {**found, "inputs_embeds": given["inputs_embeds"].grad.clone()}


def assert_same(part: Any, given: dict[str, Any], most_logits: int, tolerance: float = 1e-10) -> None:
    plain = part(**given)
    expected = gradients(part, given, plain.loss)
    loss = labelled_head.run(part, given, most_logits).loss
    found = gradients(part, given, loss)
    # Some compute their loss themselves, in float32.
    assert_near(loss.detach().double(), plain.loss.detach().double(), max(tolerance, _ROUNDED[plain.loss.dtype]))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert_near(found[name], value, tolerance, name)


class Rows:
    """Counts the rows of every product of the head."""

    def __init__(self, part: Any) -> None:
        self.seen: list[int] = []
        freezing.unwrap(part).get_output_embeddings().register_forward_hook(
            lambda _, __, made: self.seen.append(made.shape[:-1].numel())
        )


@pytest.mark.parametrize(
    "most_logits, items", [(2**26, None), (2**26, 11), (1, None), (200, 11)], ids=["once", "items", "rows", "chunks"]
)
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_loss_and_gradients(name: str, most_logits: int, items: int | None) -> None:
    """fp64, 1e-10, in one piece and in chunks; with a mean over labels and with a number of items to divide by.

    The balance of experts is computed in float32 by transformers; its share in each chunk is rounded so.
    """
    part = language_model(name)
    given = batch(part)
    if items is not None:
        given["num_items_in_batch"] = torch.tensor(items)
    row = LANGUAGE_MODELS[name]
    in_float32 = "experts" in row.traits and most_logits < 2**26
    assert_same(part, given, most_logits, max(row.tolerance, 1e-7 if in_float32 else 0.0))


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_the_head_sees_labelled_positions_only(name: str) -> None:
    """5 of 14 positions predict something; one row more is what losses shift away."""
    part = language_model(name)
    given = batch(part)
    labelled_head.run(part, given)  # which asks first
    rows = Rows(part)
    labelled_head.run(part, given)
    assert rows.seen == [6]
    rows.seen.clear()
    labelled_head.run(part, given, 200).loss.backward()
    assert max(rows.seen) == 3


def test_what_holds_the_head_may_be_wrapped() -> None:
    """Adapters on the body and on the head itself, and tied weights: loss and gradients of what trains."""
    for name in ("llama", "gpt2-tied"):
        adapters = LoraConfig(r=2, target_modules="all-linear", modules_to_save=[], init_lora_weights=False)
        part = get_peft_model(language_model(name), adapters).train()
        head = LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False)
        for wrapped in (part, get_peft_model(language_model(name), head).train()):
            given = batch(wrapped)
            assert_same(wrapped, given, 2**26)
            assert_same(wrapped, given, 1)
            rows = Rows(wrapped)
            labelled_head.run(wrapped, given)
            assert max(rows.seen) == 6


def test_hooks_and_compiled_modules_below_the_head_run_once() -> None:
    """What stands around the body is not called again for further chunks, and is there afterwards."""
    part = language_model("llama")
    calls = []
    part.model.register_forward_hook(lambda *_: calls.append("hook"))
    given = batch(part)
    labelled_head.run(part, given)
    calls.clear()
    labelled_head.run(part, given, 1).loss.backward()
    assert calls == ["hook"]
    part.model.compile(backend="eager")
    compiled = part.model._compiled_call_impl
    assert_same(part, given, 1)
    assert part.model._compiled_call_impl is compiled


def test_an_error_leaves_nothing_behind() -> None:
    """No hook on the head or the body, and nothing called instead of it."""
    part = language_model("llama")
    given = batch(part)
    labelled_head.run(part, given, 1)
    part.lm_head.weight.requires_grad_(True)

    def fail(*_: Any) -> None:
        raise RuntimeError("on the way")

    hook = part.lm_head.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="on the way"):
        labelled_head.run(part, given, 1)
    hook.remove()
    assert not part.lm_head._forward_pre_hooks
    assert not part.model._forward_hooks
    assert "_compiled_call_impl" not in vars(part.model)
    assert_same(part, given, 1)


@pytest.mark.parametrize("own", ["mask", "nothing"])
def test_a_loss_of_its_own_is_left_alone(own: str) -> None:
    """A language model whose loss depends on where a label stands runs as it is, on all positions."""
    cls = type(language_model("llama"))

    class Own(cls):  # type: ignore[misc, valid-type]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            labels, mask = kwargs.pop("labels", None), kwargs.get("attention_mask")
            output = super().forward(*args, **kwargs)
            if labels is not None:
                where = torch.linspace(1, 2, output.logits.shape[1]) if own == "mask" else 1.0
                rows = output.logits[:, :-1].log_softmax(-1)
                kept = labels[:, 1:] != -100
                scores = rows.gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0] * kept
                weights = (where[1:] if own == "mask" else 1.0) * (mask[:, 1:] if own == "nothing" else 1.0)
                output["loss"] = -(scores * weights).sum() / kept.sum()
            return output

    part = language_model("llama")
    part.__class__ = Own
    given = batch(part)
    assert_same(part, given, 2**26)
    rows = Rows(part)
    labelled_head.run(part, given)
    assert rows.seen == [14]


def test_without_labels_or_with_logits_nothing_changes() -> None:
    """No label at all is a loss of NaN, as in Hugging Face; the model's own switches decide what logits there are."""
    from tests import tiny

    part = language_model("llama")
    given = batch(part)
    given["labels"] = torch.full_like(given["labels"], -100)
    assert labelled_head.run(part, given).loss.isnan()
    model = tiny.model().train()
    inputs = tiny.vision_batch()
    rows = Rows(model.language_model)
    with_logits = model(**inputs, output_logits=True)
    assert with_logits.logits.shape[:2] == inputs["input_ids"].shape
    rows.seen.clear()
    without = model(**inputs)
    assert without.logits is None
    assert max(rows.seen[-1:]) <= int((inputs["labels"] != -100).sum()) + 1
    torch.testing.assert_close(without.loss, with_logits.loss)
    assert model.eval()(**inputs).logits.shape[:2] == inputs["input_ids"].shape


@pytest.mark.parametrize("scale", [1.0, 1e-4])
@pytest.mark.parametrize("own", [False, True])
def test_what_is_asked_does_not_depend_on_how_far_apart_logits_are(own: bool, scale: float) -> None:
    """With logits that are nearly equal every loss is nearly the same; only a loss by labels alone is taken for one."""
    part = language_model("llama")
    part.lm_head.weight.data.mul_(scale)
    if own:
        part.loss_function = lambda logits, labels, **_: exact_loss(
            logits * torch.linspace(1, 2, logits.shape[1])[:, None], labels, logits.shape[-1]
        )
    given = batch(part)
    assert_same(part, given, 2**26)
    rows = Rows(part)
    labelled_head.run(part, given)
    assert rows.seen == [14 if own else 6]


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision(autocast: bool) -> None:
    """In bfloat16, of the weights or of the products alone, the head sees labelled positions only as well."""
    part = making.language_model("llama", torch.float32 if autocast else torch.bfloat16).train()
    given = batch(part)
    given["inputs_embeds"] = given["inputs_embeds"].detach().to(torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = part(**given).loss
        labelled_head.run(part, given)
        rows = Rows(part)
        found = labelled_head.run(part, given).loss
    assert rows.seen == [6]
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=0)
