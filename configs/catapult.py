"""206 scaled learning rates x 3 seeds of gradient descent on two networks of two layers."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # h lambda_0, learning rates in units of the inverse of the kernel's top eigenvalue at step 0;
    # those of the reference table are added.
    config.learning_rates = "0.5:64:200"
    config.seeds = "3"
    # Hidden units m of both networks.
    config.width = 512
    # |f_0| / lambda_0 of the linear network. With m = 512 this is the start of the reference
    # values in docs/experiments/catapult.md.
    config.initial_output = 0.532

    # The ReLU network's examples: a data set, how many (0: all), binary or binary:a,b.
    config.data = "digits"
    config.train_size = 128
    config.labels = "binary"

    config.steps = 300
    # The peak of the loss lasts a step or two: every iteration is recorded.
    config.record_every = 1
    # Sharpness and the kernel's top eigenvalue at every n-th record.
    config.curvature_every = 30
    # The loss rises by about m before it falls, so a lane that rose by this many times is lost.
    config.divergence_factor = 1e6
    config.seed = 0
    return config
