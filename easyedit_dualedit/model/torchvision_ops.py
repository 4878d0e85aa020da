"""Makes a CUDA build of torchvision importable beside a CPU build of torch.

The PyPI wheel of torchvision registers its operators from a library that needs CUDA. Where that
library cannot be loaded, ``import torchvision`` fails because two operators have no definition.
Nothing here runs those operators: image processors use only torchvision's Python transforms.
"""

import importlib
import importlib.util
import logging
import sys

import torch

logger = logging.getLogger(__name__)

_OPERATORS = ("nms", "qnms")
# torch drops the definitions of a Library that is garbage-collected.
_definitions: list[torch.library.Library] = []


def define_missing_operators() -> bool:
    """Return True if operators had to be defined so that ``import torchvision`` works.

    Does nothing where torchvision is absent, already imported, or works as it is.
    """
    if _definitions or "torchvision" in sys.modules:
        return False
    if importlib.util.find_spec("torchvision") is None:
        return False
    try:
        importlib.import_module("torchvision")
        return False
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    _forget_partial_import()
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for operator in _OPERATORS:
        schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library.define(schema)  # type: ignore[no-untyped-call]
    _definitions.append(library)
    importlib.import_module("torchvision")
    logger.debug("defined torchvision operators %s, which this torch build lacks", _OPERATORS)
    return True


def _forget_partial_import() -> None:
    for name in [n for n in sys.modules if n == "torchvision" or n.startswith("torchvision.")]:
        del sys.modules[name]
