"""The same in less than two minutes: 2 games x 2 ways to play them, at 24 x 24 learning rates."""

import ml_collections

from configs import bilinear_quadratic_games


def get_config() -> ml_collections.ConfigDict:
    config = bilinear_quadratic_games.get_config()
    config.games = "bilinear,quadratic_0.2"
    config.plays = "simultaneous,alternating"
    config.learning_rates = "0.05:6:24"
    config.theta_rates = "0.05:6:24"
    return config
