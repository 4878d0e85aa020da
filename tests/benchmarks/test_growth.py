"""Nothing grows faster than what it is of."""

from benchmarks.growth import Growth, growths, table


def test_nothing_grows_above_linear():
    found = growths()
    assert len({each.axis for each in found}) == 7
    assert [each for each in found if not each.is_linear] == []
    assert all(value > 0 for each in found for value in each.values)
    assert len(table(found)) == len(found) + 2


def test_what_grows_faster_is_found():
    assert not Growth("tokens", "work", (1, 2, 4), (1.0, 4.0, 16.0)).is_linear
    assert Growth("tokens", "work", (1, 2, 4), (1.0, 2.0, 4.0)).is_linear
