"""The same in a minute: 2 terms on the network, of 100 digits, and 3 on the toy problem."""

import ml_collections

from configs import convergence_order


def get_config() -> ml_collections.ConfigDict:
    config = convergence_order.get_config()
    config.learning_rates = "0.5:0.001:12"
    config.train_size = 100
    config.toy_terms = 3
    config.network_terms = 2
    return config
