"""Small pictures of ten kinds of things, the task of Flower's text on embedded devices."""

from tff_kit.tasks.cifar10.task import Cifar10

__all__ = ["Cifar10"]
