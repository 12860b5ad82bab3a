"""7 networks x 2 learning rates x 3 seeds of SGD on mnist5k."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    config.learning_rates = "0.02,0.1"
    config.seeds = "3"

    # mlp; cnn, cnn_batch, cnn_layer; residual, residual_batch, residual_layer.
    config.networks = "mlp,cnn,cnn_batch,cnn_layer,residual,residual_batch,residual_layer"
    # Hidden units of the MLP; channels of the CNN's blocks, and the stride of its first layer (4
    # turns 28 x 28 pixels into 7 x 7).
    config.widths = (100, 100)
    config.channels = (8, 16, 32)
    config.stem_strides = 4

    config.data = "mnist5k"
    # Training examples (0: all), and their normalisation.
    config.train_size = 0
    config.normalization = "standard"
    # Examples a minibatch, of the training and of the measured gradients.
    config.batch_size = 32
    # Minibatch gradients a measurement, n: the floor is sqrt(n) / (n - 1).
    config.gradients = 50

    config.steps = 750
    # 125 steps are an epoch of 4000 examples.
    config.record_every = 125
    # Directions, training loss and accuracy at every n-th record.
    config.directions_every = 1
    config.divergence_factor = 1e3
    config.seed = 0
    return config
