"""Every format in every container gives the same batches for the same content; broken ones are named."""

import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from datasets.table import embed_table_storage
from PIL import Image

from cornstarch import ArgumentError, Batches, Collator, MediaError, RowSource, Sample, StreamSource, set_template
from tests import parts
from tests.data import containers
from tests.data.containers import CONTAINERS, FORMATS, conversation, make_media

CHANCE = random.Random(0)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Copies that datasets makes go into a folder of the test's."""
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    yield
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    make_media(folder)
    return folder


@pytest.fixture(scope="module")
def collator() -> Collator:
    _, processor = parts.three_modalities()
    # One modality for sounds, so that `audio` means it.
    del processor.encoder_processors["speech"]
    set_template(processor.llm_tokenizer)
    return Collator(processor)


def expected(media: Path, collator: Collator) -> Any:
    """The batch of the ten conversations, written by hand with images that are open."""
    samples = []
    for number in range(10):
        images = [{"type": "image", "image": Image.open(media / name)} for name in containers.images_of(number)]
        asked = [*images, {"type": "text", "text": f"What is {number}? é\u2028"}]
        turns = [("system", "Be kind."), ("user", asked), ("assistant", f"It is {number * 7}.")]
        turns += [("user", "Sure?"), ("assistant", "Yes.")]
        messages = tuple({"role": role, "content": content} for role, content in turns)
        samples.append(Sample(messages=messages, name=""))
    return collator(samples)


def all_of(source: RowSource) -> list[Sample]:
    return [source.sample(index, CHANCE) for index in range(len(source))]


def assert_same(found: Any, wanted: Any) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("format", FORMATS)
def test_the_same_content_is_the_same_batch(
    format: str, container: str, media: Path, collator: Collator, tmp_path: Path
) -> None:
    """Images by name; bit for bit the batch that is written by hand."""
    rows = [conversation(format, number, containers.named) for number in range(10)]
    source = RowSource(CONTAINERS[container](rows, tmp_path), format, media=media)
    assert_same(collator(all_of(source)), expected(media, collator))
    assert "entry 9" in source.sample(9, CHANCE).name or "entry 5" in source.sample(9, CHANCE).name


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("way", ["bytes", "base64", "uri"])
def test_images_in_the_rows(format: str, way: str, media: Path, collator: Collator, tmp_path: Path) -> None:
    """As bytes in Parquet and in Hugging Face's own type of column, as base64 in JSON."""
    write = {"bytes": containers.as_bytes, "base64": containers.in_base64, "uri": containers.as_uri}[way](media)
    rows = [conversation(format, number, write) for number in range(10)]
    path = (containers.write_parquet if way == "bytes" else containers.write_jsonl)(rows, tmp_path)
    assert_same(collator(all_of(RowSource(path, format))), expected(media, collator))


def test_columns_of_images(media: Path, collator: Collator, tmp_path: Path) -> None:
    """`datasets.Image` holds bytes; they are not decoded before the collator does it."""
    rows = [conversation("sharegpt", number, lambda name: str(media / name)) for number in range(10)]
    table = datasets.Dataset.from_list(rows).cast_column("images", datasets.List(datasets.Image()))
    table.save_to_disk(tmp_path / "typed")
    samples = all_of(RowSource(tmp_path / "typed", "sharegpt", media=media))
    assert_same(collator(samples), expected(media, collator))
    table.with_format("arrow").map(embed_table_storage, batched=True).to_parquet(tmp_path / "typed.parquet")
    samples = all_of(RowSource(tmp_path / "typed.parquet", "sharegpt"))
    assert {type(medium) for sample in samples for _, medium in sample.media} == {bytes}
    assert_same(collator(samples), expected(media, collator))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("by_name", [False, True])
def test_tar_shards(format: str, by_name: bool, media: Path, collator: Collator, tmp_path: Path) -> None:
    """Two shards by a pattern; the JSON names the images that are with it, or leaves them to their order."""
    samples: list[dict[str, bytes]] = []
    for number in range(10):
        names = containers.images_of(number)
        places = {name: f"{place}.png" for place, name in enumerate(names)}
        row = conversation(format, number, lambda name, p=places, n=number: f"{n % 4:04d}.{p[name]}")
        if not by_name:
            row.pop("image", None), row.pop("images", None)
            for message in row.get("messages", []):
                [part.pop("image", None) for part in message["content"]]
        samples.append(
            {"json": json.dumps(row).encode(), **{places[name]: (media / name).read_bytes() for name in names}}
        )
    for shard in range(3):
        containers.write_tar(tmp_path / f"shard-{shard}.tar", samples[4 * shard : 4 * shard + 4])
    source = RowSource(tmp_path / "shard-*.tar", format)
    assert_same(collator(all_of(source)), expected(media, collator))
    assert source.sample(5, CHANCE).name.endswith("shard-1.tar, sample part/0001")


# --- cauldron ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("container", ["json", "parquet", "disk", "typed", "streamed"])
def test_cauldron_is_the_same_as_messages(container: str, media: Path, collator: Collator, tmp_path: Path) -> None:
    """None, one or two images before the first question, several turns, columns besides: bit for bit one batch."""
    rows, written = [], []
    for number in range(10):
        images = [(media / name).read_bytes() for name in containers.images_of(number)]
        turns = [(f"What is {number}?", "A thing."), ("Sure?\n", "Yes.")][: 1 + number % 2]
        texts = [{"user": asked, "assistant": said, "source": "a"} for asked, said in turns]
        # No images is an empty list in The Cauldron, and nothing in FineVision.
        rows.append({"images": [{"bytes": image} for image in images] or [None, []][number % 2], "texts": texts})
        if container == "json":
            rows[-1]["images"] = containers.images_of(number)
        parts = [{"type": "image", "image": image} for image in images]
        messages = []
        for place, (asked, said) in enumerate(turns):
            content = [*(parts if place == 0 else []), {"type": "text", "text": asked}]
            messages += [{"role": "user", "content": content}, _answer(said)]
        written.append(Sample(messages=tuple(messages), name=""))
    if container in ("typed", "streamed"):
        list_of_texts = datasets.List({name: datasets.Value("string") for name in ("user", "assistant", "source")})
        features = datasets.Features(images=datasets.List(datasets.Image()), texts=list_of_texts)
        typed = datasets.Dataset.from_list(rows, features=features)
        typed.with_format("arrow").map(embed_table_storage, batched=True).to_parquet(tmp_path / "typed.parquet")
        path = tmp_path / "typed.parquet"
    else:
        path = CONTAINERS[container](rows, tmp_path)
    if container == "streamed":
        stream = StreamSource(path, "cauldron")
        found = [stream.sample(place) for place in stream.first(10)]
    else:
        found = all_of(RowSource(path, "cauldron", media=media))
    assert_same(collator(found), collator(written))


def test_media_without_the_text_beside_them(media: Path, collator: Collator, tmp_path: Path) -> None:
    """What is said by others than who asks stays, and so do questions without media."""
    said = [("system", "Be kind."), ("human", "<image>\nWhat is it?"), ("gpt", "A."), ("human", "Sure?"), ("gpt", "B.")]
    row = {"image": "0.png", "conversations": [{"from": who, "value": value} for who, value in said]}
    content = [{"type": "image", "image": media / "0.png"}]
    turns = [("system", "Be kind."), ("user", content), ("assistant", "A."), ("user", "Sure?"), ("assistant", "B.")]
    expected = Sample(messages=tuple({"role": role, "content": text} for role, text in turns), name="")
    path = containers.write_jsonl([row], tmp_path)
    source = RowSource(path, "llava", media=media, text_beside_media=False)
    assert_same(collator(all_of(source)), collator([expected]))
    stream = StreamSource(path, "llava", media=media, text_beside_media=False)
    assert_same(collator([stream.sample(place) for place in stream.first(1)]), collator([expected]))


# --- pairs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format, kind", [("caption", "image"), ("transcript", "audio")])
def test_pairs(format: str, kind: str, media: Path, collator: Collator, tmp_path: Path) -> None:
    """As JSON with columns of other names, Parquet with bytes, a shard, and OpenAI's messages: one batch."""
    ending = {"image": "png", "audio": "wav"}[kind]
    files = [media / f"{number}.{ending}" for number in range(10)]
    said = [f"Number {number}." for number in range(10)]
    by_name = [{"picture": file.name, "said": text} for file, text in zip(files, said, strict=True)]
    in_rows = [{kind: {"bytes": file.read_bytes()}, "text": text} for file, text in zip(files, said, strict=True)]
    shards = [{ending: file.read_bytes(), "txt": text.encode()} for file, text in zip(files, said, strict=True)]
    uri = [{"url": containers.as_uri(media)(file.name)} for file in files]
    part = [
        {"type": "image_url", "image_url": url}
        if kind == "image"
        else {"type": "input_audio", "input_audio": {"data": containers.in_base64(media)(file.name), "format": "wav"}}
        for url, file in zip(uri, files, strict=True)
    ]
    messages = [
        {"messages": [{"role": "user", "content": [p, {"type": "text", "text": "Say."}]}, _answer(text)]}
        for p, text in zip(part, said, strict=True)
    ]
    columns = {kind: "picture", "text": "said"}
    for folder in ("a", "b", "c", "d"):
        (tmp_path / folder).mkdir()
    sources = [
        RowSource(containers.write_jsonl(by_name, tmp_path / "a"), format, media=media, columns=columns, prompt="Say."),
        RowSource(containers.write_parquet(in_rows, tmp_path / "b"), format, prompt="Say."),
        RowSource(containers.write_tar(tmp_path / "c" / "s.tar", shards), format, prompt="Say."),
        RowSource(containers.write_json(messages, tmp_path / "d"), "messages"),
    ]
    batches = [collator(all_of(source)) for source in sources]
    assert len(batches[0]["input_ids"]) == 10
    for batch in batches[1:]:
        assert_same(batch, batches[0])


def _answer(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


# --- order ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("container", ["json", "parquet", "tar"])
def test_workers_give_the_same_order(container: str, media: Path, collator: Collator, tmp_path: Path) -> None:
    """Two and none: names and tensors, over two epochs; and from a place in the middle."""
    if container == "tar":
        shards = [{"png": (media / f"{n}.png").read_bytes(), "txt": b"A."} for n in range(10)]
        source = RowSource(containers.write_tar(tmp_path / "s.tar", shards), "caption")
    else:
        rows = [conversation("llava", number, containers.named) for number in range(10)]
        source = RowSource(CONTAINERS[container](rows, tmp_path), "llava", media=media)
    here, ahead = (Batches(source, collator, 4, workers=workers) for workers in (0, 2))
    states = []
    for _ in range(6):
        states.append(here.state_dict())
        one, other = next(here), next(ahead)
        assert one.names == other.names
        assert_same(one.micro_batches[0], other.micro_batches[0])
    ahead.load_state_dict(states[-1])
    assert next(ahead).names == one.names
    ahead.close()


# --- what cannot be read ----------------------------------------------------------------------------------------------

USER = {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    "format, row, message",
    [
        ("messages", {"a": 1}, "list `messages`, found a"),
        ("messages", {"messages": ["a"]}, "message 0 must be an object"),
        ("messages", {"messages": [{**USER, "role": "tool"}]}, "the role 'tool'"),
        ("messages", {"messages": [{**USER, "tool_calls": [1]}]}, "'tool_calls', which cannot be learnt from"),
        ("messages", {"messages": [{**USER, "weight": 0}]}, "'weight', which cannot be learnt from"),
        ("messages", {"messages": [{**USER, "content": [{"type": "file"}]}]}, "part of type 'file'; known: text"),
        ("messages", {"messages": [{**USER, "content": [{"type": "image"}]}]}, "without image, and the row has none"),
        ("messages", {"messages": [USER], "images": ["0.png"]}, "more images than parts"),
        ("messages", {"messages": [{**USER, "content": None}]}, "text or a list of parts"),
        ("sharegpt", {"conversations": [{"from": "tool", "value": "a"}]}, "a turn is from 'tool'"),
        ("sharegpt", {"conversations": [{"from": "gpt", "value": "<image>"}]}, "1 marks <image> but 0 images"),
        ("sharegpt", {"conversations": [{"from": "gpt", "value": "a"}], "audios": ["0.wav"]}, "0 marks <audio> but 1"),
        ("cauldron", {"images": []}, "list `texts`, found images"),
        ("cauldron", {"texts": [{"user": "a"}]}, "`user` and `assistant`, found .'user': 'a'.$"),
        ("cauldron", {"texts": ["a"]}, "`user` and `assistant`, found 'a'"),
        ("caption", {"text": "a"}, "one `image` and a `text`, found text; .*`columns`"),
        ("caption", {"image": ["0.png", "1.png"], "text": "a"}, "one `image` and a `text`"),
        ("transcript", {"audio": "0.wav", "text": 3}, "one `audio` and a `text`"),
        ("transcript", {"audio": 3, "text": "a"}, "the audio is a int"),
        ("caption", {"image": {"a": 1}, "text": "a"}, "neither bytes nor a path"),
        ("caption", {"image": "https://a.b/c.png", "text": "a"}, "is an address; nothing is fetched"),
        ("caption", {"image": "file:///etc/passwd", "text": "a"}, "is an address"),
        ("caption", {"image": "/etc/passwd", "text": "a"}, "lies outside"),
        ("caption", {"image": "../../etc/passwd", "text": "a"}, "lies outside"),
        ("caption", {"image": "out/secret.png", "text": "a"}, "lies outside"),
        ("caption", {"image": "loop.png", "text": "a"}, "lies outside|there is no image"),
        ("caption", {"image": {"path": "out/secret.png", "bytes": None}, "text": "a"}, "lies outside"),
        ("caption", {"image": "9.txt", "text": "a"}, "there is no image"),
        ("caption", {"image": ".", "text": "a"}, "there is no image"),
        ("caption", {"image": "a." * 5000, "text": "a"}, "lies outside"),
    ],
)
def test_rows_that_are_wrong_are_named(format: str, row: dict[str, Any], message: str, tmp_path: Path) -> None:
    """And change nothing for their neighbours."""
    (tmp_path / "outside").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "outside" / "secret.png")
    make_media(tmp_path / "in")
    (tmp_path / "in" / "out").symlink_to(tmp_path / "outside")
    (tmp_path / "in" / "loop.png").symlink_to(tmp_path / "in" / "loop.png")
    (tmp_path / "data.json").write_text(json.dumps([row]))
    source = RowSource(tmp_path / "data.json", format, media=tmp_path / "in")
    with pytest.raises((ArgumentError, MediaError), match=rf"data.json, entry 0.*({message})"):
        source.sample(0, CHANCE)


def test_containers_that_cannot_be_read(tmp_path: Path) -> None:
    for name, text, message in [
        ("a.parquet", "no parquet", "a.parquet cannot be read"),
        ("a.arrow", "no arrow", "a.arrow cannot be read"),
        ("a.tar", "no tar", "a.tar cannot be read as a tar file"),
        ("a.csv", "a,b", "expected files that all end in one of"),
        ("a.jsonl", "", "list of entries"),
        ("b.json", "[1, 2,]", "b.json, line 1: this is no JSON"),
        ("c.json", '[{"a": 1}\n{"b": 2}]', "c.json, line 2: this is no JSON"),
        ("d.json", '[{"a": 1}] x', "d.json, line 1: this is no JSON"),
        ("e.json", '[{"a": 1}', "e.json, line 1: this is no JSON"),
        ("f.json", "[" * 100_000, "too deep|no JSON"),
    ]:
        (tmp_path / name).write_text(text)
        with pytest.raises(ArgumentError, match=message):
            RowSource(tmp_path / name, "caption")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArgumentError, match="cannot be read as a data set"):
        RowSource(tmp_path / "folder", "caption")
    splits = containers.write_splits([{"text": "a"}], tmp_path)
    with pytest.raises(ArgumentError, match="no split 'dev'; it has train, test"):
        RowSource(splits, "caption", split="dev")
    with pytest.raises(ArgumentError, match="no data set on the hub"):
        RowSource("nobody/nothing", "caption")
    with pytest.raises(ArgumentError, match="format 'csv' is not known"):
        RowSource(containers.write_jsonl([{"a": 1}], tmp_path), "csv")
    with pytest.raises(ArgumentError, match="no column 'b'; it has a"):
        RowSource(containers.write_jsonl([{"a": 1}], tmp_path), "caption", columns={"text": "b"}).sample(0, CHANCE)


def test_links_in_a_shard_are_no_files(tmp_path: Path) -> None:
    """A member that is a link out of the shard is none of the sample's."""
    with tarfile.open(tmp_path / "s.tar", "w") as shard:
        link = tarfile.TarInfo("0.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        shard.addfile(link)
        text = tarfile.TarInfo("0.txt")
        text.size = 1
        shard.addfile(text, io.BytesIO(b"a"))
    with pytest.raises(ArgumentError, match=r"expected one `image` and a `text`, found (text|txt)"):
        RowSource(tmp_path / "s.tar", "caption").sample(0, CHANCE)


def test_a_large_file_is_not_held(tmp_path: Path) -> None:
    """A source over 10 MB of lines takes some hundred bytes when it is sent to a worker, but for the places."""
    import pickle

    with open(tmp_path / "large.jsonl", "w") as file:
        for number in range(1000):
            file.write(json.dumps({"messages": [{"role": "user", "content": f"{number} " + "a" * 10_000}]}) + "\n")
    source = RowSource(tmp_path / "large.jsonl", "messages")
    assert len(source) == 1000
    assert source.sample(777, CHANCE).messages[0]["content"].startswith("777 ")
    assert len(pickle.dumps(source)) < 40_000
