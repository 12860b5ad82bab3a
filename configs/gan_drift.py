"""fashion_mnist (--data_dir) with DCGANs of a quarter of the published channels."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # Of the discriminator; the generator's is ratio times that. Without normalisation SGD fails
    # on these networks at 0.03 already.
    config.learning_rates = "0.001:0.032:6"
    config.ratios = "1"
    config.seeds = "3"
    # Adam's learning rates are these times that of the descents.
    config.adam_factor = 0.1
    config.methods = "simultaneous,alternating,cancelled,self_strengthened,sga,consensus,rk4,adam"

    config.data = "fashion_mnist"
    config.train_size = 0
    # mlp (see widths), dcgan or sngan (see width and normalization).
    config.networks = "dcgan"
    config.widths = "128,128"
    config.width = 0.25
    config.normalization = "none"
    # Power iterations a call of the discriminator's spectral normalisation; 0 for none.
    config.spectral_iterations = 0
    config.latent_size = 32
    # saturating (zero-sum), non_saturating, least_squares, hinge or wasserstein.
    config.loss = "saturating"
    config.gradient_penalty = 10.0
    config.batch_size = 64

    # Coefficients of the self terms of the drift, of SGA and of consensus optimisation (0.1 of
    # which already stops both players: their gradients vanish).
    config.self_multiplier = 1.0
    config.sga_weight = 0.1
    config.consensus_weight = 0.01
    # Drift terms from the two halves of a batch ("unbiased") or from all of it twice ("biased").
    config.estimator = "unbiased"
    # Of the generator's moving average, which then is what is scored; 0 for none.
    config.average_decay = 0.0

    # Samples scored a record, in how many parts; and the classifier that scores them.
    config.num_samples = 1000
    config.splits = 5
    config.num_features = 64
    config.classifier_steps = 3000
    config.classifier_accuracy = 0.85

    config.steps = 20000
    config.record_every = 1000
    # The Hamiltonian grows by orders of magnitude while a GAN learns: only a blow-up is one.
    config.divergence_factor = 1e8
    config.seed = 0
    return config
