"""How users say where a call may run: resources with amounts, and labels; checked, in the form that travels.

A resource is a name and an amount, counted exactly in thousandths: what a worker has of it, or what a call
takes while it runs. A label is a word or ``name=value`` that a worker has and a call may need. They mean
nothing to zfarm itself: it counts and compares.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation
from numbers import Real
from typing import Any, Final, NamedTuple

from zfarm.arguments import shown
from zfarm.errors import ConfigurationError
from zfarm.messages import Demand

__all__ = ["RESERVED", "Stock", "demand_labels", "demand_of", "demand_resources", "stock"]

RESERVED: Final = "zfarm."
"""Labels that begin so are given by zfarm: calls may need them, and no worker says that it has them."""
COUNT_MAX: Final = 64
"""Of resources and of labels, for each worker and call."""
AMOUNT_MAX: Final = 10**9
THOUSANDTHS: Final = 1000
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_LABEL: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}(=[A-Za-z0-9_.:/-]{1,128})?")
_NAMES_HINT: Final = "use at most 64 letters, digits, dots, dashes and underscores, no digit first"


class Stock(NamedTuple):
    """What a worker has: resources in thousandths, and labels."""

    resources: dict[str, int]
    labels: tuple[str, ...]


def demand_resources(value: Any) -> tuple[tuple[str, int], ...]:
    """The option ``resources`` in the form that travels.

    Raises:
        TypeError, ValueError: it is no mapping of names to amounts greater than 0.
    """
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        raise TypeError(
            'resources must be a mapping of names to amounts, such as {"gpu": 1}, '
            f"not {type(value).__name__}"
        )
    if len(value) > COUNT_MAX:
        raise ValueError(f"resources names {len(value)} resources, at most {COUNT_MAX} are possible")
    return tuple(sorted((_name(name), _thousandths(name, amount)) for name, amount in value.items()))


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"the name of a resource must be a string, not {name!r}")
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name[:100]!r} is no name of a resource: {_NAMES_HINT}")
    return name


def _thousandths(name: str, amount: Any) -> int:
    if isinstance(amount, bool) or not isinstance(amount, int | float | Decimal):
        raise TypeError(f"the amount of resource {name!r} must be a number, not {amount!r}")
    try:
        exact = Decimal(str(amount)) * THOUSANDTHS
    except (ArithmeticError, ValueError):  # a signalling NaN, or far beyond what can be
        exact = Decimal("nan")
    if not exact.is_finite() or not 0 < exact <= AMOUNT_MAX * THOUSANDTHS:
        raise ValueError(
            f"the amount of resource {name!r} must be greater than 0 and at most {AMOUNT_MAX}, "
            f"not {shown(amount)}"
        )
    if exact != int(exact):
        raise ValueError(
            f"resource {name!r} is counted in thousandths, and {amount!r} is no whole number of them"
        )
    return int(exact)


def demand_labels(value: Any) -> tuple[str, ...]:
    """The option ``labels`` in the form that travels.

    Raises:
        TypeError, ValueError: it is no label, no mapping of names to values, and no collection of labels.
    """
    if value is None:
        return ()
    if isinstance(value, Mapping):
        value = [f"{name}={_worth(name, worth)}" for name, worth in value.items()]
    elif isinstance(value, str):
        value = [value]
    elif not isinstance(value, Iterable):
        raise TypeError(
            'labels must be a label such as "zone=a", a collection of them, or a mapping such as '
            f'{{"zone": "a"}}, not {type(value).__name__}'
        )
    labels = tuple(sorted({_label(label) for label in value}))
    if len(labels) > COUNT_MAX:
        raise ValueError(f"labels names {len(labels)} labels, at most {COUNT_MAX} are possible")
    return labels


def _worth(name: Any, worth: Any) -> Any:
    if isinstance(worth, bool) or not isinstance(worth, str | Real):
        raise TypeError(f"the value of label {name!r} must be a string or a number, not {worth!r}")
    return worth


def _label(label: Any) -> str:
    if not isinstance(label, str):
        raise TypeError(f"a label must be a string, not {label!r}")
    if not _LABEL.fullmatch(label):
        raise ValueError(
            f"{label[:300]!r} is no label, which is a word or name=value: for the name {_NAMES_HINT}; "
            "for the value at most 128 of these, colons and slashes"
        )
    return label


def demand_of(
    resources: tuple[tuple[str, int], ...], labels: tuple[str, ...], exclusive: bool = False
) -> Demand | None:
    """What a call asks of its worker; None: nothing."""
    return Demand(resources, labels, exclusive) if resources or labels or exclusive else None


def stock(resources: Iterable[str] = (), labels: Iterable[str] = ()) -> Stock:
    """What a worker has, from words such as ``gpu=2`` and ``zone=a``; what is not given is taken from the
    environment: ZFARM_RESOURCES and ZFARM_LABELS, each a list with commas.

    Raises:
        ConfigurationError: a word that cannot be; the text says which, and what could.
    """
    has: dict[str, int] = {}
    for origin, word in _words("--resource", resources, "ZFARM_RESOURCES"):
        name, equals, amount = word.partition("=")
        try:
            if not equals:
                raise ValueError(f"{word!r} has no amount: write {word}=1")
            if _name(name) in has:
                raise ValueError(f"resource {name!r} is given twice")
            has[name] = _thousandths(name, _number(amount))
        except ValueError as error:
            raise ConfigurationError(f"{origin}: {error}") from None
    bears: dict[str, None] = {}
    for origin, word in _words("--label", labels, "ZFARM_LABELS"):
        try:
            if _label(word).startswith(RESERVED):
                raise ValueError(f"{word!r}: labels that begin with {RESERVED!r} are given by zfarm itself")
            bears[word] = None
        except ValueError as error:
            raise ConfigurationError(f"{origin}: {error}") from None
    if max(len(has), len(bears)) > COUNT_MAX:
        raise ConfigurationError(f"a worker has at most {COUNT_MAX} resources and {COUNT_MAX} labels")
    return Stock(has, tuple(bears))


def _number(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        raise ValueError(f"{text!r} is no amount: write a number such as 2 or 0.5") from None


def _words(option: str, given: Iterable[str], variable: str) -> list[tuple[str, str]]:
    words = [(option, word) for word in given]
    if not words:
        words = [(variable, word.strip()) for word in os.environ.get(variable, "").split(",") if word.strip()]
    return words
