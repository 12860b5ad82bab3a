"""The same in two minutes: 2 terms on the toy problem, and 1 on a network, of 100 digits."""

import ml_collections

from configs import convergence_order


def get_config() -> ml_collections.ConfigDict:
    config = convergence_order.get_config()
    config.learning_rates = "0.5:0.001:9"
    config.time = 1.0
    config.train_size = 100
    config.toy_terms = 2
    config.network_terms = 1
    return config
