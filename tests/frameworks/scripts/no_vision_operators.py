"""Lets torchvision be imported where its operators cannot be loaded: its wheels are built for CUDA, and torch here is built without.

Reading and transforming pictures, which is all that the scripts need, works without them. Import this before torchvision.
"""

import torch

torch.library.define("torchvision::nms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
torch.library.define("torchvision::qnms", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
