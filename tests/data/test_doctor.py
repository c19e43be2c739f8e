"""`cornstarch data check` on damage whose kind and place are known, and training on the same data."""

import html.parser
import itertools
import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from cornstarch import Batches, CornstarchError, MixtureSource, check_data, choose, parse_config, train
from cornstarch.cli.main import main
from cornstarch.data import Collator
from cornstarch.data.doctor.findings import Examiner
from cornstarch.data.doctor.kinds import KINDS, remarks_on
from cornstarch.data.doctor.scan import scan
from cornstarch.training import building, sourcing
from cornstarch.training.forecast import SampleWork
from tests import pages, tiny
from tests.data import damage
from tests.data.damage import CONTAINERS, Made
from tests.training import toy

# Training takes no step on them, whatever it does about bad samples.
NOT_LEARNT = {"unlabelled", "no_turns"}
ERRORS = {kind for kind, known in KINDS.items() if known.severity == "error"}
WARNINGS = sorted(set(KINDS) - ERRORS)
Batch = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Speed is measured by a single product, and how much work a sample is by those tests alone that are about it."""
    monkeypatch.setattr("cornstarch.training.peaks._SECONDS", 0)
    if "work" not in request.node.name:
        work = SampleWork(text=(1.0, 0.0, 0.0), inputs={})
        monkeypatch.setattr("cornstarch.training.data_check.sample_work", lambda *_: work)


def made_of(name: str, folder: Path, damaged: bool = True, **data: Any) -> tuple[Made, Any]:
    folder.mkdir(exist_ok=True)
    made = CONTAINERS[name](folder / "d", damaged)
    return made, parse_config(json.dumps(damage.config(made, folder, **data)))


@pytest.fixture(scope="module", params=CONTAINERS)
def both(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Made, Any, Any]:
    """A damaged container, its config, and that of the same without damage."""
    folder = tmp_path_factory.mktemp("both")
    _, good = made_of(request.param, folder / "good", damaged=False)
    return *made_of(request.param, folder / "bad"), good


def found_in(report: dict[str, Any]) -> tuple[dict[int, str], list[str]]:
    """Entry to kind, and damaged files."""
    entries = {entry["index"]: entry["kind"] for entry in report["bad"] if entry["index"] is not None}
    return entries, [entry["name"] for entry in report["bad"] if entry["index"] is None]


def steps_of(config: Any, *, salvage: bool, policy: Any, workers: int = 0) -> list[Any]:
    """All steps of an epoch in the data's own order, a sample a micro-batch."""
    source = sourcing.make_source(config.data.train, salvage=salvage)
    processor = building.build_processor(config.model, config.data.template)
    collator = sourcing.make_collator(processor, config.data)
    batches = Batches(source, collator, 6, micro_batch_size=1, shuffle=False, workers=workers, bad_samples=policy)
    found = list(itertools.islice(batches, batches.steps_per_epoch))
    batches.close()
    return found


def same(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- what is found ----------------------------------------------------------------------------------------------------


def test_every_damage_is_found_and_nothing_else(both: tuple[Made, Any, Any]) -> None:
    made, bad, good = both
    assert found_in(check_data(bad, workers=0).report) == (made.wrong, made.broken)
    assert found_in(check_data(good, workers=0).report) == ({}, [])


def test_every_kind_is_tried(tmp_path: Path) -> None:
    """But for those that a test of its own is about."""
    kinds = {
        kind for make in (damage.jsonl, damage.messages) for kind in make(tmp_path / make.__name__, True).wrong.values()
    }
    assert len(damage.DAMAGES) >= 26
    elsewhere = {"broken_file", "too_long", "above_budget", "crashed", "missing_package", "other"}
    assert kinds | elsewhere == set(KINDS)


def test_the_page_has_every_kind() -> None:
    page = (pages.ROOT / "docs" / "data-check.md").read_text(encoding="utf-8")
    for kind, known in KINDS.items():
        row = f"| `{kind}` | {known.means} | {known.remedy} |".replace("<", "&lt;").replace(">", "&gt;")
        assert row in page


@pytest.mark.slow
def test_other_seeds(tmp_path: Path) -> None:
    """Wherever damage stands."""
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
        made = damage.jsonl(tmp_path / str(seed) / "d", True, seed)
        config = parse_config(json.dumps(damage.config(made, tmp_path / str(seed))))
        assert found_in(check_data(config, workers=0).report)[0] == made.wrong


def test_the_same_whatever_the_number_of_workers(tmp_path: Path) -> None:
    """Duplicates are found across workers, and say which sample they repeat."""
    made, config = made_of("jsonl", tmp_path)
    reports = [check_data(config, workers=workers).report for workers in (0, 1, 3)]
    for report in reports:
        for name in ("seconds", "workers"):
            del report["summary"][name]
        for name in ("preparation", "compute"):
            del report["forecast"][name]
    assert reports[0] == reports[1] == reports[2]
    [repeats] = [entry for entry in reports[0]["bad"] if entry["kind"] == "duplicate"]
    assert (repeats["index"], repeats["detail"]) == (max(made.wrong), f"the same as {made.folder}/data.jsonl, entry 4")


def test_a_mixture(tmp_path: Path) -> None:
    """Entries are those of each source, of which all samples are looked at, however often an epoch shows them."""
    made, _ = made_of("jsonl", tmp_path)
    other = damage.llava(tmp_path / "other", True)
    sources = {"source": "mixture", "sources": [made.source, other.source], "weights": [1, 9], "when_one_ends": "stop"}
    values = damage.config(made, tmp_path, train=sources)
    check = check_data(parse_config(json.dumps(values)), workers=0)
    for one in (made, other):
        mine = {entry["index"]: entry["kind"] for entry in check.report["bad"] if entry["source"] == one.source["path"]}
        mine.pop(None, None)
        assert mine == one.wrong
    assert [part["path"] for part in check.leave_out["sources"]] == [made.source["path"], other.source["path"]]


def test_more_positions_than_a_table_or_a_micro_batch_has(tmp_path: Path) -> None:
    lines = [damage.of_length({}, positions) for positions in (40, 60, 80)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = Made(source={"source": "sharegpt", "path": str(tmp_path / "data.jsonl")}, folder=tmp_path)
    values = damage.config(made, tmp_path)
    values["training"] |= {"micro_batch_positions": 60}
    assert found_in(check_data(parse_config(json.dumps(values)), workers=0).report)[0] == {2: "above_budget"}
    gpt = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 59}
    values["model"]["language_model"] = {"config": gpt, "tokenizer": "bytes"}
    assert found_in(check_data(parse_config(json.dumps(values)), workers=0).report)[0] == dict.fromkeys(
        (1, 2), "too_long"
    )


@pytest.mark.parametrize(
    "text, kinds",
    [
        ("S\u00e3o Paulo, AMANH\u00c3\u2026 CAF\u00c9\u201d \u00c2ngela \u00ab\u00c0 la carte\u00bb", []),
        ("\u041f\u0440\u0438\u0432\u0435\u0442 \u4f60\u597d \u0645\u0631\u062d \U0001f600 \u03c0\u2248\u00b1", []),
        ("Line\none\ttab\r\n <img> a < b", []),
        ("cafe\u0301 \u00c3\u00a9".encode().decode("latin-1"), ["mojibake"]),
        ("it\u2019s".encode().decode("cp1252"), ["mojibake"]),
        ("\u041f\u0440\u0438".encode().decode("latin-1"), ["mojibake"]),
        ("a\x1b[2Jb", ["control_characters"]),
        ("a\ufffdb <image>", ["mark_as_text", "replacement_character"]),
    ],
)  # fmt: skip
def test_texts(text: str, kinds: list[str]) -> None:
    found = [finding.kind for finding in remarks_on(text)]
    assert [kind for kind in found if kind != "control_characters" or kind in kinds] == kinds


# --- training on the same data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_skip_takes_all_others_exactly(both: tuple[Made, Any, Any], workers: int) -> None:
    """A whole epoch; each sample that can be used is tensor by tensor what it is without damage anywhere else."""
    made, bad, good = both
    wanted = [micro for step in steps_of(good, salvage=False, policy="stop") for micro in step.micro_batches]
    steps = steps_of(bad, salvage=True, policy="skip", workers=workers)
    found = [micro for step in steps for micro in step.micro_batches]
    changed = {index for index, kind in made.wrong.items() if kind not in ERRORS}
    errors = {index for index, kind in made.wrong.items() if kind in ERRORS}
    left_out = [entry for step in steps for entry in step.bad if entry.kind != "BrokenFile"]
    assert len(left_out) + sum(len(step.unlabelled) for step in steps) == len(errors)
    assert {entry.name for step in steps for entry in step.bad if entry.kind == "BrokenFile"} == set(made.broken)
    if not made.broken:  # then every place is known
        expected = [(index, micro) for index, micro in enumerate(wanted) if index not in errors]
        assert len(found) == len(expected)
        assert all(
            same(micro, one) for (index, one), micro in zip(expected, found, strict=True) if index not in changed
        )
    else:  # what can be read of it stays in order
        rest = iter([micro for index, micro in enumerate(wanted) if index not in errors])
        assert all(any(same(micro, one) for one in rest) for micro in found)
        assert len(found) == len(sourcing.make_source(bad.data.train, salvage=True)) - len(errors)


def test_stop_names_the_sample(both: tuple[Made, Any, Any]) -> None:
    """Each bad sample by itself; a damaged file before there is any step."""
    made, bad, _ = both
    if made.broken:
        with pytest.raises(CornstarchError) as raised:
            sourcing.make_source(bad.data.train)
        assert made.broken[0] in str(raised.value)
    source = sourcing.make_source(bad.data.train, salvage=True)
    processor = building.build_processor(bad.model, bad.data.template)
    collator = sourcing.make_collator(processor, bad.data)
    for index in (index for index, kind in made.wrong.items() if kind in ERRORS - NOT_LEARNT):
        batches = Batches(_One(source, index), collator, 1)
        with pytest.raises(CornstarchError) as raised:
            next(batches)
        names = (source.name(index), f"{made.folder}/data.jsonl, line {index + 1} ", f"/data.jsonl, line {index + 1}:")
        assert any(name in str(raised.value) for name in names), raised.value


class _One:
    """One sample of another source."""

    def __init__(self, source: Any, index: int) -> None:
        self._source, self._index = source, index

    def __len__(self) -> int:
        return 1

    def sample(self, index: int, chance: Any) -> Any:
        return self._source.sample(self._index, chance)


def test_nothing_bad_is_left_without_the_list(both: tuple[Made, Any, Any], tmp_path: Path) -> None:
    """Errors by default, warnings if asked; then an epoch goes through under `stop`."""
    made, bad, _ = both
    values = damage.config(made, tmp_path)
    for also in ([], WARNINGS):
        check = check_data(bad, workers=0, also=also)
        assert check.is_good == (not set(made.wrong.values()) & ERRORS and not made.broken)
        path = tmp_path / f"leave_out{len(also)}.json"
        path.write_text(json.dumps(check.leave_out))
        values["data"]["train"] = {**made.source, "leave_out": str(path)}
        without = parse_config(json.dumps(values))
        again = check_data(without, workers=0)
        assert again.is_good
        left = {index: kind for index, kind in made.wrong.items() if kind not in ERRORS and not also}
        assert found_in(again.report) == (left, [])
        assert again.leave_out["sources"][0]["broken"] == made.broken
        assert sum(step.samples for step in steps_of(without, salvage=False, policy="stop")) == len(again.scan.seen)


def test_a_list_is_of_its_data_alone(tmp_path: Path) -> None:
    """Another file, format or size, what is no list, and one that leaves nothing, are refused."""
    made, config = made_of("llava", tmp_path)
    values, data = damage.config(made, tmp_path), Path(made.source["path"])
    path = tmp_path / "leave_out.json"
    path.write_text(json.dumps(check_data(config, workers=0).leave_out))

    def refused(message: str, **source: Any) -> None:
        values["data"]["train"] = {**made.source, "leave_out": str(path), **source}
        with pytest.raises(CornstarchError, match=message):
            sourcing.make_source(parse_config(json.dumps(values)).data.train)

    refused("not of .*sharegpt", source="sharegpt")
    (tmp_path / "d" / "other.json").write_bytes(data.read_bytes())
    refused("not of .*other.json", path=str(tmp_path / "d" / "other.json"))
    data.write_bytes(data.read_bytes() + b" ")
    refused("the data has changed, so check it anew")
    data.write_bytes(data.read_bytes()[:-1])
    whole = json.loads(path.read_text())
    whole["sources"][0]["leave_out"] = [{"index": index} for index in range(8)]
    path.write_text(json.dumps(whole))
    refused("leaves nothing")
    path.write_text("[]")
    refused("did not write")
    refused("cannot be read", leave_out=str(tmp_path / "nowhere.json"))


def test_a_run_goes_through(tmp_path: Path) -> None:
    """All steps of an epoch; bad samples and unlabelled ones are counted in its metrics and named in a file."""
    made, config = made_of("jsonl", tmp_path, bad_samples="skip", workers=2)
    result = train(config)
    assert result.stopped is None
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    kinds = Counter(made.wrong.values())
    errors = sum(number for kind, number in kinds.items() if kind in ERRORS - NOT_LEARNT)
    assert sum(line.get("unlabelled", 0) for line in lines) == 3
    assert sum(line.get("bad_samples", 0) for line in lines) == errors
    named = [json.loads(line) for line in (tmp_path / "run" / "bad_samples.jsonl").read_text().splitlines()]
    assert sum(entry["kind"] == "unlabelled" for entry in named) == 3
    assert len(named) == errors + 3


# --- workers ----------------------------------------------------------------------------------------------------------


class Deadly(toy.Colours):
    """Colours of which some end the process, as a decoder that crashes does."""

    def sample(self, index: int, chance: Any) -> Any:
        if index == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        if index in (6, 23):
            os._exit(7)
        return super().sample(index, chance)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_that_dies(workers: int) -> None:
    """Its sample is named and how it died, all others are looked at."""
    _, collator = toy.model_and_collator()
    told: list[int] = []
    found = scan(Examiner(Deadly(40), collator), range(40), workers=workers, progress=told.append)
    crashed = {seen.index: finding.detail for seen in found.seen for finding in seen.findings if finding.is_error}
    assert crashed == {5: "it ended by SIGKILL", 6: "it ended with exit code 7", 23: "it ended with exit code 7"}
    assert [seen.index for seen in found.seen] == list(range(40))
    assert sum(told) == 40


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c(tmp_path: Path, workers: int) -> None:
    """What was seen so far is told, as a part."""
    _, config = made_of("jsonl", tmp_path)

    def stop(more: int, of: int) -> None:
        raise KeyboardInterrupt

    report = check_data(config, workers=workers, progress=stop).report
    assert report["summary"]["partial"]
    assert 0 < report["summary"]["checked"] < report["summary"]["of"]


def test_a_limit_is_spread_evenly(tmp_path: Path) -> None:
    _, config = made_of("jsonl", tmp_path)
    check = check_data(config, workers=0, limit=8)
    assert [seen.index for seen in check.scan.seen] == [0, 11, 22, 33, 44, 55, 66, 77]
    assert not check.report["summary"]["partial"]
    assert "8 of 88 places" in " ".join(check.report["forecast"]["assumptions"])


# --- what is written --------------------------------------------------------------------------------------------------


class _Page(html.parser.HTMLParser):
    """Tags and attributes of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text = set[str](), list[tuple[str, Any]](), ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def command(path: Path, *words: Any) -> int:
    return main(["data", "check", str(path), *map(str, words)])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit codes, files and their form, what is shown; hostile names are text."""
    hostile = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\u202e\x1b[2J"
    made = damage.jsonl(tmp_path / "<b>d", True)
    path = tmp_path / "<b>d" / "data.jsonl"
    row = {
        "conversations": [{"from": "human", "value": "<image>x"}, {"from": "gpt", "value": "y"}],
        "images": [hostile],
    }
    path.write_bytes(path.read_bytes() + json.dumps(row).encode() + b"\n")
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(damage.config(made, tmp_path)))
    out = tmp_path / "out"
    assert command(config, "--output", out, "--workers", 2) == 1
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "error  missing_medium: 2" in shown
    assert "to do: is `media` the folder?" in shown
    report = json.loads((out / "report.json").read_text())
    _check_form(report)
    assert {entry["index"]: entry["kind"] for entry in report["bad"]} == {**made.wrong, 88: "missing_medium"}
    page = (out / "report.html").read_text()
    parsed = _Page(page)
    assert not parsed.tags & {"script", "img", "link", "iframe", "object", "embed", "base", "form"}
    assert not [
        name for name, _ in parsed.attributes if name in ("src", "href", "srcset", "onerror", "action", "style")
    ]
    assert "url(" not in page
    assert "@import" not in page
    assert "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>⟨U+202E⟩" in parsed.text
    assert "\u202e" not in page
    assert {"svg", "rect"} <= parsed.tags
    assert command(config, "--data.train.leave_out", out / "leave_out.json") == 0
    assert command(config, "--split", "validation") == 1
    assert "data.validation must be given" in capsys.readouterr().err
    assert command(config, "--also", "cry") == 1
    assert "no kind of warning; expected cut" in capsys.readouterr().err
    for words in (["--workers", "0"], ["--split", "other"], ["--limit", "x"]):
        with pytest.raises(SystemExit) as raised:
            command(config, *words)
        assert raised.value.code == 2


def _check_form(report: dict[str, Any]) -> None:
    assert list(report) == ["summary", "forecast", "bad"]
    summary = report["summary"]
    numbers = ("checked", "chosen", "of", "usable", "errors", "broken_files", "warnings", "seconds", "workers")
    assert all(isinstance(summary[name], int | float) for name in numbers)
    assert summary["usable"] + summary["errors"] == summary["checked"]
    for kind, known in summary["kinds"].items():
        assert kind in KINDS
        assert known.keys() == {"severity", "count", "means", "remedy", "first"}
        assert known["first"].keys() == {"source", "index", "name", "detail"}
        found = [other["kind"] for entry in report["bad"] for other in (entry, *entry["others"])]
        assert found.count(kind) == known["count"]
    for entry in report["bad"]:
        assert list(entry) == ["source", "index", "name", "kind", "severity", "detail", "others"]
        assert entry["severity"] == KINDS[entry["kind"]].severity
        assert all(isinstance(entry[name], str) for name in ("source", "name", "kind", "detail"))


def test_a_partial_page_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    made = damage.jsonl(tmp_path / "d", True)
    (tmp_path / "config.yaml").write_text(json.dumps(damage.config(made, tmp_path)))

    def stop(self: Any, more: int, of: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cornstarch.cli.data_check._Bar.tell", stop)
    assert command(tmp_path / "config.yaml", "--output", tmp_path / "out", "--workers", 2) == 130
    assert "PARTIAL" in capsys.readouterr().out
    assert "Partial." in (tmp_path / "out" / "report.html").read_text()
    assert json.loads((tmp_path / "out" / "report.json").read_text())["summary"]["partial"]


# --- forecast ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "training",
    [
        {},
        pytest.param({"micro_batch_size": None}, marks=pytest.mark.slow),
        {"micro_batch_size": None, "micro_batch_positions": 340},
        {"length_window": 3},
    ],
    ids=["samples", "steps", "positions", "window"],
)
def test_the_forecast_is_what_training_takes(tmp_path: Path, training: dict[str, Any]) -> None:
    """Positions, labelled tokens, padding and micro-batches of the first epoch, counted in its very batches."""
    made = damage.jsonl(tmp_path / "d", True)
    values = damage.config(made, tmp_path, bad_samples="skip")
    values["training"] |= training
    config = parse_config(json.dumps(values))
    found = check_data(config, workers=0).report["forecast"]
    source = sourcing.make_source(config.data.train, salvage=True)
    processor = building.build_processor(config.model, config.data.template)
    collator = sourcing.make_collator(processor, config.data)
    options = {"budget": sourcing.make_budget(config.training), "length_window": config.training.length_window}
    batches = Batches(source, collator, 6, bad_samples="skip", **options)  # type: ignore[arg-type]
    micros = [micro for step in itertools.islice(batches, batches.steps_per_epoch) for micro in step.micro_batches]
    assert found["positions_per_epoch"] == sum(int(micro["attention_mask"].sum()) for micro in micros)
    assert found["labelled_tokens_per_epoch"] == sum(int((micro["labels"][:, 1:] != -100).sum()) for micro in micros)
    assert found["padding"]["padded_positions_per_epoch"] == sum(micro["input_ids"].numel() for micro in micros)
    assert found["padding"]["micro_batches"] == len(micros)
    assert found["steps_per_epoch"] == found["steps"] == batches.steps_per_epoch


@pytest.mark.parametrize("frozen", [True, False])
def test_the_forecast_of_work(tmp_path: Path, frozen: bool) -> None:
    """What PyTorch counts in a step, to the last operation."""
    from torch.utils.flop_counter import FlopCounterMode

    lines = [damage.of_length({}, 60)]  # the only one, so that it tells of itself
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = Made(source={"source": "sharegpt", "path": str(tmp_path / "data.jsonl")}, folder=tmp_path)
    values = damage.config(made, tmp_path)
    values["model"]["language_model"]["attn_implementation"] = "eager"
    values["trains"] = {"language_model": {"mode": "frozen"}} if frozen else {}
    values["trains"]["vision_encoder"] = values["trains"]["audio_encoder"] = {"mode": "frozen"}
    values["trains"]["vision_projector"] = values["trains"]["audio_projector"] = {"mode": "frozen"}
    config = parse_config(json.dumps(values))
    found = check_data(config, workers=0).report["forecast"]["compute"]
    model, processor = building.build_model(config.model, config.data.template)
    choose(model, config.trains)
    source: Any = sourcing.make_source(config.data.train)
    batch = Collator(processor)([source.sample(0, None)])
    tiny.ask(model)
    with FlopCounterMode(display=False) as counter:
        loss = model(**batch).loss
        if not frozen:
            loss.backward()
    assert found["flops_per_epoch"] == counter.get_total_flops()


def test_a_mixture_is_a_source() -> None:
    """The number of samples to look at is that of the sources, not of an epoch."""
    from cornstarch.data.doctor.report import number_of

    assert number_of(MixtureSource([toy.Colours(5), toy.Colours(7)], [1, 9], when_one_ends="stop")) == 12
