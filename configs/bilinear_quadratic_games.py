"""5 games x 3 ways to play them, each at 64 x 64 learning rates."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    config.games = "bilinear,quadratic_0.09,quadratic_0.2,one_sided,common_payoff"
    config.plays = "simultaneous,alternating,alternating_1_to_2"
    # phi's learning rates, and theta's.
    config.learning_rates = "0.05:6:64"
    config.theta_rates = "0.05:6:64"

    config.steps = 2000
    config.record_every = 20
    # A lane is called unstable if it grew by more than this factor in the second half of its run.
    config.growth = 1.25

    config.seed = 0
    return config
