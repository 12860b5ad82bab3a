"""Neural networks as flax linen modules, and their losses as pure functions."""

from driftlab.models.activations import activation_function
from driftlab.models.cnn import CNN, LeNet5
from driftlab.models.convolution import Convolution, convolution
from driftlab.models.creation import apply_function, create, initialize, names
from driftlab.models.dense import Dense
from driftlab.models.initializers import initializer
from driftlab.models.linear import DeepLinear, end_to_end_matrix
from driftlab.models.losses import accuracy, cross_entropy, logistic, squared_error
from driftlab.models.mlp import MLP
from driftlab.models.normalization import Normalization
from driftlab.models.pooling import average_pool, max_pool
from driftlab.models.resnet import ResNet
from driftlab.models.two_layer_relu import TwoLayerReLU, output_signs
from driftlab.models.vgg import VGG, VGG11_STAGES

__all__ = [
    "CNN",
    "MLP",
    "VGG",
    "VGG11_STAGES",
    "Convolution",
    "DeepLinear",
    "Dense",
    "LeNet5",
    "Normalization",
    "ResNet",
    "TwoLayerReLU",
    "accuracy",
    "activation_function",
    "apply_function",
    "average_pool",
    "convolution",
    "create",
    "cross_entropy",
    "end_to_end_matrix",
    "initialize",
    "initializer",
    "logistic",
    "max_pool",
    "names",
    "output_signs",
    "squared_error",
]
