"""DistributedDataParallel on two gloo processes against one process on the joined batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import CLIPVisionConfig, CLIPVisionModel

from cornstarch.models.multimodal_language_model import ModalEncoderModule, MultimodalModel, labelled_head

# --- parts ------------------------------------------------------------------------------------------------------------

IMAGE = 200  # beyond every embedding table
FEATURES = 5
CASES = ["plain", "frozen", "peft", "checkpointing", "text-on-one-rank", "chunks"]


def composed(case: str) -> MultimodalModel:
    torch.manual_seed(0)
    lm: Any = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=0,
            tie_word_embeddings=True,
        )
    )
    if case == "peft":
        lm = get_peft_model(lm, LoraConfig(r=2, init_lora_weights=False))
    vision = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
        )
    )
    model = MultimodalModel({"vision": ModalEncoderModule(vision)}, lm).double().train()
    model.set_modality_token_ids({"vision": IMAGE})
    if case == "frozen":
        model.train({"vision": (False, True)}, llm_mode=False)
    elif case == "peft":
        model.train({"vision": (False, True)})
    elif case == "checkpointing":
        model.gradient_checkpointing_enable()
    return model


def batch(case: str, first: int, last: int) -> dict[str, Tensor]:
    """Samples `first` to `last` of four; with different numbers of labels on the two ranks."""
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(3, 64, (4, 13), generator=generator)
    pixels = torch.randn(4, 3, 8, 8, generator=generator, dtype=torch.float64)
    with_image = torch.tensor([True, True, case != "text-on-one-rank", case != "text-on-one-rank"])
    ids = text.clone()
    ids[:, 2 : 2 + FEATURES] = torch.where(with_image[:, None], IMAGE, ids[:, 2 : 2 + FEATURES])
    labels = text.clone()
    labels[:, : 2 + FEATURES] = -100
    labels[0, :10] = -100
    chosen = slice(first, last)
    made = {"input_ids": ids[chosen], "attention_mask": torch.ones_like(ids[chosen]), "labels": labels[chosen]}
    images = pixels[chosen][with_image[chosen]]
    return {**made, "pixel_values": images} if len(images) else made


def scored(labels: Tensor) -> Tensor:
    return (labels[:, 1:] != -100).sum()


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    results = {}
    for case in CASES:
        model = composed(case)
        labelled_head.run.__defaults__ = (64 * 2 if case == "chunks" else labelled_head.MOST_LOGITS,)
        # Parameters without a gradient on some rank are the one thing DDP must be told about.
        wrapped = DistributedDataParallel(model, find_unused_parameters=True)
        inputs = batch(case, 2 * rank, 2 * rank + 2)
        count = scored(inputs["labels"])
        dist.all_reduce(count)
        # DDP averages gradients over ranks, so each rank's share is scaled up again.
        losses = []
        for _ in range(2):  # the second pass finds DDP's buckets rebuilt
            model.zero_grad()
            loss = 2 * wrapped(**inputs, num_items_in_batch=count).loss
            loss.backward()
            losses.append(loss.detach())
        total = losses[-1] / 2
        dist.all_reduce(total)
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results[case] = {"loss": total, "gradients": gradients}
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_equal_one_on_the_joined_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradients of both ranks equal one process on all samples, 1e-6 of the largest (the loss is fp32)."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    mp.start_processes(_rank, args=(str(tmp_path),), nprocs=2, start_method="spawn")
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for case in CASES:
        model = composed(case)
        loss = model(**batch(case, 0, 4)).loss
        loss.backward()
        expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert "vision_encoder.projector.projection.weight" in expected
        largest = max(gradient.abs().max() for gradient in expected.values())
        for result in results:
            torch.testing.assert_close(result[case]["loss"], loss.detach(), rtol=1e-6, atol=0, check_dtype=False)
            found = result[case]["gradients"]
            assert found.keys() == expected.keys(), case
            for name, gradient in expected.items():
                assert (found[name] - gradient).abs().max() <= 1e-6 * largest, f"{case}: {name}"
