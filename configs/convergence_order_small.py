"""The same in a minute: 3 terms on the network, of 100 digits, and 4 on the toy problem."""

import ml_collections

from configs import convergence_order


def get_config() -> ml_collections.ConfigDict:
    config = convergence_order.get_config()
    config.learning_rates = "0.16:0.002:9"
    config.train_size = 100
    config.toy_terms = 4
    config.network_terms = 3
    return config
