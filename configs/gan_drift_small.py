"""8 x 8 digits and multilayer perceptrons, 4 rates x 2 seeds: two minutes on two cores."""

import ml_collections

from configs import gan_drift


def get_config() -> ml_collections.ConfigDict:
    config = gan_drift.get_config()
    config.learning_rates = "0.04:0.32:4"
    config.seeds = "2"
    config.adam_factor = 0.01
    config.data = "digits"
    config.networks = "mlp"
    config.widths = "64,64"
    config.latent_size = 16
    config.batch_size = 32
    config.num_samples = 360
    config.num_features = 32
    config.classifier_steps = 1500
    config.classifier_accuracy = 0.95
    config.steps = 1500
    config.record_every = 125
    return config
