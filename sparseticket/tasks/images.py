"""The image tasks: importing this module registers them. A new one is a subclass of :class:`ImageTask` in its file."""

from sparseticket.tasks.cifar_binary import Cifar10, Cifar100
from sparseticket.tasks.digits import Digits
from sparseticket.tasks.fashion_mnist import FashionMnist
from sparseticket.tasks.image_folder import ImageFolder
from sparseticket.tasks.image_task import ImageTask
from sparseticket.tasks.imagenet import ImageNet
from sparseticket.tasks.moco import MoCo
from sparseticket.tasks.simclr import SimCLR
from sparseticket.tasks.svhn import Svhn
from sparseticket.tasks.visda import VisDA

__all__ = [
    "Cifar10",
    "Cifar100",
    "Digits",
    "FashionMnist",
    "ImageFolder",
    "ImageNet",
    "ImageTask",
    "MoCo",
    "SimCLR",
    "Svhn",
    "VisDA",
]
