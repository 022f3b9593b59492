from __future__ import annotations

import pytest

from service.door import Door
from service.errors import UnavailableError


def test_as_many_as_it_has_places_for_are_under_way():
    door = Door(2)
    with door, door:
        assert door.under_way == 2
        with pytest.raises(UnavailableError, match=r"2 requests .* limit is 2") as one:
            door.__enter__()
        assert one.value.retry_after == 1
    with door:
        assert door.under_way == 1


def test_a_request_that_fails_gives_its_place_back():
    door = Door(1)
    with pytest.raises(ValueError, match="damaged"), door:
        raise ValueError("damaged")
    assert door.under_way == 0
