"""Two classes of MNIST with their own and with random labels; descent, flow and both layers."""

import ml_collections

from configs import overparameterized


def get_config() -> ml_collections.ConfigDict:
    config = overparameterized.get_config()
    config.data = "mnist5k"
    config.examples = 64
    config.labels = "real,random"
    config.trainings = "descent,flow,both_layers"
    config.widths = "256,512,1024,2048"
    config.learning_rates = "1.5"
    config.scaled_rates = True
    config.seeds = "1"
    config.steps = 300
    config.record_every = 10
    config.kernel_every = 10
    return config
