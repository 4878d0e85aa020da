"""Arguments of EasyEdit's `MultimodalEditor.edit`, checked before anything is read or edited.

EasyEdit takes one edit or a list of each, and compares lengths by bare assertions, or not at all.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from easyedit_dualedit.errors import DataError, UpstreamError, shortened
from easyedit_dualedit.model.pictures import picture_of
from easyedit_dualedit.plugin.requests import FILE_TYPES, require_texts

_ONE_PICTURE = (None, "image", "single-image")
_LOCALITY = {"text": ("prompt", "ground_truth"), "vision": ("prompt", "ground_truth", "image")}


def checked_arguments(given: Mapping[str, Any], edition: str) -> dict[str, Any]:
    """Return the arguments of a call with a list of one entry an edit for each that was given.

    Pictures in memory become PIL pictures, which EasyEdit's master takes.

    Args:
        given: by name, without the editor.
        edition: of EasyEdit, `master` or `pypi`.

    Raises:
        DataError: if there is no edit, a list has another length than the prompts, or something
            that EasyEdit needs is missing.
        UpstreamError: if the release is given a picture that is no file, which it cannot take.
    """
    arguments = dict(given)
    prompts = given.get("prompts")
    in_lists = isinstance(prompts, list | tuple)
    count = len(prompts) if isinstance(prompts, list | tuple) else 1
    if not count:
        raise DataError("prompts is an empty list; give at least one edit")
    kinds = _kinds(given.get("file_type"), count, edition)
    for name in ("prompts", "targets", "rephrase_prompts"):
        if name != "rephrase_prompts" or given.get(name) is not None:
            arguments[name] = _one_each(name, given.get(name), count)
    if given.get("rephrase_prompts") is not None:
        _require_strings("rephrase_prompts", arguments["rephrase_prompts"])
    for number in range(count):
        require_texts(number, arguments["prompts"][number], arguments["targets"][number])
    for name in ("image", "rephrase_image"):
        shown = given.get(name)
        if name == "rephrase_image" and shown is None:
            continue
        # For one prompt, a list is what one question shows, unless it shows one picture.
        whole = not in_lists and kinds[0] not in _ONE_PICTURE
        pictures = [shown] if whole else _one_each(name, shown, count)
        arguments[name] = [
            _picture(name, picture, kind, edition)
            for picture, kind in zip(pictures, kinds, strict=True)
        ]
    if given.get("locality_inputs") is not None:
        arguments["locality_inputs"] = _locality(given["locality_inputs"], count, edition)
    return arguments


def _one_each(name: str, value: Any, count: int) -> list[Any]:
    if isinstance(value, list | tuple):
        if len(value) == count:
            return list(value)
        has = f"is a list of {len(value)}"
    elif count == 1:
        return [value]
    else:
        has = "is no list"
    asked = "prompts are one" if count == 1 else f"prompts are {count}"
    raise DataError(f"{name} {has}, but {asked}; give one for each prompt, in the same order")


def _require_strings(name: str, values: Sequence[Any]) -> None:
    for place, value in enumerate(values):
        if not isinstance(value, str):
            raise DataError(
                f"{name}[{place}] = {shortened(value)} is of type {type(value).__name__}; give a"
                " text for each prompt, or leave the argument out"
            )


def _kinds(value: Any, count: int, edition: str) -> list[Any]:
    kinds = [value] * count if value is None or isinstance(value, str) else value
    kinds = _one_each("file_type", kinds, count)
    wrong = [kind for kind in kinds if kind is not None and kind not in FILE_TYPES]
    if wrong and edition == "master":
        raise DataError(f"file_type = {wrong[0]!r}: one of {', '.join(FILE_TYPES)}")
    return kinds


def _locality(given: Any, count: int, edition: str) -> dict[str, dict[str, Any]]:
    if not isinstance(given, Mapping) or set(given) - set(_LOCALITY):
        raise DataError(
            f"locality_inputs = {shortened(given)}: a dictionary with text, vision or both"
        )
    checked: dict[str, dict[str, Any]] = {}
    for part, values in given.items():
        if values is None:
            continue
        if not isinstance(values, Mapping):
            raise DataError(f"locality_inputs[{part!r}] = {shortened(values)}: a dictionary")
        missing = [key for key in _LOCALITY[part] if key not in values]
        if missing:
            raise DataError(
                f"locality_inputs[{part!r}] has no {' and no '.join(missing)}; it needs"
                f" {', '.join(_LOCALITY[part])}"
            )
        checked[part] = dict(values)
        for key in _LOCALITY[part]:
            name = f"locality_inputs[{part!r}][{key!r}]"
            one_each = _one_each(name, values[key], count)
            if key == "image":
                one_each = [_picture(name, picture, None, edition) for picture in one_each]
            else:
                _require_strings(name, one_each)
            checked[part][key] = one_each
    return checked


def _picture(name: str, value: Any, kind: Any, edition: str) -> Any:
    if edition != "master" and not isinstance(value, str | Path):
        raise UpstreamError(
            f"{name} is of type {type(value).__name__}, but EasyEdit 0.0.1.dev0 takes the path of a"
            " picture; save it to a file, or use EasyEdit's master"
        )
    if isinstance(value, list | tuple) and kind not in _ONE_PICTURE:
        return [_picture(name, each, kind, edition) for each in value]
    if isinstance(value, Path):
        value = str(value)  # as EasyEdit's own readers take it
    if kind in _ONE_PICTURE and not isinstance(value, str | Image.Image):
        return picture_of(value)
    return value
