from __future__ import annotations

import io

import pytest
from rich.console import Console

from fastrot.runs import live_panel as module
from fastrot.runs.live_panel import Progress

METRICS = {
    "epoch": 1.5,
    "loss": 1.0234,
    "accuracy": 0.543,
    "learning_rate": 0.2,
    "images_per_second": 812.3,
    "views_per_second": 3249.2,
    "data_wait": 0.031,
    "val_knn": 0.91,
}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def plain() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=80)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_plain_line_says_everything_once(clock: Clock) -> None:
    console = plain()
    with Progress(total_steps=7000, first_step=1000, console=console) as progress:
        clock.now += 100
        progress.update(step=1200, metrics=METRICS)
    assert text(console) == (
        "step 1200/7000  epoch 1.50  loss 1.0234  rotation accuracy 54.3 %  learning rate 0.2  "
        "812 source images/s  3,249 views/s  data wait 3.1 %  val knn 0.91  "
        "elapsed 0:01:40  left 0:48:20\n"
    )


def test_plain_lines_keep_their_distance_but_the_last_step_is_always_told(clock: Clock) -> None:
    console = plain()
    with Progress(total_steps=30, interval=10, console=console) as progress:
        for step in range(1, 31):
            clock.now += 1
            progress.update(step=step, metrics={"loss": 1.0})
    steps = [line.split()[1] for line in text(console).splitlines()]
    assert steps == ["1/30", "11/30", "21/30", "30/30"]


def test_time_left_follows_the_recent_rate(clock: Clock) -> None:
    console = plain()
    with Progress(total_steps=1000, interval=0, console=console) as progress:
        for step in range(1, 101):
            clock.now += 10 if step <= 50 else 1
            progress.update(step=step, metrics={})
    assert text(console).splitlines()[-1].endswith("left 0:15:00")


def test_no_rate_is_no_promise(clock: Clock) -> None:
    console = plain()
    with Progress(total_steps=10, first_step=4, console=console) as progress:
        progress.update(step=4, metrics={"loss": float("nan")})
    assert text(console).endswith("loss nan  elapsed 0:00:00  left -:--\n")


def test_a_long_validation_tells_how_far_it_is_and_a_short_one_does_not(clock: Clock) -> None:
    console = plain()
    with Progress(total_steps=9000, interval=10, console=console) as progress:
        for batches in (9, 50):
            for batch in range(batches):
                progress.validating(step=5000, batch=batch, batches=batches)
                clock.now += 1
    assert text(console).splitlines() == [
        f"validation after step 5,000: batch {batch}/50  1.0 batches/s  0:00:{50 - batch} left"
        for batch in (10, 20, 30, 40)
    ]


def test_short_validations_put_no_line_of_the_training_off(clock: Clock) -> None:
    console = plain()
    with Progress(total_steps=100, interval=10, console=console) as progress:
        for step in range(1, 61):
            clock.now += 1
            progress.update(step=step, metrics={"loss": 1.0})
            progress.validating(step=step, batch=0, batches=1)
    steps = [line.split()[1] for line in text(console).splitlines()]
    assert steps == [f"{step}/100" for step in range(1, 61, 10)]


def test_a_validation_has_a_bar_on_a_terminal(clock: Clock) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, legacy_windows=False)
    with Progress(total_steps=9000, console=console) as progress:
        progress.update(step=12, metrics={"loss": 1.0})
        for batch in range(400):
            progress.validating(step=12, batch=batch, batches=400)
            clock.now += 0.03
        progress.validated()
    shown = text(console)
    assert "validation after step 12" in shown and "99.5 %" in shown and "33.3 batches/s" in shown
    assert 50 < shown.count("validation after step 12") < 125
    assert "training" in shown[shown.rindex("99.5 %") :]


def test_messages_are_not_markup(clock: Clock) -> None:
    console = plain()
    with Progress(total_steps=10, console=console) as progress:
        progress.message("wrote [bold]step-00000010[/bold] " + "x" * 100)
    assert text(console) == "wrote [bold]step-00000010[/bold] " + "x" * 100 + "\n"


def last_panel(shown: str) -> str:
    return shown[shown.rindex("training") :]


@pytest.mark.parametrize("width", [60, 140])
def test_the_live_panel_is_restored_and_shows_the_metrics(clock: Clock, width: int) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, legacy_windows=False)
    with Progress(total_steps=100, console=console) as progress:
        for step in range(1, 6):
            clock.now += 1
            progress.update(step=step, metrics={**METRICS, "loss": 2.0 / step})
        progress.message("checkpoint written")
    shown = text(console)
    assert "checkpoint written" in shown
    assert "\x1b[?25h" in shown  # the cursor is back
    assert "█" in shown  # the curve of the loss
    if width == 140:
        assert last_panel(shown).count("loss ") == 1 and "recent losses" in shown
        assert "rotation accuracy" in shown
        assert "54.3 %" in shown


@pytest.mark.parametrize("values", [[], [1.0], [float("nan"), float("inf"), 1.0]])
def test_a_curve_needs_two_finite_values(values: list[float]) -> None:
    assert module._sparkline(values) == ""


def test_a_flat_curve() -> None:
    assert module._sparkline([2.0, 2.0]) == "▁▁"
