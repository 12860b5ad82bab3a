"""A small convolutional network on cifar10, the paper's grids: for an accelerator."""

import ml_collections

from configs import a2grad


def get_config() -> ml_collections.ConfigDict:
    config = a2grad.get_config()
    config.data = "cifar10"
    config.normalization = "standard"
    config.networks = "cifarnet"
    # Two convolutions, pooling and a dense layer, as the paper's Cifarnet, whose local response
    # normalisation and dropout it lacks.
    config.cifarnet = ml_collections.ConfigDict()
    config.cifarnet.model = "cnn"
    config.cifarnet.model_args = (
        "channels=(64,64),kernel_size=5,strides=1,pooling='max',dense_widths=(384,192)"
    )
    config.cifarnet.epochs = 100
    config.beta = "1,10,50,100,1000"
    config.learning_rates = "1e-4,1e-3,1e-2,1e-1"
    return config
