from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from kvflow.cli.long_runs import check_writable, signals_clean_up
from kvflow.errors import InvalidInputError


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_run_and_more_of_them_do_not_disturb_the_cleaning_up(
    number: signal.Signals,
) -> None:
    before = signal.getsignal(number)
    cleaned_up: list[bool] = []

    def end_and_clean_up() -> None:
        try:
            signal.raise_signal(number)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            cleaned_up.append(True)

    with pytest.raises(KeyboardInterrupt), signals_clean_up():
        end_and_clean_up()
    assert cleaned_up
    assert signal.getsignal(number) is before


def test_what_can_be_written_is_let_through(tmp_path: Path) -> None:
    for file in (None, "-", str(tmp_path / "new.json")):
        check_writable("--json", file)


def test_what_cannot_be_written_is_refused_by_the_name_of_its_option(tmp_path: Path) -> None:
    for file in (str(tmp_path), str(tmp_path / "none" / "f.json")):
        with pytest.raises(InvalidInputError) as caught:
            check_writable("--html", file)
        assert caught.value.field == ("--html",)
