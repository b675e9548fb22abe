"""Frozen networks, trained on ImageNet, whose features others are built on.

from tfcorr.backbones import backbone

features = backbone("resnet101", "imagenet")(images)   # {4: ..., 8: ..., 16: ..., 32: ...}
"""

from tfcorr.backbones.backbone import Backbone, backbone

__all__ = ["Backbone", "backbone"]
