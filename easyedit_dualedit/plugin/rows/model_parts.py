"""Finds in any model the parts that EasyEdit's hyperparameters name for one model."""

from collections.abc import Sequence

from torch import Tensor, nn

from easyedit_dualedit.errors import ConfigError, UpstreamError
from easyedit_dualedit.model.backbone import Backbone

DOWN = "down"
"""The projection of a feed-forward block whose output is as wide as the model."""
UP = "up"
GATE = "gate"
"""The projection whose activation the one called `UP` is multiplied with; not every model has
one."""


def decoder_prefix(model: nn.Module, backbone: Backbone) -> str:
    """Return the dotted name of the list of decoder layers, such as `model.language_model.layers`.

    Args:
        model: as EasyEdit gets it.
        backbone: the parts of the model.

    Raises:
        UpstreamError: if the layers are no list of the model.
    """
    first = backbone.layers[0]
    for name, part in model.named_modules():
        if isinstance(part, nn.ModuleList) and len(part) and part[0] is first:
            return str(name)
    raise UpstreamError(
        f"the decoder layers of {type(model).__name__} are in no list of its modules, so EasyEdit"
        " cannot name them; use a transformers image-text-to-text model"
    )


def layer_in_proportion(index: int, depth_of_reference: int, depth: int) -> int:
    """Return the layer that stands where another one stands in a model of another depth.

    The first layer stays the first, the last the last.

    Args:
        index: layer of the reference, from 0.
        depth_of_reference: number of layers of the model that `index` was chosen for.
        depth: number of layers of the model at hand.
    """
    steps = max(depth_of_reference - 1, 1)
    return min(max((2 * index * (depth - 1) + steps) // (2 * steps), 0), depth - 1)


def mlp_parameters(model: nn.Module, layer: int) -> dict[str, str]:
    """Return the names, in the whole model, of the weights of a layer's feed-forward projections.

    They are told from attention's by their widths: one of them alone writes the model's width, and
    it reads what the others write.

    Args:
        model: a transformers image-text-to-text model.
        layer: decoder layer, from 0.

    Returns:
        `DOWN` and `UP`, and `GATE` where the block has two projections from the model's width.

    Raises:
        UpstreamError: if the layer has no such block, or more than one, as a mixture of experts.
        LayerError: if there is no such layer.
    """
    backbone = Backbone.of(model)
    backbone.require_layers([layer])
    prefix = f"{decoder_prefix(model, backbone)}.{layer}"
    blocks = [
        {role: f"{name}.{child}.weight" for role, child in block.items()}
        for name, part in backbone.layers[layer].named_modules(prefix=prefix)
        if (block := _feed_forward(part, backbone.hidden_size))
    ]
    if len(blocks) != 1:
        what = "no" if not blocks else f"{len(blocks)}"
        raise UpstreamError(
            f"decoder layer {layer} of {type(model).__name__} has {what} feed-forward blocks of"
            " linear projections; EasyEdit's methods that change one weight of it need exactly one,"
            " so name the weights to change yourself (setting inner_params)"
        )
    return blocks[0]


def as_expression(name: str) -> str:
    """Return a dotted name as EasyEdit evaluates it: list places in brackets."""
    first, *rest = name.split(".")
    return first + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in rest)


def parameter_named(model: nn.Module, name: str, how: str) -> nn.Parameter:
    """Return the parameter that the setting `inner_params` names, dotted or as an expression.

    Args:
        model: as EasyEdit gets it.
        name: of one parameter.
        how: what the error tells to do.

    Raises:
        ConfigError: if there is no such parameter.
    """
    try:
        return model.get_parameter(name.replace("[", ".").replace("]", ""))
    except AttributeError as error:
        raise ConfigError(
            f"inner_params has {name!r}, which {type(model).__name__} has not; {how}"
        ) from error


def count_of(parameters: Sequence[Tensor]) -> int:
    """Return the number of values in parameters."""
    return sum(parameter.numel() for parameter in parameters)


def bytes_of(tensors: Sequence[Tensor]) -> int:
    """Return the number of bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _feed_forward(part: nn.Module, width: int) -> dict[str, str] | None:
    """Return role -> name of a block's projections, or None if `part` holds no such block."""
    linears = {name: child for name, child in part.named_children() if isinstance(child, nn.Linear)}
    last = [name for name, linear in linears.items() if linear.out_features == width]
    before = [name for name in linears if name not in last]
    # Attention has more projections, or ones that are no wider than the model.
    if len(last) != 1 or not 1 <= len(before) <= 2:
        return None
    inner = linears[last[0]].in_features
    for name in before:
        if (linears[name].in_features, linears[name].out_features) != (width, inner):
            return None
    gates = [name for name in before if "gate" in name] if len(before) == 2 else []
    roles = {DOWN: last[0], UP: next(name for name in reversed(before) if name not in gates)}
    if len(before) == 2:
        roles[GATE] = next(name for name in before if name != roles[UP])
    return roles
