"""Every flow against what it models: two parameters, and a tanh network on 500 digits."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # h lambda_0: learning rates in units of the inverse of the sharpness at the start. An order is
    # fitted over the smallest decade in which rounding does not count, so two decades or more.
    config.learning_rates = "0.5:0.001:15"
    # Iterations with memory are compared after this time, in units of 1 / lambda_0.
    config.time = 2.0
    # "toy", "network", or both, and the most terms of a modified equation on each.
    config.problems = "toy,network"
    config.toy_terms = 5
    config.network_terms = 4
    # Only the flows whose name has one of these parts in it; "" for all.
    config.flows = ""

    # The network and its examples.
    config.data = "digits"
    config.train_size = 500
    config.model = "mlp"
    config.model_args = "widths=(16,),activation='tanh'"
    # Of the network's start.
    config.seed = 0
    return config
