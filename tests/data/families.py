"""Chat templates of real models, and for each a few lines of Python that write the same by hand.

`⟦` and `⟧` stand around what carries labels: the assistant's text, blanks that no prompt has before it, and the
token that ends the turn.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from cornstarch.data.conversations import TEMPLATES

FOLDER = Path(__file__).parent / "templates"
Turns = Sequence[tuple[str, str]]  # (role, text)


class Family(NamedTuple):
    """A template.

    Attributes:
        write: messages to the text, by hand.
        template: Jinja.
        special: what is one token.
        system: whether it takes a system message.
        pieces: whether its tokenizer is like SentencePiece's, or byte-level.
    """

    write: Callable[[Turns], str]
    template: str
    special: tuple[str, ...]
    system: bool = True
    pieces: bool = False


def stored(name: str) -> str:
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


def llama3(turns: Turns) -> str:
    text = "<|begin_of_text|>"
    for role, said in turns:
        text += f"<|start_header_id|>{role}<|end_header_id|>\n\n"
        text += f"⟦{said.strip()}<|eot_id|>⟧" if role == "assistant" else f"{said.strip()}<|eot_id|>"
    return text


def llama3_2(turns: Turns) -> str:
    system = turns[0][1].strip() if turns[0][0] == "system" else ""
    head = f"Cutting Knowledge Date: December 2023\nToday Date: TODAY\n\n{system}"
    return llama3([("system", head.rstrip("\n") if not system else head)]).replace(
        "TODAY<|eot_id|>", "TODAY\n\n<|eot_id|>"
    ) + llama3([turn for turn in turns if turn[0] != "system"]).removeprefix("<|begin_of_text|>")


def chatml(turns: Turns) -> str:
    text = ""
    for role, said in turns:
        text += f"<|im_start|>{role}\n"
        text += f"⟦{said}<|im_end|>⟧\n" if role == "assistant" else f"{said}<|im_end|>\n"
    return text


def qwen2_5(turns: Turns) -> str:
    if turns[0][0] != "system":
        turns = [("system", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."), *turns]
    return chatml(turns)


def qwen3(turns: Turns) -> str:
    if turns[-1][0] != "assistant":
        return chatml(turns)
    thoughts = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    return chatml(turns[:-1]) + thoughts + "⟦" + turns[-1][1].lstrip("\n") + "<|im_end|>⟧\n"


def mistral(turns: Turns) -> str:
    text, system = "<s>", ""
    for role, said in turns:
        if role == "system":
            system = f"{said}\n\n"
        elif role == "user":
            text += f" [INST] {system}{said} [/INST]"
            system = ""
        else:
            text += f"⟦ {said}</s>⟧"
    return text


def mistral_v3(turns: Turns) -> str:
    text = "<s>"
    for number, (role, said) in enumerate(turns):
        first = f"{turns[0][1]}\n\n" if turns[0][0] == "system" and number == len(turns) - 1 else ""
        if role == "user":
            text += f"[INST] {first}{said}[/INST]"
        elif role == "assistant":
            text += f"⟦ {said.strip()}</s>⟧"
    return text


def llama2(turns: Turns) -> str:
    text, system = "", ""
    for role, said in turns:
        if role == "system":
            system = f"<<SYS>>\n{said}\n<</SYS>>\n\n"
        elif role == "user":
            text += f"<s>[INST] {(system + said).strip()} [/INST]"
            system = ""
        else:
            text += f"⟦ {said.strip()} </s>⟧"
    return text


def gemma(turns: Turns) -> str:
    text, system = "<bos>", ""
    for role, said in turns:
        if role == "system":
            system = f"{said}\n\n"
        elif role == "user":
            text += f"<start_of_turn>user\n{system}{said.strip()}<end_of_turn>\n"
            system = ""
        else:
            text += f"<start_of_turn>model\n⟦{said.strip()}<end_of_turn>⟧\n"
    return text


def phi3(turns: Turns) -> str:
    text = ""
    for role, said in turns:
        text += f"<|{role}|>\n"
        text += f"⟦{said}<|end|>⟧\n" if role == "assistant" else f"{said}<|end|>\n"
    return text + "<|endoftext|>"


def vicuna(turns: Turns) -> str:
    text = ""
    for role, said in turns:
        text += {"system": f"{said} ", "user": f"USER: {said} ", "assistant": f"ASSISTANT:⟦ {said}</s>⟧"}[role]
    return text


def vicuna_v1(turns: Turns) -> str:
    system = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions."
    )
    return vicuna(turns if turns[0][0] == "system" else [("system", system), *turns])


def smollm2(turns: Turns) -> str:
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    return chatml(turns if turns[0][0] == "system" else [("system", system), *turns])


def zephyr(turns: Turns) -> str:
    text = ""
    for role, said in turns:
        text += f"<|{role}|>\n"
        text += f"⟦{said}</s>⟧\n" if role == "assistant" else f"{said}</s>\n"
    return text


def cohere(turns: Turns) -> str:
    text = "<BOS_TOKEN>"
    for role, said in turns:
        if role == "system":
            text += f"<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{said}<|END_OF_TURN_TOKEN|>"
        elif role == "user":
            text += f"<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{said.strip()}<|END_OF_TURN_TOKEN|>"
        else:
            text += f"<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>⟦{said.strip()}<|END_OF_TURN_TOKEN|>⟧"
    return text


def plain(turns: Turns) -> str:
    return "".join(f"⟦{said}</s>⟧" if role == "assistant" else f"{said}\n" for role, said in turns)


_LLAMA3 = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_CHATML = ("<|im_start|>", "<|im_end|>")
_GEMMA = ("<bos>", "<start_of_turn>", "<end_of_turn>")
_PHI = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>")
_COHERE = tuple(f"<|{n}_TOKEN|>" for n in ("START_OF_TURN", "END_OF_TURN", "SYSTEM", "USER", "CHATBOT"))

# The first special token is the tokenizer's for the beginning of a text.
FAMILIES = {
    "llama3": Family(llama3, stored("llama3"), _LLAMA3),
    "llama3.2": Family(llama3_2, stored("llama3_2"), _LLAMA3),
    "chatml": Family(chatml, stored("chatml"), _CHATML),
    "smollm2": Family(smollm2, stored("smollm2"), _CHATML),
    "qwen2.5": Family(qwen2_5, stored("qwen2_5"), _CHATML),
    "qwen3": Family(qwen3, stored("qwen3"), _CHATML),
    "mistral": Family(mistral, stored("mistral"), ("<s>", "</s>"), pieces=True),
    "mistral-v3": Family(mistral_v3, stored("mistral_v3"), ("<s>", "</s>", "[INST]", "[/INST]"), pieces=True),
    "llama2": Family(llama2, stored("llama2"), ("<s>", "</s>"), pieces=True),
    "gemma": Family(gemma, stored("gemma"), _GEMMA, system=False, pieces=True),
    "gemma3": Family(gemma, stored("gemma3"), _GEMMA, pieces=True),
    "phi3": Family(phi3, stored("phi3"), _PHI, pieces=True),
    "vicuna": Family(vicuna, TEMPLATES["vicuna"].replace("{{ first_token }}", ""), ("<s>", "</s>"), pieces=True),
    "vicuna_v1": Family(
        vicuna_v1, TEMPLATES["vicuna_v1"].replace("{{ first_token }}", ""), ("<s>", "</s>"), pieces=True
    ),
    "zephyr": Family(zephyr, stored("zephyr"), ("<s>", "</s>"), pieces=True),
    "cohere": Family(cohere, stored("cohere"), ("<BOS_TOKEN>", *_COHERE)),
    "plain": Family(plain, TEMPLATES["plain"].replace("{{ first_token }}", ""), ("<s>", "</s>")),
}
