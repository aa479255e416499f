"""Weights of torchvision's Faster R-CNN detectors: the same detections, proposals and losses here as there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d

import detkit
from detkit.boxes import batched_nms
from detkit.errors import ConfigError, WeightsError
from detkit.features import roi_pooling
from detkit.features.folding import TOLERANCE
from detkit.heads import roi_heads
from detkit.proposals import ProposalBatch, region_proposal_network
from detkit.training import Samples
from tests.detectors.conftest import in_the_order_of
from tests.features.test_roi_align import by_torchvision

from .torchvision_pair import FEW, NAMES, SIZES, Pair, batch, build, images, randomise, targets

#: Detections of an image.
LIMIT = 100
BATCH_NORMS = nn.BatchNorm2d | FrozenBatchNorm2d


@pytest.fixture(scope="module", params=list(SIZES))
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    yield build(request.param)


def assert_same_detections(theirs: list[dict[str, Tensor]], ours: list[dict[str, Tensor]]) -> None:
    for a, b in zip(theirs, ours, strict=True):
        assert len(a["boxes"]) == len(b["boxes"]) > 0
        b = in_the_order_of(a, b)
        # Of almost equal scores at the limit one or the other is the last.
        sure = a["scores"] > a["scores"][-1] + 1e-4 if len(a["scores"]) == LIMIT else a["scores"] >= 0
        a, b = ({name: values[sure] for name, values in each.items()} for each in (a, b))
        assert torch.equal(a["labels"], b["labels"])
        torch.testing.assert_close(a["scores"], b["scores"], atol=1e-4, rtol=0)
        torch.testing.assert_close(a["boxes"], b["boxes"], atol=1e-2, rtol=0)


@torch.no_grad()
def test_same_detections(pair: Pair) -> None:
    theirs = pair.theirs.eval()([image / 255 for image in images()[:2]])
    assert all(0.1 < found["scores"].max() < 0.99 for found in theirs)
    assert len({label for found in theirs for label in found["labels"].tolist()}) > 1
    assert_same_detections(theirs, pair.ours()(images()[:2]))


@torch.no_grad()
def test_same_outputs_once_optimized(pair: Pair) -> None:
    """Batch norms folded, and channels_last: of the network, and of the heads on the same proposals.

    Which proposals these are is decided by scores that lie close together, and so by rounding.
    """
    plain, optimized = pair.ours(), pair.ours()
    detkit.detectors.optimize_for_inference(optimized)
    assert not any(isinstance(layer, BATCH_NORMS) for layer in optimized.modules())
    expected, found = (each.encode_images(each.preprocessing(images()[:2])) for each in (plain, optimized))
    for a, b in zip([*expected.features, *expected.rpn[2:]], [*found.features, *found.rpn[2:]], strict=True):
        assert (a - b).abs().max() <= TOLERANCE * a.abs().max()
    regions = ProposalBatch.of(plain.propose([], expected)).regions()
    assert len(regions.boxes) >= FEW
    a, b = plain.roi_heads.refine(expected.features, regions), optimized.roi_heads.refine(found.features, regions)
    torch.testing.assert_close(b.scores, a.scores, atol=1e-4, rtol=0)
    sure = a.labels == b.labels  # of two classes with almost equal scores, either
    assert sure.float().mean() > 0.98
    torch.testing.assert_close(b.boxes[sure], a.boxes[sure], atol=1e-2, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("pair", ["fasterrcnn_mobilenet_v3_large_320_fpn"], indirect=True)
def test_same_detections_where_scores_tie(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of at most 1,000 candidates for proposals: with more torchvision's order of ties is that of an unstable sort."""
    layers = (pair.theirs.roi_heads.box_predictor.cls_score, pair.theirs.rpn.head.cls_logits)
    weights = [(tensor, tensor.clone()) for layer in layers for tensor in (layer.weight, layer.bias)]
    monkeypatch.setattr(roi_pooling, "multiscale_roi_align", by_torchvision)  # or other scores would be 1.0
    try:
        for tensor, _ in weights:  # scores of 1.0, to the last bit
            tensor.mul_(20)
        theirs = pair.theirs.eval()([image / 255 for image in images()[:2]])
        ours = pair.ours()(images()[:2])
    finally:
        for tensor, before in weights:
            tensor.copy_(before)
    assert all(len(found["scores"].unique()) < len(found["scores"]) for found in theirs)
    assert_same_detections(theirs, ours)


def chosen(labels: Tensor, size: int, fraction: float) -> tuple[Tensor, Tensor]:
    """A balanced sample without chance: which positives and which negatives, spread over all of them.

    Rows that may not be drawn do not count, for where torchvision leaves proposals out, ours are marked.
    """
    spread = ((labels >= 0).cumsum(0) * 7919 + 13) % 10_007
    order = spread.argsort(stable=True)
    positive, negative = order[labels[order] > 0], order[labels[order] == 0]
    positive = positive[: int(size * fraction)]
    return positive, negative[: size - len(positive)]


class TheirSampler:
    def __init__(self, size: int, fraction: float) -> None:
        self.size, self.fraction = size, fraction
        self.counts: list[tuple[int, int]] = []

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        masks: tuple[list[Tensor], list[Tensor]] = ([], [])
        for image in labels:
            picked = chosen(image, self.size, self.fraction)
            self.counts.append((len(picked[0]), len(picked[1])))
            for kind, index in zip(masks, picked, strict=True):
                kind.append(torch.zeros(len(image), dtype=torch.uint8).index_fill(0, index, 1))
        return masks


def our_sample(labels: Tensor, size: int, fraction: float) -> Samples:
    positive, negative = chosen(labels, size, fraction)
    index = torch.cat((positive, negative))
    return Samples(index, torch.arange(len(index)) < len(positive), torch.ones(len(index), dtype=torch.bool))


def fine_tuned(model: nn.Module) -> nn.Module:
    """Training mode with the batch norms left as they are, for the scores would saturate and tie otherwise."""
    for layer in model.train().modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval()
    return model


def test_same_losses_from_the_same_samples(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = (fine_tuned(model) for model in (pair.theirs, pair.ours()))
    rpn_sampler, roi_sampler = TheirSampler(256, 0.5), TheirSampler(64, 0.25)
    before = theirs.rpn.fg_bg_sampler, theirs.roi_heads.fg_bg_sampler
    theirs.rpn.fg_bg_sampler, theirs.roi_heads.fg_bg_sampler = rpn_sampler, roi_sampler
    monkeypatch.setattr(region_proposal_network, "sample", our_sample)
    monkeypatch.setattr(roi_heads, "sample", lambda labels, size, fraction: our_sample(labels, 64, fraction))

    proposed: list[Tensor] = []
    hook = theirs.rpn.register_forward_hook(lambda module, given, result: proposed.extend(result[0]))
    try:
        expected = theirs([image / 255 for image in images()], targets())
    finally:
        hook.remove()
        theirs.rpn.fg_bg_sampler, theirs.roi_heads.fg_bg_sampler = before
    encoded = ours.encode(batch())
    got = ours.losses(batch(), encoded)

    for here, there in zip(ours.rpn.propose(encoded.rpn, encoded.images), proposed, strict=True):
        torch.testing.assert_close(here.boxes[here.valid], there, atol=1e-3, rtol=0)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, atol=1e-4, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
        assert value > 1e-3
    # The samples were worth comparing: some of both kinds, and an image without objects.
    assert all(positive > 0 for positive, _ in rpn_sampler.counts[:2] + roi_sampler.counts[:2])
    assert rpn_sampler.counts[2][0] == roi_sampler.counts[2][0] == 0
    # Logged beside the losses: per image, over three images.
    assert ours.sampler_stats["roi_foreground"].item() == pytest.approx(sum(p for p, _ in roi_sampler.counts) / 3)
    assert ours.sampler_stats["rpn_background"].item() == pytest.approx(sum(n for _, n in rpn_sampler.counts) / 3)


@torch.no_grad()
def test_weights_of_frozen_batch_norms() -> None:
    """torchvision's pretrained detectors have frozen batch norms, which count no batches."""
    network = torchvision.models.resnet50(norm_layer=torchvision.ops.FrozenBatchNorm2d)
    arch = "fasterrcnn_resnet50_fpn"
    backbone = _resnet_fpn_extractor(network, 3)
    arguments = SIZES[arch] | {"rpn_post_nms_top_n_test": FEW}
    theirs = randomise(TorchvisionFasterRCNN(backbone, len(NAMES) + 1, **arguments)).eval()
    assert not any(key.endswith("num_batches_tracked") for key in theirs.state_dict())
    expected = theirs([image / 255 for image in images()[:2]])
    for freeze in (False, True):
        ours = Pair(arch, theirs).ours(features__freeze_batch_norm=freeze)
        frozen = [m for m in ours.backbone.body.modules() if isinstance(m, torchvision.ops.FrozenBatchNorm2d)]
        assert len(frozen) == (53 if freeze else 0)
        assert_same_detections(expected, ours(images()[:2]))


@torch.no_grad()
def test_the_zero_epsilon_of_torchvisions_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision sets the batch norms' epsilon to 0 for its COCO_V1 files; `batch_norm_eps` is for that."""
    monkeypatch.setattr(roi_pooling, "multiscale_roi_align", by_torchvision)  # almost all scores are almost equal
    pair = build("fasterrcnn_mobilenet_v3_large_320_fpn")
    for layer in pair.theirs.backbone.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_var.mul_(1e-3)
            layer.weight.data.mul_(1e-3**0.5)
            layer.eps = torch.finfo(torch.float32).tiny  # as good as 0, which torch 2.11 refuses here
    theirs = pair.theirs.eval()([image / 255 for image in images()[:2]])
    assert_same_detections(theirs, pair.ours(features__batch_norm_eps=0.0)(images()[:2]))
    without = pair.ours()(images()[:2])
    assert any(
        len(a["scores"]) != len(b["scores"]) or not torch.allclose(a["scores"], b["scores"], atol=1e-4)
        for a, b in zip(theirs, without, strict=True)
    )


def test_unknown_architectures_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'retinanet_resnet50_fpn'.*fasterrcnn_resnet50_fpn, "):
        detkit.FasterRCNN.from_torchvision("retinanet_resnet50_fpn", {}, NAMES)


def test_keys_that_do_not_fit_are_named() -> None:
    pair = build("fasterrcnn_mobilenet_v3_large_320_fpn")
    state = pair.theirs.state_dict()
    del state["rpn.head.cls_logits.bias"]
    state["roi_heads.mask_head.weight"] = torch.zeros(1)
    state["roi_heads.box_predictor.bbox_pred.bias"] = torch.zeros(7)
    with pytest.raises(WeightsError) as caught:
        detkit.FasterRCNN.from_torchvision(pair.arch, state, NAMES)
    shapes = "roi_heads.box_predictor.bbox_pred.bias: (7,) instead of (24,)"
    for words in (pair.arch, "rpn.head.cls_logits.bias", "roi_heads.mask_head.weight", shapes):
        assert words in str(caught.value)


@pytest.mark.parametrize("count", [300, 1500])
def test_ties_are_in_torchvisions_order(count: int) -> None:
    """Up to 1,000 boxes; beyond it torchvision sorts with an unstable sort, and equal scores have no order there."""
    corner = torch.randint(0, 200, (count, 2)).float()
    boxes = torch.cat((corner, corner + 5 + 35 * torch.rand(count, 2)), dim=1)
    scores, groups = torch.randint(1, 6, (count,)) / 8, torch.randint(0, 4, (count,))
    kept, expected = batched_nms(boxes, scores, groups, 0.3), torchvision.ops.batched_nms(boxes, scores, groups, 0.3)
    assert len(expected) < count
    if count > 1000:
        assert torch.equal(scores[kept], scores[expected])
        kept, expected = kept.sort().values, expected.sort().values
    assert torch.equal(kept, expected)
