"""The same in less than two minutes: five ways to play, one learning rate, two ratios."""

import ml_collections

from configs import dirac_gan


def get_config() -> ml_collections.ConfigDict:
    config = dirac_gan.get_config()
    config.learning_rates = "0.1"
    config.ratios = "0.5,1"
    config.plays = "simultaneous,alternating,alternating_theta_first,interaction_cancelled,rk4"
    config.fitted_rates = "0.02:0.1:3"
    config.fitted_ratios = "2"
    return config
