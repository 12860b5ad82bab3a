"""Schedules on digits at equal epochs: adaptive ones, constant rates, steps by hand; 2 seeds."""

import ml_collections

from configs import fluctuation_dissipation_small


def get_config() -> ml_collections.ConfigDict:
    config = fluctuation_dissipation_small.get_config()
    config.sampling = "shuffled_epochs"
    config.learning_rates = "0.1,0.2"
    config.seeds = "2"
    config.schedules = "constant;step(0.5,0.75);ratio;norm_trend;sasa"
    config.steps = 20000
    config.record_every = 250
    config.evaluate_every = 1
    config.second_relation = False
    return config
