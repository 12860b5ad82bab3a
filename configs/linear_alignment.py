"""Points of a plane and two digits of mnist5k, 4 learning rates; a CNN on mnist5k."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # Of `plane` and `images`: h where the step size is "constant", the factor of
    # min(1 / beta(R), 1) where it is "proved" (1: the step sizes of the theorem).
    config.learning_rates = "0.3,1,3,10"
    config.seeds = "1"
    # Records of each of these runs.
    config.records = 100

    # Points of the unit disc, at least this far from a line through 0.
    config.plane_examples = 20
    config.plane_gap = 0.3
    config.plane_widths = "8,8,8"
    config.plane_steps = 30000

    # Two classes, separable by a hyperplane through 0, and how many examples (0: all).
    config.data = "mnist5k"
    config.labels = "binary:0,1"
    config.train_size = 100
    config.images_widths = "16,16,16"
    config.images_steps = 4000

    # Multiplies the initial matrices, drawn with variance 1 / inputs.
    config.scale = 0.7

    # Gradient flow: the length of its path, and relative tolerances of the solver.
    config.flow_length = 7.0
    config.flow_records = 35
    config.tolerances = "1e-3,1e-6,1e-9"

    # Balancedness up to time n h, at effective learning rates h that divide it.
    config.drift_rates = "0.8,0.4,0.2,0.1,0.05"
    config.drift_time = 24.0
    # plane, images, or both.
    config.drift_problems = "plane"
    # The first three are what the claims compare.
    config.drift_dynamics = "gradient_descent,gradient_flow,modified_flow,heavy_ball,nesterov,adam"
    config.drift_widths = "6,5"
    config.drift_tolerance = 1e-9
    config.momentum = 0.5
    # Adam's learning rate is this times h.
    config.adam_factor = 0.1

    # The dense layers of a convolutional network.
    cnn = ml_collections.ConfigDict()
    cnn.data = "mnist5k"
    cnn.train_size = 0
    cnn.normalization = "standard"
    cnn.labels = "classes"
    cnn.model = "cnn"
    # PyTorch's default: uniform between -+ 1 / sqrt(inputs), of variance 1 / (3 inputs).
    cnn.model_args = (
        "channels=(16, 32), dense_widths=(256, 128), initialization='lecun_uniform', "
        "scale=0.57735026919"
    )
    cnn.loss = "cross_entropy"
    cnn.sampling = "shuffled_epochs"
    cnn.batch_size = 64
    cnn.learning_rates = "0.1"
    cnn.seeds = "1"
    cnn.steps = 600
    cnn.records = 30
    config.cnn = cnn

    config.divergence_factor = 1e3
    config.seed = 0
    return config
