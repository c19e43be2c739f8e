"""A whole run: what lies in its folder, that it goes on where it was stopped, and what a person sees when it fails."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import cornstarch
from cornstarch import (
    ArgumentError,
    CheckpointError,
    MediaError,
    TrainingError,
    load_run,
    parse_config,
    read_metrics,
    train,
)
from cornstarch.training import checkpoints
from cornstarch.training.metrics import MetricsFile
from tests.training import toy

DIGITS = Path(__file__).parent.parent.parent / "examples" / "digits.yaml"


def config(folder: Path, *overrides: str) -> Any:
    """The digits model, smaller, for six steps."""
    small = [
        "--run.folder", str(folder), "--training.steps", "6", "--training.batch_size", "6", "--evaluation.samples", "9",
        "--evaluation.every", "3", "--model.encoders.vision.config.num_hidden_layers", "1",
        "--model.language_model.config.num_hidden_layers", "1", "--training.device", "cpu",
    ]  # fmt: skip
    return parse_config(DIGITS.read_text(), [*small, *overrides])


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]


# --- the run folder ---------------------------------------------------------------------------------------------------


def test_the_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every file that is promised, with every key; and the table and the sample before the first step."""
    folder = tmp_path / "run"
    result = train(config(folder, "--run.checkpoint_every", "2", "--run.keep_last", "1"))
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml", "environment.json", "metrics.jsonl", "checkpoints", "loss.png", "model", ".lock",
    }  # fmt: skip
    parts = ("vision_encoder", "vision_projector", "language_model")
    lines = read_metrics(folder / "metrics.jsonl")
    steps = [line for line in lines if "loss" in line]
    keys = {"step", "loss", "tokens_per_second", "tokens", "labelled_tokens", "samples", "grad_norm"}
    keys |= {"flops", "flops_per_second", "mfu"}
    for line in steps:
        kinds = ("learning_rate", "grad_norm", "flops")
        assert set(line) == keys | {f"{kind}/{part}" for kind in kinds for part in parts}
        assert sum(line[f"flops/{part}"] for part in parts) == line["flops"]
        assert line["mfu"] > 0
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert [(line["step"], set(line) - {"step"}) for line in lines if "eval_loss" in line] == [
        (3, {"eval_loss", "eval_exact_match"}),
        (6, {"eval_loss", "eval_exact_match"}),
    ]
    assert result.figures == {key: value for key, value in lines[-1].items() if key != "step"}
    resolved = yaml.safe_load((folder / "config.yaml").read_text())
    assert resolved["optimizer"]["max_grad_norm"] == 1.0
    assert parse_config((folder / "config.yaml").read_text()) == config(
        folder, "--run.checkpoint_every", "2", "--run.keep_last", "1"
    )
    assert json.loads((folder / "environment.json").read_text())["packages"]["torch"] == torch.__version__
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-6"]
    shown = capsys.readouterr().out
    assert "LlamaForCausalLM" in shown
    assert "<vision> x 4" in shown
    assert "38 positions, 4 of them of inputs, 5 labelled" in shown
    model, _ = load_run(folder)
    trained = result.model.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in model.state_dict().items())


def test_twice_the_same(tmp_path: Path) -> None:
    """Bit-equal losses, figures and weights for one seed; others for another."""
    runs = [train(config(tmp_path / str(number), "--training.seed", str(number // 2))) for number in range(3)]
    assert losses(tmp_path / "0") == losses(tmp_path / "1") != losses(tmp_path / "2")
    assert runs[0].figures == runs[1].figures
    files = [(tmp_path / str(number) / "model" / "model.safetensors").read_bytes() for number in range(2)]
    assert files[0] == files[1]


def test_a_run_is_not_overwritten_unless_asked(tmp_path: Path) -> None:
    """Refused with what is there; overwritten when asked, but for files of others."""
    train(config(tmp_path / "run"))
    (tmp_path / "run" / "notes.txt").write_text("mine")
    before = losses(tmp_path / "run")
    with pytest.raises(ArgumentError, match=r"holds a run already.*run.overwrite true"):
        train(config(tmp_path / "run"))
    assert losses(tmp_path / "run") == before
    train(config(tmp_path / "run", "--run.overwrite", "true", "--training.steps", "2"))
    assert len(losses(tmp_path / "run")) == 2
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_the_best_and_the_last_checkpoints_are_kept(tmp_path: Path) -> None:
    """A rate that is too high makes the loss rise after a while: the best stays although newer ones come."""
    often = ["--evaluation.every", "1", "--run.checkpoint_every", "1", "--run.keep_last", "2"]
    result = train(config(tmp_path / "run", *often, "--training.steps", "8", "--optimizer.learning_rate", "0.3"))
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "eval_loss" in line]
    best = min(lines, key=lambda line: line["eval_loss"])["step"]
    assert best < 7, "the run must get worse for this test to say anything"
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {f"step-{best}", "step-7", "step-8"}
    assert result.step == 8


def test_it_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    """Stopped after step 4 of 8 and resumed: the metrics and weights of a run that was not stopped, bit for bit."""

    class StopAt(cornstarch.Callback):
        def on_step(self, loop: Any, record: Any) -> None:
            if loop.step == 4:
                loop.stop("enough")

    overrides = ["--training.steps", "8", "--evaluation.every", "2"]
    train(config(tmp_path / "whole", *overrides))
    stopped = train(config(tmp_path / "pieces", *overrides), callbacks=[StopAt()])
    assert (stopped.stopped, stopped.step) == ("enough", 4)
    train(config(tmp_path / "pieces", *overrides, "--run.resume", "true"))

    def plain(folder: Path) -> list[dict[str, Any]]:
        return [
            {k: v for k, v in line.items() if k not in ("tokens_per_second", "flops_per_second", "mfu")}
            for line in read_metrics(folder / "metrics.jsonl")
        ]

    assert plain(tmp_path / "pieces") == plain(tmp_path / "whole")
    files = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "pieces")]
    assert files[0] == files[1]


def test_workers_change_nothing(tmp_path: Path) -> None:
    train(config(tmp_path / "none"))
    train(config(tmp_path / "two", "--data.workers", "2"))
    assert losses(tmp_path / "none") == losses(tmp_path / "two")


def test_tensorboard(tmp_path: Path) -> None:
    """Through accelerate's tracker: every figure of every line is there, under its step."""
    from tensorboardX.proto.event_pb2 import Event

    train(config(tmp_path / "run", "--run.trackers", "[tensorboard]"))
    found: dict[str, list[int]] = {}
    for path in (tmp_path / "run").rglob("events.out.tfevents.*"):
        data = path.read_bytes()
        while data:  # length, its checksum, the event, its checksum
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            for value in event.summary.value:
                found.setdefault(value.tag, []).append(event.step)
    assert found["loss"] == [1, 2, 3, 4, 5, 6]
    assert found["eval_loss"] == [3, 6]
    assert "grad_norm/vision_projector" in found


# --- what a person sees -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGTERM", 143)])
def test_signals_save_and_leave(tmp_path: Path, name: str, code: int) -> None:
    """The step is finished, a checkpoint saved, the exit code is the signal's, and the run can go on."""
    path, folder = tmp_path / "config.yaml", tmp_path / "run"
    path.write_text(cornstarch.to_yaml(config(folder, "--training.steps", "100000", "--evaluation.every", "100000")))
    command = [sys.executable, "-m", "cornstarch.cli.main", "train", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").is_file() or len(losses_so_far(folder)) < 3:
        assert time.monotonic() < deadline, "the run has not begun"
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(getattr(signal, name))
    shown, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    assert f"{name}: finishing the step" in shown
    assert f"stopped by {name} after step" in shown
    last = checkpoints.last(folder / "checkpoints")
    assert last is not None
    step = checkpoints.load(last)["step"]
    assert step == len(losses_so_far(folder)) >= 3
    result = train(parse_config(path.read_text(), ["--run.resume", "true", "--training.steps", str(step + 2)]))
    assert result.step == step + 2


def losses_so_far(folder: Path) -> list[str]:
    return [line for line in (folder / "metrics.jsonl").read_text().splitlines() if '"loss"' in line]


def test_a_loss_that_is_no_number_leaves_the_last_good_state(tmp_path: Path) -> None:
    """The message names step and part; the checkpoint is of the step before."""

    class Break(cornstarch.Callback):
        def on_step(self, loop: Any, record: Any) -> None:
            if loop.step == 3:
                layer = loop.model.vision_encoder.module.encoder.layers[0].mlp
                layer.register_forward_hook(lambda module, arguments, output: output * float("nan"))

    with pytest.raises(TrainingError, match=r"loss is nan at step 4: the activation of vision_encoder went first"):
        train(config(tmp_path / "run", "--evaluation.every", "100"), callbacks=[Break()])
    last = checkpoints.last(tmp_path / "run" / "checkpoints")
    assert last is not None
    assert last.name == "step-3"
    assert all(value.isfinite().all() for value in load_run(last)[0].state_dict().values())


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounting a small disk needs root on Linux")
def test_a_full_disk(tmp_path: Path) -> None:
    """Former checkpoints are whole, no half-written file is left, and the message says what to do."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("this system does not let one mount a small disk")
    try:
        overrides = ["--run.checkpoint_every", "1", "--run.keep_last", "100", "--evaluation.every", "100"]
        with pytest.raises(CheckpointError, match=r"(?s)no checkpoint at step 6.*space.*make room.*run.resume"):
            train(config(disk / "run", *overrides))
        kept = sorted((disk / "run" / "checkpoints").iterdir())
        assert 1 <= len(kept) < 6
        assert all(path.name.startswith("step-") for path in kept)
        for checkpoint in kept:
            checkpoints.load(checkpoint)
            load_run(checkpoint)
        for checkpoint in kept[:-1]:
            subprocess.run(["rm", "-r", str(checkpoint)], check=True)
        assert train(config(disk / "run", "--run.resume", "true", "--evaluation.every", "100")).step == 6
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_nothing_to_learn_is_said_before_the_first_step(tmp_path: Path) -> None:
    """All frozen, or answers cut off: refused, with the reason, and no step taken."""
    frozen = [f"--trains.{part}=frozen" for part in ("vision_encoder", "vision_projector", "language_model")]
    with pytest.raises(TrainingError, match="every parameter of the model is frozen"):
        train(config(tmp_path / "frozen", *frozen))
    with pytest.raises(TrainingError, match="none of the first 64 samples has a labelled token"):
        train(config(tmp_path / "cut", "--data.max_length", "20"))
    assert not (tmp_path / "cut" / "metrics.jsonl").exists()


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    train(config(tmp_path / "run"))
    (tmp_path / "run" / "checkpoints" / "step-6" / "state.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="step-6 is no whole checkpoint"):
        train(config(tmp_path / "run", "--run.resume", "true", "--training.steps", "8"))


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["--optimizer.name", "Adamm"], "torch.optim has no 'Adamm'"),
        (["--optimizer.arguments", "{beta: 1}"], "AdamW refuses them"),
        (["--schedule.name", "cosin"], "unknown schedule 'cosin'; known: constant"),
        (["--schedule.arguments", "{flor: 0.1}"], "takes no 'flor'; it takes: floor"),
        (["--training.device", "toaster"], "cannot compute on 'toaster'"),
        (["--trains.language_model", "{groups: [{parameters: [nome]}]}"], "nothing that trains is called nome"),
        (["--trains.language_model", "{mode: partial, parameters: [nome]}"], "no parameter is called nome"),
        (["--model.encoders.vision.processor.class_name", "NoProcessor"], "has no class 'NoProcessor'"),
        (["--model.encoders.vision.config.model_type", "siglop"], "model_type 'siglop'"),
        (["--data.template", "nowhere.jinja"], "none of plain, vicuna"),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(tmp_path: Path, overrides: list[str], message: str) -> None:
    """Before anything is trained, and without leaving a folder that stands in the way."""
    with pytest.raises(ArgumentError, match=message):
        train(config(tmp_path / "run", *overrides))
    train(config(tmp_path / "run", "--training.steps", "1"))


# --- whatever ends a run, what was learnt is kept ---------------------------------------------------------------------


def test_any_error_leaves_the_last_whole_step(tmp_path: Path) -> None:
    """Of a callback here; the error itself is what is raised."""

    class Trip(cornstarch.Callback):
        def on_step(self, loop: Any, record: Any) -> None:
            if loop.step == 3:
                raise KeyError("tripped")

    with pytest.raises(KeyError, match="tripped"):
        train(config(tmp_path / "run", "--evaluation.every", "100"), callbacks=[Trip()])
    assert checkpoints.last(tmp_path / "run" / "checkpoints").name == "step-3"
    load_run(tmp_path / "run")  # the checkpoint's model, for want of a final one


@pytest.mark.parametrize("workers", ["0", "2"])
def test_an_unreadable_image_is_named_and_costs_nothing(tmp_path: Path, workers: str) -> None:
    """By file and entry alone, from workers too; the steps before it are kept, and the run can go on with it mended."""
    entries = []
    for number in range(72):
        Image.new("RGB", (8, 8), "white").save(tmp_path / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "white"}]
        entries.append({"image": f"{number}.png", "conversations": turns})
    (tmp_path / "data.json").write_text(json.dumps(entries))
    whole = (tmp_path / "70.png").read_bytes()
    (tmp_path / "70.png").write_bytes(whole[:40])
    words = ["--data.train", f"{{source: llava, path: {tmp_path / 'data.json'}}}", "--training.steps", "20"]
    words += ["--data.workers", workers, "--evaluation.every", "100", "--evaluation.samples", "3"]
    with pytest.raises(MediaError) as caught:
        train(config(tmp_path / "run", *words))
    assert "70.png" in str(caught.value)
    assert "Traceback" not in str(caught.value)
    last = checkpoints.last(tmp_path / "run" / "checkpoints")
    steps = len(losses(tmp_path / "run"))
    assert steps == (int(last.name.removeprefix("step-")) if last is not None else 0)
    (tmp_path / "70.png").write_bytes(whole)
    again = ["--run.resume", "true"] if last is not None else ["--run.overwrite", "true"]
    assert train(config(tmp_path / "run", *words, *again)).step == 20


def test_validation_is_looked_at_before_the_first_step(tmp_path: Path) -> None:
    """Not met as a surprise after the last."""

    class Silent(toy.Colours):
        def sample(self, index: int, chance: Any) -> Any:
            return super().sample(index, chance).prompt

    with pytest.raises(TrainingError, match=r"data.validation: none of the first 24 samples has a labelled token"):
        train(config(tmp_path / "run"), validation=Silent())
    assert not (tmp_path / "run").exists()
    with pytest.raises(ArgumentError, match="the source has no samples"):
        train(config(tmp_path / "run"), source=toy.Colours(0))


def test_weights_that_are_no_numbers_replace_no_checkpoint(tmp_path: Path) -> None:
    class Break(cornstarch.Callback):
        def on_step(self, loop: Any, record: Any) -> None:
            if loop.step == 4:
                with torch.no_grad():
                    next(loop.model.parameters()).fill_(float("nan"))

    words = ["--run.checkpoint_every", "3", "--run.keep_last", "1", "--evaluation.every", "100"]
    with pytest.raises(TrainingError, match=r"step 5: the weight .* of vision_encoder is not finite already"):
        train(config(tmp_path / "run", *words), callbacks=[Break()])
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-3"]


def test_a_run_is_destroyed_by_nothing_but_its_successor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Overwriting fails for want of a tracker, or resuming for want of a checkpoint: all is as it was."""
    train(config(tmp_path / "run"))
    before = losses(tmp_path / "run")
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: [])
    with pytest.raises(ImportError, match="wandb is not installed: pip install wandb"):
        train(config(tmp_path / "run", "--run.overwrite", "true", "--run.trackers", "[wandb]"))
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.rename(path.with_name(".writing-half"))
    with pytest.raises(ArgumentError, match="holds no checkpoint to go on from"):
        train(config(tmp_path / "run", "--run.resume", "true"))
    assert losses(tmp_path / "run") == before
    load_run(tmp_path / "run")


def test_one_run_at_a_time(tmp_path: Path) -> None:
    """A second one in the same folder is refused while the first goes on."""

    class Second(cornstarch.Callback):
        def on_step(self, loop: Any, record: Any) -> None:
            if loop.step == 2:
                with pytest.raises(ArgumentError, match="another run is going on in"):
                    train(config(tmp_path / "run", "--run.overwrite", "true"))

    train(config(tmp_path / "run"), callbacks=[Second()])
    assert len(losses(tmp_path / "run")) == 6


def test_parts_that_do_not_fit_are_said_before_the_first_step(tmp_path: Path) -> None:
    """An encoder for images of another size than its processor makes: both keys are named, and nothing is left."""
    with pytest.raises(ArgumentError, match=r"cannot be run on digits.*processor.arguments.*config.image_size"):
        train(config(tmp_path / "run", "--model.encoders.vision.config.image_size", "16"))
    assert not (tmp_path / "run").exists()


def test_a_start_that_failed_does_not_block_the_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    assert train(config(tmp_path / "run")).step == 6


@pytest.mark.parametrize("name, code", [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_to_all_processes(tmp_path: Path, name: str, code: int) -> None:
    """As a terminal or a scheduler sends it, workers included: a checkpoint, the signal's code, no traceback."""
    path, folder = tmp_path / "config.yaml", tmp_path / "run"
    long = ["--training.steps", "100000", "--evaluation.every", "100000", "--data.workers", "2"]
    path.write_text(cornstarch.to_yaml(config(folder, *long)))
    command = [sys.executable, "-m", "cornstarch.cli.main", "train", str(path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, start_new_session=True, **pipes)
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").is_file() or len(losses_so_far(folder)) < 3:
        assert time.monotonic() < deadline, "the run has not begun"
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    os.killpg(process.pid, getattr(signal, name))
    shown, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert shown.count("finishing the step") == 1
    assert checkpoints.last(folder / "checkpoints") is not None


# --- going on ---------------------------------------------------------------------------------------------------------


def test_going_on_with_another_config(tmp_path: Path) -> None:
    """Another model, data or choice is refused by name and changes nothing; another rate is obeyed and recorded."""
    often = ["--evaluation.every", "100", "--run.checkpoint_every", "4"]
    train(config(tmp_path / "run", *often))
    for words, message in (
        (["--trains.vision_encoder", "frozen"], r"trains.vision_encoder.mode was None and is 'frozen'"),
        (["--training.batch_size", "3"], r"training.batch_size was 6 and is 3"),
        (["--model.language_model.config.hidden_size", "32"], r"hidden_size was 64 and is 32"),
        (["--data.train.shift", "0"], r"data.train.shift was 1 and is 0"),
        (["--optimizer.name", "SGD"], r"optimizer.name was AdamW"),
    ):
        with pytest.raises(ArgumentError, match=message):
            train(config(tmp_path / "run", *often, "--run.resume", "true", *words))
    more = ["--run.resume", "true", "--training.steps", "8", "--optimizer.learning_rate", "1e-6"]
    train(config(tmp_path / "run", *often, *more, "--schedule.name", "constant", "--schedule.warmup", "0"))
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert lines[-1]["learning_rate/language_model"] == pytest.approx(1e-6)
    assert "learning_rate: 1.0e-06" in (tmp_path / "run" / "config.yaml").read_text()


def test_lines_behind_the_checkpoint_are_taken_again(tmp_path: Path) -> None:
    """After a kill: lines after the last checkpoint, and half a line, give way to the steps that are taken again."""
    words = ["--evaluation.every", "100", "--run.checkpoint_every", "2"]
    train(config(tmp_path / "whole", *words))
    folder = tmp_path / "killed"
    train(config(folder, *words))
    shutil.rmtree(folder / "checkpoints" / "step-6")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "lo')
    train(config(folder, *words, "--run.resume", "true"))
    assert losses(folder) == losses(tmp_path / "whole")


def test_a_model_of_ones_own(tmp_path: Path) -> None:
    """Instead of the config's: what trains is the config's choice, the folder is a run's, and it is resumed alike."""
    words = ["--trains.vision_encoder", "frozen", "--evaluation.every", "100", "--evaluation.max_new_tokens", "2"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"

    class StopAt(cornstarch.Callback):
        def on_step(self, loop: Any, record: Any) -> None:
            if loop.step == 3:
                loop.stop("enough")

    for folder, callbacks, more in ((whole, [], []), (stopped, [StopAt()], []), (stopped, [], ["--run.resume=true"])):
        model, collator = toy.model_and_collator()
        given = {"model": model, "processor": collator.processor, "source": toy.Colours()}
        result = train(config(folder, *words, *more), callbacks=callbacks, **given)
    assert result.model is model
    assert losses(stopped) == losses(whole)
    assert not any(p.requires_grad for p in model.vision_encoder.module.parameters())


# --- lines of metrics -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_lines_wait_for_space(tmp_path: Path) -> None:
    """What a full disk refuses is written with the next line, and no half of it before."""
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file.write({"step": 1})
    path.rename(tmp_path / "kept")
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match="no space left"):
        file.write({"step": 2, "loss": float("nan")})
    path.unlink()
    (tmp_path / "kept").rename(path)
    file.write({"step": 3})
    assert read_metrics(path) == [{"step": 1}, {"step": 2, "loss": None}, {"step": 3}]


def test_steps_between_lines_are_not_lost(tmp_path: Path) -> None:
    """With a line every four steps, a run stopped after the sixth has lines for 4 and 6."""

    class StopAt(cornstarch.Callback):
        def on_step(self, loop: Any, record: Any) -> None:
            if loop.step == 6:
                loop.stop("enough")

    words = ["--run.log_every", "4", "--training.steps", "9", "--evaluation.every", "100"]
    train(config(tmp_path / "run", *words), callbacks=[StopAt()])
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == [4, 6]


def test_a_stop_at_the_last_step_is_none(tmp_path: Path) -> None:
    class StopAt(cornstarch.Callback):
        def on_step(self, loop: Any, record: Any) -> None:
            if loop.step == 6:
                loop.stop("enough")

    assert train(config(tmp_path / "run"), callbacks=[StopAt()]).stopped is None


def test_epochs_are_counted_without_rounding_errors(tmp_path: Path) -> None:
    """0.07 of 100 steps are 7."""
    words = ["--training.epochs", "0.07", "--training.steps", "null", "--training.batch_size", "1"]
    assert train(config(tmp_path / "run", *words, "--evaluation.every", "100"), source=toy.Colours(100)).step == 7
