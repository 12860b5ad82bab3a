"""WordNet's mammals as in Becigneul and Ganea: every method, both moves, link prediction."""

import ml_collections

from configs import wordnet_poincare


def get_config() -> ml_collections.ConfigDict:
    config = wordnet_poincare.get_config()
    config.relations = "mammals"
    config.held_out = 0.02
    config.batch_size = 10
    config.burn_in_epochs = 20
    config.optimizers = "rsgd,radagrad,radam,ramsgrad"
    config.moves = "retraction,exp"
    config.learning_rates = "0.001,0.003,0.01,0.03,0.1,0.3,1.0,3.0"
    config.seeds = "3"
    config.epochs = 100
    config.record_epochs = 10
    config.ranked_things = 0
    config.probed_pairs = 0
    config.disc_epochs = 200
    return config
