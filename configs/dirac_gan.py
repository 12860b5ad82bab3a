"""13 ways to play the Dirac GAN and 4 flows, at 3 learning rates and 3 ratios of the players'."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # phi's learning rates; theta's are these times the ratios. 0.1 with ratio 1 is the reference's.
    config.learning_rates = "0.02,0.1,0.5"
    config.ratios = "0.5,1,2"
    config.steps = 1000

    # Some of experiments.dirac_gan_models.PLAYS; empty for all. Modified flows of the first three
    # are drawn.
    config.plays = ""

    # Of symplectic gradient adjustment and consensus optimisation; the published notebook's
    # regulariser has a quarter of the learning rate more.
    config.weight = 0.3

    # Slopes in h: errors after this time h * rounds, at duration / n for whole n near these rates.
    config.duration = 8.0
    config.fitted_rates = "0.004:0.04:4"
    config.fitted_ratios = "1,2"

    config.seed = 0
    return config
