"""timm must be importable while these tests are collected."""

from spared_fm.torchvision_ops import declare_missing_operators

declare_missing_operators()
