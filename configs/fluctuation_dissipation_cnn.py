"""Yaida's convolutional network, at half its channels, with momentum 0.9, on digits."""

import ml_collections

from configs import fluctuation_dissipation


def get_config() -> ml_collections.ConfigDict:
    config = fluctuation_dissipation.get_config()
    config.data = "digits"
    # On 8 x 8 digits two stages of pooling leave 2 x 2. With --config.data=cifar10 the published
    # one is channels=(16, 20, 20), kernel_size=5.
    config.model_args = (
        "channels=(8, 10),kernel_size=3,strides=1,pooling='max',initialization='glorot_uniform'"
    )
    config.model = "cnn"
    config.batch_size = 20
    config.momentum = 0.9
    config.learning_rates = "0.005,0.01,0.02,0.05"
    config.steps = 6000
    config.record_every = 151
    return config
