"""Momentum beside its flows: four learning rates, three problems; two networks in training."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # Part 1: distances between optimiser and flows, in 64 bits.
    # h, after the same slow time for all: steps is that of the smallest one.
    config.learning_rates = "0.002,0.001,0.0005,0.00025"
    config.momentum = 0.8
    config.time = 0.4
    # Of: quadratic, banana, network (64-16-10 on digits).
    config.problems = "quadratic,banana,network"
    config.network_size = 200

    # Part 2: training at one effective learning rate h / (1 - m).
    # Momenta of heavy ball and Nesterov; 0 is gradient descent.
    config.momenta = "0,0.5,0.9,0.97"
    config.data = "mnist5k"
    config.train_size = 1000
    # Of: classifier, autoencoder.
    config.networks = "classifier,autoencoder"
    config.classifier_widths = "(128,)"
    config.autoencoder_widths = "(128,32,128)"
    config.classifier_learning_rate = 0.2
    config.autoencoder_learning_rate = 0.004
    config.seeds = "1"
    config.steps = 500
    config.record_every = 2

    config.divergence_factor = 1e3
    config.seed = 0
    return config
