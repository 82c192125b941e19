"""Areas, IoU and GIoU against torchvision and Detectron2."""

import pytest
import torch
from torchvision.ops import box_area, box_iou, generalized_box_iou

from aid_d2.layers.iou import area, giou_loss, pairwise_iou
import detectron2.structures as d2


def boxes(count, seed):
    """Some inside each other, some apart, one without area."""
    generator = torch.Generator().manual_seed(seed)
    low = 40 * torch.rand(count, 2, generator=generator, dtype=torch.float64)
    size = 1 + 30 * torch.rand(count, 2, generator=generator, dtype=torch.float64)
    result = torch.cat([low, low + size], dim=1)
    result[-1, 2:] = result[-1, :2]
    return result


def test_giou_equals_torchvisions():
    a, b = boxes(50, seed=1), boxes(51, seed=2)[:50]
    expected = 1 - generalized_box_iou(a, b).diagonal()
    torch.testing.assert_close(giou_loss(a, b), expected, rtol=1e-6, atol=1e-6)
    assert giou_loss(a, a)[:-1].abs().max() < 1e-6
    unflattened = giou_loss(a.view(5, 10, 4), b.view(5, 10, 4))
    assert torch.equal(unflattened.flatten(), giou_loss(a, b))


def test_gradient_by_finite_differences():
    a, b = boxes(20, seed=3)[:-1].requires_grad_(), boxes(20, seed=4)[:-1]
    assert torch.autograd.gradcheck(lambda x: giou_loss(x, b), [a])


def test_equal_boxes_without_area_have_finite_gradients():
    a = torch.tensor([[3.0, 4.0, 3.0, 4.0]], requires_grad=True)
    loss = giou_loss(a, a.detach())
    loss.sum().backward()
    assert loss.isfinite().all() and a.grad.isfinite().all()


def test_area():
    a = boxes(9, seed=5)
    assert torch.equal(area(a[:, :2], a[:, 2:]), box_area(a))
    assert area(a[:, 2:] + 1, a[:, :2]).eq(0).all()


@pytest.mark.parametrize("count", [0, 1, 30])
def test_pairwise_iou_equals_torchvisions_and_bit_by_bit_detectron2s(count):
    """Where two objects are equally near, equal bits give Detectron2's assignment."""
    a, b = boxes(30, seed=6)[:count], boxes(40, seed=7)
    before = a.clone(), b.clone()
    iou = pairwise_iou(a, b)
    # torchvision has 0 / 0 for the pair without area.
    torch.testing.assert_close(iou, box_iou(a, b).nan_to_num(), rtol=1e-12, atol=1e-12)
    assert torch.equal(a, before[0]) and torch.equal(b, before[1])
    a, b = a.float(), b.float()
    assert torch.equal(pairwise_iou(a, b), d2.pairwise_iou(d2.Boxes(a), d2.Boxes(b)))


def test_iou_of_equal_boxes_without_area_is_zero():
    point = torch.tensor([[3.0, 4.0, 3.0, 4.0]])
    assert pairwise_iou(point, point).item() == 0
