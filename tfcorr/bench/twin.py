"""The published pipeline in PyTorch with the weights of one of our models: a peer that computes the same.

As in the published code features are (batch, channel, y, x), the matcher correlates all unfolded patches by a
convolution, and the input is enlarged by Pillow. The deformable convolution runs through ONNX Runtime, since
PyTorch has none and the usual one (one thread, one sample at a time) is no measure. Everything is float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from tfcorr.bench import peers
from tfcorr.refsr.extractor import CONVOLUTIONS, IMAGE_MEAN, IMAGE_STD
from tfcorr.refsr.matching import PATCH_SIZE
from tfcorr.refsr.model import C2Matching
from tfcorr.refsr.restorer import LEVEL_FEATURES, LEVEL_SCALES, LEVELS

_SCALE = 4
_LEAKY_SLOPE = 0.1


class TorchTwin:
    """A model of ours in PyTorch.

    Args:
        model: a built model of the published kind, without gate and base, whose weights are copied.
        threads: that PyTorch and ONNX Runtime may use.

    Raises:
        tfcorr.bench.peers.PeerUnavailableError: PyTorch, ONNX or ONNX Runtime is not installed; or the model
            has what the published network has not.
    """

    def __init__(self, model: C2Matching, threads: int):
        for part in ("gate", "base"):
            if getattr(model.restorer, part) is not None:
                raise peers.PeerUnavailableError(f"the PyTorch twin: it has no {part}, which this model has")
        self._torch = peers.package("torch")
        self._torch.set_num_threads(threads)
        self._nn = self._torch.nn.functional
        self._threads = threads
        self._config = model.restorer.config
        self._query = self._extractor(model.correspondence.input_extractor)
        self._reference = self._extractor(model.correspondence.reference_extractor)
        self._vgg = None if model.vgg is None else self._extractor(model.vgg)
        restorer = model.restorer
        self._first = self._convolution(restorer.conv_first)
        self._content = [self._block(block) for block in restorer.content_body]
        self._levels = {name: self._level(level) for name, level in restorer.levels.items()}
        self._tails = {
            name: self._convolution(getattr(restorer, name), shuffled=name in ("tail_small", "tail_medium"))
            for name in ("tail_small", "tail_medium", "tail_large1", "tail_large2")
        }

    @staticmethod
    def version() -> str:
        """The versions of both packages, for a table."""
        torch, onnxruntime = peers.package("torch"), peers.package("onnxruntime")
        return f"{torch.__version__.split('+')[0]}, ONNX Runtime {onnxruntime.__version__}"

    def __call__(self, low_res: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """(h, w, 3) and (4h, 4w, 3) uint8 -> float32 (4h, 4w, 3), not clamped."""
        torch = self._torch
        height, width = low_res.shape[:2]
        enlarged = Image.fromarray(low_res).resize(
            (_SCALE * width, _SCALE * height), Image.Resampling.BICUBIC
        )
        with torch.inference_mode():
            query = self._features(self._query, self._image(np.asarray(enlarged)))
            sharp = self._image(reference)
            features = self._features(self._reference, sharp)
            index = self._match(query["conv3_1"], features["conv3_1"])
            if self._vgg is not None:
                features = self._features(self._vgg, sharp)
            restored = self._restore(self._image(low_res), features, self._offsets(index))
        return restored[0].permute(1, 2, 0).contiguous().numpy()

    # From Keras' layers to PyTorch's functions.

    def _convolution(self, layer: Any, *, shuffled: bool = False):
        kernel = np.asarray(layer.kernel, "float32").transpose(3, 2, 0, 1)
        bias = np.array(layer.bias, "float32")
        if shuffled:
            # `pixel_shuffle` wants the four places of a channel beside each other, Keras' `depth_to_space`
            # the channels of a place.
            order = np.arange(len(bias)).reshape(4, -1).T.ravel()
            kernel, bias = kernel[order], bias[order]
        weight = self._torch.from_numpy(np.ascontiguousarray(kernel))
        bias = self._torch.from_numpy(bias)
        return lambda x: self._nn.conv2d(x, weight, bias, padding=1)

    def _extractor(self, extractor: Any) -> dict:
        return {name: self._convolution(getattr(extractor, name)) for name, _ in CONVOLUTIONS}

    def _block(self, block: Any):
        first, second = self._convolution(block.conv1), self._convolution(block.conv2)
        return lambda x: x + second(self._nn.relu(first(x)))

    def _level(self, level: Any) -> dict:
        parts = {"head": self._convolution(level.head), "body": [self._block(block) for block in level.body]}
        if level.reference_width is not None:
            aggregation = level.dyn_agg
            parts["offset"] = [self._convolution(level.offset_conv1), self._convolution(level.offset_conv2)]
            parts["predict"] = self._convolution(aggregation.conv_offset_mask)
            parts["deform"] = peers.onnxruntime_deform_conv(
                np.asarray(aggregation.kernel, "float32"),
                np.asarray(aggregation.bias, "float32"),
                aggregation.deform_groups,
                self._threads,
            )
        return parts

    # The steps.

    def _image(self, pixels: np.ndarray):
        """(H, W, 3) uint8 -> (1, 3, H, W) float32 in [0, 1]."""
        return self._torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() / 255

    def _features(self, extractor: dict, image) -> dict:
        mean, std = (self._torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGE_MEAN, IMAGE_STD))
        relu, pool = self._nn.relu, self._nn.max_pool2d
        features = {"relu1_1": relu(extractor["conv1_1"]((image - mean) / std))}
        features["relu2_1"] = relu(
            extractor["conv2_1"](pool(relu(extractor["conv1_2"](features["relu1_1"])), 2))
        )
        features["conv3_1"] = extractor["conv3_1"](pool(relu(extractor["conv2_2"](features["relu2_1"])), 2))
        features["relu3_1"] = relu(features["conv3_1"])
        return features

    def _match(self, query, reference):
        unit = (self._nn.normalize(feature, dim=1) for feature in (query, reference))
        return peers.unfold_and_convolve(self._torch, *unit)[0].long()

    def _offsets(self, index):
        """(1, h - 2, w - 2) -> (1, 18, h, w), (dy, dx) of nine points in cells of conv3_1."""
        torch = self._torch
        rows, columns = index.shape[1:]
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        flow = torch.stack([index // columns - y, index % columns - x], dim=1).float()
        last = PATCH_SIZE - 1
        return torch.cat(
            [
                self._nn.pad(flow, (j, last - j, i, last - i))
                for i in range(PATCH_SIZE)
                for j in range(PATCH_SIZE)
            ],
            dim=1,
        )

    def _restore(self, low_res, features: dict, offsets):
        x = self._leaky(self._first(low_res))
        for block in self._content:
            x = block(x)
        for level in LEVELS:
            scale = LEVEL_SCALES[level]
            here = offsets.repeat_interleave(scale, 2).repeat_interleave(scale, 3) * scale
            x = self._aggregated(self._levels[level], x, features[LEVEL_FEATURES[level]], here)
            if level != "large":
                x = self._leaky(self._nn.pixel_shuffle(self._tails[f"tail_{level}"](x), 2))
        x = self._tails["tail_large2"](self._leaky(self._tails["tail_large1"](x)))
        base = self._nn.interpolate(low_res, scale_factor=_SCALE, mode="bilinear", align_corners=False)
        return x + base

    def _aggregated(self, level: dict, x, reference, offsets):
        torch, fused = self._torch, x
        if "deform" in level:
            context = reference
            if self._config.context == "matched":
                context = self._matched_cells(reference, offsets)
            hidden = torch.cat([x, context], dim=1)
            for convolution in level["offset"]:
                hidden = self._leaky(convolution(hidden))
            groups = self._config.deform_groups
            predicted = level["predict"](hidden)
            learned = predicted[:, : 18 * groups] + offsets.repeat(1, groups, 1, 1)
            aggregated = level["deform"](
                x=reference.numpy(),
                offset=learned.numpy(),
                mask=torch.sigmoid(predicted[:, 18 * groups :]).numpy(),
            )
            fused = torch.cat([x, self._leaky(torch.from_numpy(aggregated))], dim=1)
        hidden = self._leaky(level["head"](fused))
        for block in level["body"]:
            hidden = block(hidden)
        return x + hidden

    def _matched_cells(self, reference, offsets):
        """The reference's cell at the place that the middle point of each position names, zero outside."""
        torch = self._torch
        height, width = reference.shape[2:]
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        y, x = (base + offsets[0, at].round().long() for base, at in ((y, 8), (x, 9)))
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        cells = reference[:, :, y.clamp(0, height - 1), x.clamp(0, width - 1)]
        return cells * inside

    def _leaky(self, x):
        return self._nn.leaky_relu(x, _LEAKY_SLOPE)
