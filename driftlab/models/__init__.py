"""Neural networks as flax linen modules, and their losses as pure functions."""

from driftlab.models.activations import activation_function
from driftlab.models.cnn import CNN, LeNet5
from driftlab.models.convolution import Convolution, convolution
from driftlab.models.creation import apply_function, create, initialize, names
from driftlab.models.dense import Dense
from driftlab.models.gan import (
    ConvolutionalDiscriminator,
    ConvolutionalGenerator,
    GANNetworks,
    MLPGenerator,
    convolution_layers,
    dcgan,
    leaky_relu,
    mlp_gan,
    sngan,
)
from driftlab.models.gan_losses import gan_draw, gan_losses
from driftlab.models.initializers import initializer
from driftlab.models.linear import DeepLinear, end_to_end_matrix
from driftlab.models.losses import accuracy, cross_entropy, logistic, squared_error
from driftlab.models.margin_losses import exponential, log_exponential, log_logistic
from driftlab.models.mlp import MLP
from driftlab.models.normalization import Normalization
from driftlab.models.pooling import average_pool, max_pool
from driftlab.models.relation_embedding import draw_relations, initial_table, relation_loss
from driftlab.models.resnet import ResNet
from driftlab.models.transposed import TransposedConvolution, transposed_convolution
from driftlab.models.two_layer_relu import TwoLayerReLU, output_signs
from driftlab.models.vgg import VGG, VGG11_STAGES

__all__ = [
    "CNN",
    "MLP",
    "VGG",
    "VGG11_STAGES",
    "Convolution",
    "ConvolutionalDiscriminator",
    "ConvolutionalGenerator",
    "DeepLinear",
    "Dense",
    "GANNetworks",
    "LeNet5",
    "MLPGenerator",
    "Normalization",
    "ResNet",
    "TransposedConvolution",
    "TwoLayerReLU",
    "accuracy",
    "activation_function",
    "apply_function",
    "average_pool",
    "convolution",
    "convolution_layers",
    "create",
    "cross_entropy",
    "dcgan",
    "draw_relations",
    "end_to_end_matrix",
    "exponential",
    "gan_draw",
    "gan_losses",
    "initial_table",
    "initialize",
    "initializer",
    "leaky_relu",
    "log_exponential",
    "log_logistic",
    "logistic",
    "max_pool",
    "mlp_gan",
    "names",
    "output_signs",
    "relation_loss",
    "sngan",
    "squared_error",
    "transposed_convolution",
]
