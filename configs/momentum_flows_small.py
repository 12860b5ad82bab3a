"""The same in less than a minute: digits, narrow networks, two problems, three learning rates."""

import ml_collections

from configs import momentum_flows


def get_config() -> ml_collections.ConfigDict:
    config = momentum_flows.get_config()
    config.learning_rates = "0.001,0.0005,0.00025"
    config.problems = "quadratic,banana"
    config.momenta = "0,0.9"
    config.data = "digits"
    config.train_size = 300
    config.classifier_widths = "(16,)"
    config.autoencoder_widths = "(16,8,16)"
    config.steps = 100
    return config
