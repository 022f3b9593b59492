from __future__ import annotations

from service.api.heads import LONGEST, MOST, Head, Heads


def head(request_id: str = "") -> Head:
    return Head(b"", 1, True, request_id, b"")


def test_a_head_is_found_by_its_bytes_alone():
    heads = Heads()
    heads.keep(b"one", head())
    assert heads.find(b"one") == head()
    assert heads.find(b"other") is heads.find(b"") is None


def test_what_will_not_come_again_is_not_kept():
    heads = Heads()
    heads.keep(b"named", head("mine"))
    heads.keep(bytes(LONGEST + 1), head())
    heads.keep(bytes(LONGEST), head())
    assert heads.find(b"named") is heads.find(bytes(LONGEST + 1)) is None
    assert heads.find(bytes(LONGEST)) == head()


def test_no_more_than_so_many_are_kept():
    heads = Heads()
    for number in range(3 * MOST):
        heads.keep(b"%d" % number, head())
        assert heads.find(b"%d" % number), "the last is"
    assert sum(heads.find(b"%d" % number) is not None for number in range(3 * MOST)) <= MOST
