from __future__ import annotations

from service import errors
from service.errors import Fault, GateError, InvalidError, StartupError


def tree(base: type[Exception]) -> list[type[Exception]]:
    return [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, base)]


def test_every_error_has_one_status_that_the_docstring_names():
    seen = {}
    for error in tree(GateError):
        if error is GateError:
            continue
        assert f"{error.__name__} " in errors.__doc__
        assert str(error.status) in errors.__doc__
        seen[error.kind] = error.status
    assert len(seen) == len(tree(GateError)) - 1
    assert all(f"{error.__name__} " in errors.__doc__ for error in tree(StartupError))


def test_a_place_is_given_once_and_kept():
    whole = InvalidError("bad", limit=3).at("/body")
    assert whole.faults == (Fault("/body", "bad", 3),)
    deep = InvalidError("bad", Fault("/pixels/0", "is bad")).at("/body/images/2")
    assert deep.faults == (Fault("/body/images/2/pixels/0", "is bad"),)
    assert type(deep) is InvalidError
