import numpy as np
import pytest

from experiments import flags


def test_values():
    np.testing.assert_allclose(flags.parse_values("1e-3:1:4", "x"), [1e-3, 1e-2, 1e-1, 1])
    np.testing.assert_allclose(flags.parse_values("0:1:3:linear", "x"), [0, 0.5, 1])
    np.testing.assert_array_equal(flags.parse_values("0.5, -2,1e3", "x"), [0.5, -2, 1e3])
    np.testing.assert_array_equal(flags.parse_values("1:1:1", "x"), [1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "x is empty"),
        ("1:2", "needs start, stop and count"),
        ("1::3", "needs start, stop and count"),
        ("1:2:3:4", "needs start, stop and count"),
        ("1:2:x", "count 'x' is not an integer"),
        ("1:2:0", "at least 1"),
        ("0:1:3", "positive ends"),
        ("1:1:3", "are equal"),
        ("1,two", "'two' is not a number"),
    ],
)
def test_values_that_are_none(text, message):
    with pytest.raises(ValueError, match=message):
        flags.parse_values(text, "x")


def test_positive():
    with pytest.raises(ValueError, match="every value must be positive"):
        flags.parse_values("1,0", "x", positive=True)
    with pytest.raises(ValueError, match="every value must be positive"):
        flags.parse_values("nan", "x", positive=True)


def test_seeds():
    assert flags.parse_seeds("3") == [0, 1, 2]
    assert flags.parse_seeds(2) == [0, 1]
    assert flags.parse_seeds("7,5") == [7, 5]
    assert flags.parse_seeds("0,4") == [0, 4]
    for text in ("0", "-1", "1.5", "", "a,b"):
        with pytest.raises(ValueError, match="seeds="):
            flags.parse_seeds(text)


def test_arguments():
    assert flags.parse_arguments("", "x") == {}
    assert flags.parse_arguments("a=1,b=(2,3),c='d',e=True", "x") == {
        "a": 1, "b": (2, 3), "c": "d", "e": True,
    }  # fmt: skip
    for text in ("a", "a=", "a=b", "1", "a=1)+(2", "**{}"):
        with pytest.raises(ValueError, match="give key=value"):
            flags.parse_arguments(text, "x")
