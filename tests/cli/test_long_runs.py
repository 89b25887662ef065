from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from kvflow.cli.long_runs import signals_clean_up

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def usual_handlers() -> Iterator[None]:
    """A script's background job ignores SIGINT, and what ``nohup`` starts SIGHUP; so may pytest."""
    before = {one: signal.getsignal(one) for one in ENDING}
    for one in ENDING:
        signal.signal(one, signal.SIG_DFL)
    yield
    for one, handler in before.items():
        signal.signal(one, handler)


@pytest.mark.parametrize("number", ENDING)
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


@pytest.mark.parametrize("number", ENDING)
def test_what_was_ignored_stays_so(number: signal.Signals) -> None:
    signal.signal(number, signal.SIG_IGN)
    with signals_clean_up():
        signal.raise_signal(number)
    assert signal.getsignal(number) is signal.SIG_IGN
