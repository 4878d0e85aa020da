"""Three functions that EasyEdit's release imports from transformers, which has dropped them.

They prune attention heads of the Q-Former, which nothing here does; but `import easyeditor` fails
where the names are missing.
"""

import importlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


def supply_missing_names() -> list[str]:
    """Return the names that had to be put into `transformers.modeling_utils`; often none."""
    module: Any = importlib.import_module("transformers.modeling_utils")
    supplied = []
    for function in (
        apply_chunking_to_forward,
        find_pruneable_heads_and_indices,
        prune_linear_layer,
    ):
        if not hasattr(module, function.__name__):
            setattr(module, function.__name__, function)
            supplied.append(function.__name__)
    return supplied


def apply_chunking_to_forward(
    forward_fn: Callable[..., Tensor], chunk_size: int, chunk_dim: int, *input_tensors: Tensor
) -> Tensor:
    """Return `forward_fn` of the inputs, computed over chunks of dimension `chunk_dim`.

    A chunk size of 0 computes everything at once.
    """
    if chunk_size <= 0:
        return forward_fn(*input_tensors)
    columns = [torch.split(tensor, chunk_size, dim=chunk_dim) for tensor in input_tensors]
    chunks = [forward_fn(*parts) for parts in zip(*columns, strict=True)]
    return torch.cat(chunks, dim=chunk_dim)


def find_pruneable_heads_and_indices(
    heads: Iterable[int], n_heads: int, head_size: int, already_pruned_heads: set[int]
) -> tuple[set[int], Tensor]:
    """Return the heads still to prune, and the indices of the features that stay."""
    pruned = set(heads) - already_pruned_heads
    mask = torch.ones(n_heads, head_size, dtype=torch.bool)
    for head in pruned:
        mask[head - sum(earlier < head for earlier in already_pruned_heads)] = False
    return pruned, mask.flatten().nonzero().flatten()


def prune_linear_layer(layer: nn.Linear, index: Tensor, dim: int = 0) -> nn.Linear:
    """Return a layer with only the features `index` of dimension `dim` of the weight."""
    weight = layer.weight.detach().index_select(dim, index.to(layer.weight.device))
    pruned = nn.Linear(
        weight.shape[1], weight.shape[0], bias=layer.bias is not None, device=weight.device
    )
    with torch.no_grad():
        pruned.weight.copy_(weight)
        if layer.bias is not None:
            pruned.bias.copy_(layer.bias if dim == 1 else layer.bias[index])
    return pruned
