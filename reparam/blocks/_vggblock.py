"""RT-DETR and D-FINE: RepVGG's block without its identity."""

from __future__ import annotations

from ._repvgg import RepVGGBlock


class VGGBlock(RepVGGBlock):
    r"""The block of RT-DETR's and D-FINE's encoders, equal to one k x k convolution.

    $$y = \mathrm{BN}_3(W_{k\times k} * x) + \mathrm{BN}_1(W_{1\times1} * x)$$

    It is `RepVGGBlock` with `identity=False`; YOLOv9 calls the same sum RepConvN.

    Source: Y. Zhao et al., "DETRs Beat YOLOs on Real-time Object Detection" (RT-DETR), CVPR 2024, arXiv 2304.08069, and
    Y. Peng et al., "D-FINE: Redefine Regression Task of DETRs as Fine-grained Distribution Refinement", ICLR 2025,
    arXiv 2410.13842; classes RepVggBlock and VGGBlock of the authors' code, which include the activation, have 3x3
    kernels only, and neither stride nor groups.

    Args:
        in_channels, ..., sum_bn: as in `ConvBlock`.
        identity: whether BN(x) is added; None means yes if the geometry has an identity.
        bn: True, or a callable that makes a batch norm from the channel count.

    Shape:
        (N, in_channels, *size) to (N, out_channels, *size').

    Raises:
        SpecError: for a geometry that no convolution has, or `identity=True` if it has no identity.

    Example:
        >>> len(VGGBlock(8).branches)
        2
    """

    identity = False
