import numpy as np
import pytest

from driftlab.flows import fitted_order, observed_orders


def test_a_power_law_has_its_order():
    rates = np.array([0.4, 0.1, 0.2])
    np.testing.assert_allclose(observed_orders(rates, 3 * rates**2.5), [2.5, 2.5], rtol=1e-12)
    assert fitted_order(rates, 3 * rates**2.5) == pytest.approx(2.5, rel=1e-12)


def test_orders_come_from_the_largest_rate_to_the_smallest():
    np.testing.assert_allclose(observed_orders([1.0, 2.0, 4.0], [1.0, 2.0, 8.0]), [2.0, 1.0])


def test_what_says_nothing_is_nan():
    assert np.isnan(observed_orders([1.0, 0.5], [1.0, 0.0])).all()
    assert np.isnan(fitted_order([1.0, 0.5, 0.25], [1.0, np.inf, 1.0]))


@pytest.mark.parametrize(
    ("rates", "errors", "message"),
    [
        ([0.1], [0.1], "2 or more"),
        ([0.1, 0.2], [0.1], "same length"),
        ([0.1, -0.2], [0.1, 0.1], "must be positive and differ"),
        ([0.1, 0.1], [0.1, 0.1], "must be positive and differ"),
    ],
)
def test_bad_input(rates, errors, message):
    with pytest.raises(ValueError, match=message):
        observed_orders(rates, errors)
