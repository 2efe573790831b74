"""What tasks print, on its way: sent in order, bounded while there is no broker, counted beyond."""

from __future__ import annotations

from dataclasses import replace

from zfarm.core.printouts import Printouts
from zfarm.messages import Action, Printed, Send
from zfarm.settings import Settings

LIMITS = replace(Settings(), output_burst_bytes=10)


def flushed(printouts: Printouts) -> list[Action]:
    """What is sent when the broker is there."""
    actions: list[Action] = []
    printouts.flush(actions)
    return actions


def test_what_was_printed_is_sent_once_and_in_order() -> None:
    printouts = Printouts(LIMITS)
    printouts.add(1, 1, b"a\n", 0)
    printouts.add(2, 2, b"b\n", 5)

    assert flushed(printouts) == [
        Send("broker", Printed(1, 1), [b"a\n"]),
        Send("broker", Printed(2, 2, 5), [b"b\n"]),
    ]
    assert flushed(printouts) == []


def test_without_a_broker_it_is_bounded_and_what_is_missing_is_counted() -> None:
    printouts = Printouts(LIMITS)
    printouts.add(1, 1, b"12345678\n", 0)
    printouts.add(1, 1, b"too much\n", 3)
    printouts.add(1, 1, b"\n", 0)

    assert flushed(printouts) == [
        Send("broker", Printed(1, 1), [b"12345678\n"]),
        Send("broker", Printed(1, 1, 12), [b"\n"]),
    ]
    printouts.add(1, 1, b"longer than all\n", 0)
    assert flushed(printouts) == [Send("broker", Printed(1, 1, 16), [b""])]
