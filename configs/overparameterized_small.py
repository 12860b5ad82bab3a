"""Digits with their own and with random labels in less than two minutes, and unstable rates."""

import ml_collections

from configs import overparameterized_labels


def get_config() -> ml_collections.ConfigDict:
    config = overparameterized_labels.get_config()
    config.data = "digits"
    config.examples = 40
    # Pixels by themselves: inputs far enough from parallel for a few hundred steps to fit them.
    config.normalization = "per_feature"
    config.seeds = "1"
    config.widths = "128,512,2048"
    config.learning_rates = "1.5,2.5"
    config.steps = 200
    config.record_every = 5
    config.kernel_every = 10
    return config
