"""zfarm/errors.py: its docstring draws the tree of its classes, and every error survives pickling."""

from __future__ import annotations

import inspect
import pickle
import re
from typing import Any

import pytest

from zfarm import errors

LINE = re.compile(r"^[ |]*(?:[|`]- )?(?P<name>[A-Z]\w+)(?: ?\((?P<bases>[\w, ]+)\))?(?:\s{2,}(?P<why>.+))?$")


def drawn() -> dict[str, tuple[str, set[str]]]:
    """Name to (parent in the drawing, other bases), read from the docstring."""
    block = (errors.__doc__ or "").split("\n\n")[1]
    tree: dict[str, tuple[str, set[str]]] = {}
    path: list[str] = []
    for line in block.splitlines():
        match = LINE.match(line)
        assert match, f"the tree has a line that cannot be read: {line!r}"
        name = match["name"]
        depth = line.index(name) // 3
        path[depth:] = [name]
        bases = {base.strip() for base in (match["bases"] or "").split(",") if base.strip()}
        tree[name] = (path[depth - 1] if depth else "", bases)
        assert match["why"], f"{name} stands in the tree without a word"
    return tree


def classes() -> dict[str, type[errors.FarmError]]:
    found = vars(errors).values()
    return {
        kind.__name__: kind for kind in found if isinstance(kind, type) and issubclass(kind, errors.FarmError)
    }


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    real = {}
    for name, kind in classes().items():
        parent = next((base.__name__ for base in kind.__bases__ if issubclass(base, errors.FarmError)), "")
        real[name] = (parent, {base.__name__ for base in kind.__bases__} - {parent})

    assert drawn() == real


def test_every_error_is_offered_and_explained() -> None:
    assert set(classes()) <= set(errors.__all__)
    assert all(inspect.getdoc(kind) for kind in classes().values())


SAMPLES: dict[str, Any] = {"str": "text", "int": 3, "float": 0.5, "bool": True, "bytes": b"x"}


def sample(kind: type[BaseException]) -> BaseException:
    """An instance with every constructor argument given, by its annotation, and unlike its default."""
    if kind.__init__ in (Exception.__init__, OSError.__init__, BaseException.__init__):
        return kind("what happened, to what, and what to do")
    given: dict[str, Any] = {}
    for name, parameter in list(inspect.signature(kind.__init__).parameters.items())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        annotation = str(parameter.annotation)
        if "Death" in annotation:
            given[name] = (errors.Death("host", "worker", 9, 0, "killed by SIGKILL"),)
        elif annotation == "bool":
            given[name] = not parameter.default
        else:
            known = SAMPLES.get(annotation.partition(" | ")[0])
            assert known is not None, f"{kind.__name__}: no sample for {name}: {annotation}"
            given[name] = known
    return kind(**given)


@pytest.mark.parametrize(
    "kind", [*classes().values(), errors.RemoteTraceback], ids=lambda kind: kind.__name__
)
@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_an_error_comes_out_of_a_pickle_as_it_went_in(kind: type[BaseException], protocol: int) -> None:
    error = sample(kind)

    copy = pickle.loads(pickle.dumps(error, protocol))
    assert type(copy) is kind
    assert copy.args == error.args
    assert vars(copy) == vars(error)
    assert str(copy) == str(error)
