"""Arguments of `MultimodalEditor.edit`: one entry an edit, or one line that says what is wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from easyedit_dualedit.errors import DataError, UpstreamError
from easyedit_dualedit.plugin.edit_arguments import checked_arguments

ONE = {"prompts": "What?", "targets": "a kite", "image": "a.png"}
TWO = {"prompts": ["What?", "Who?"], "targets": ["a kite", "ann"], "image": ["a.png", "b.png"]}
TEXT = {"prompt": "What?", "ground_truth": "red"}


def test_one_edit_is_a_list_of_one() -> None:
    given = {**ONE, "rephrase_image": "c.png", "locality_inputs": {"text": TEXT}, "verbose": False}
    assert checked_arguments(given, "pypi") == {
        "prompts": ["What?"],
        "targets": ["a kite"],
        "image": ["a.png"],
        "rephrase_image": ["c.png"],
        "locality_inputs": {"text": {"prompt": ["What?"], "ground_truth": ["red"]}},
        "verbose": False,
    }
    assert checked_arguments({**ONE, "image": ["a.png"]}, "master")["image"] == ["a.png"]


def test_tuples_are_lists() -> None:
    assert checked_arguments({name: tuple(v) for name, v in TWO.items()}, "master") == TWO


def test_a_list_for_one_prompt_may_be_what_it_shows() -> None:
    given = {**ONE, "image": ["a.png", "b.png"], "file_type": "multi-image"}
    assert checked_arguments(given, "master")["image"] == [["a.png", "b.png"]]


def test_pictures_in_memory_are_read() -> None:
    pixels = np.full((4, 5, 3), 7, np.uint8)
    [picture] = checked_arguments({**ONE, "image": pixels}, "master")["image"]
    assert isinstance(picture, Image.Image) and np.array_equal(np.array(picture), pixels)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"prompts": [], "targets": [], "image": []}, "prompts is an empty list"),
        ({"rephrase_prompts": ["So?", None]}, r"rephrase_prompts\[1\] = None is of type NoneType"),
        (
            {"locality_inputs": {"text": {"prompt": ["So?", 3], "ground_truth": ["a", "b"]}}},
            r"locality_inputs\['text'\]\['prompt'\]\[1\] = 3 is of type int",
        ),
        ({"targets": ["a kite"]}, "targets is a list of 1, but prompts are 2"),
        ({"targets": "a kite"}, "targets is no list, but prompts are 2"),
        ({"targets": ["a kite", ""]}, "request 1 has no target"),
        ({"targets": [" ", "ann"]}, "request 0 has no target"),
        ({"targets": ["a kite", 3]}, "request 1 has a target of type int; give a text"),
        ({"targets": None}, "targets is no list, but prompts are 2"),
        ({"prompts": ["What?", None]}, "request 1 has no prompt"),
        ({"image": "a.png"}, "image is no list"),
        ({"file_type": ["image"]}, "file_type is a list of 1"),
        ({"file_type": "picture"}, "file_type = 'picture': one of image"),
        ({"rephrase_prompts": ["What?"]}, "rephrase_prompts is a list of 1"),
        ({"rephrase_image": ["c.png"]}, "rephrase_image is a list of 1"),
        ({"locality_inputs": {"image": TEXT}}, "a dictionary with text, vision or both"),
        ({"locality_inputs": {"text": "What?"}}, r"\['text'\] = .*What.*: a dictionary"),
        ({"locality_inputs": {"text": {"prompt": ["a", "b"]}}}, "has no ground_truth"),
        ({"locality_inputs": {"text": TEXT}}, r"\['text'\]\['prompt'\] is no list"),
        ({"image": [3, "b.png"]}, "3 is no picture"),
    ],
)
def test_what_cannot_be_is_refused(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        checked_arguments({**TWO, **changed}, "master")


@pytest.mark.parametrize("image", [None, Image.new("RGB", (4, 4))])
def test_the_release_takes_files_only(image: Any) -> None:
    with pytest.raises(UpstreamError, match="takes the path of a picture"):
        checked_arguments({**ONE, "image": image}, "pypi")
    assert checked_arguments({**ONE, "image": Path("a.png")}, "pypi")["image"] == ["a.png"]


def test_paths_are_text_for_easyedits_readers() -> None:
    several = [Path("a.png"), "b.png"]
    given = {**TWO, "image": [several, Path("c.mp4")], "file_type": ["multi-image", "video"]}
    assert checked_arguments(given, "master")["image"] == [["a.png", "b.png"], "c.mp4"]


def test_a_part_of_locality_may_be_none() -> None:
    given = {**ONE, "locality_inputs": {"text": TEXT, "vision": None}}
    assert set(checked_arguments(given, "master")["locality_inputs"]) == {"text"}
