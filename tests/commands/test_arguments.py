"""Texts of the command line that are amounts."""

import argparse

import pytest

from easyedit_dualedit.commands.arguments import memory


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("20GiB", 20 * 2**30),
        ("1.5GiB", 3 * 2**29),
        ("800MiB", 800 * 2**20),
        ("24 GB", 24 * 10**9),
        ("4096", 4096),
    ],
)
def test_an_amount_of_memory(text: str, value: int):
    assert memory(text) == value


@pytest.mark.parametrize("text", ["", "GiB", "much", "-1GiB", "0", "nanGiB", "infMiB", "5 apples"])
def test_what_is_no_amount_of_memory_is_told(text: str):
    with pytest.raises(argparse.ArgumentTypeError, match="20GiB"):
        memory(text)
