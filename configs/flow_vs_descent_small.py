"""The same in less than a minute: three flows, three rates, one portrait."""

import ml_collections

from configs import flow_vs_descent


def get_config() -> ml_collections.ConfigDict:
    config = flow_vs_descent.get_config()
    config.flows = "gradient_flow,order_2,order_3,principal"
    config.learning_rates = "0.006:0.06:3"
    config.shown_rates = "0.25"
    config.portraits = "quadratic"
    return config
