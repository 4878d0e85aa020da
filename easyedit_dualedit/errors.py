"""Every error that this package raises on purpose, under one base class.

Each class is also the standard exception that a caller would have caught anyway, so
``except ValueError`` keeps working. A message says what was given, what is allowed and what to do.
"""

import re

QUOTED = 200
"""Characters of what was given that a message quotes at most."""

_QUOTE = re.compile(
    r"""(?<!\w)'(?:[^'\\]|\\.){201,}'(?!\w)|(?<!\w)"(?:[^"\\]|\\.){201,}"(?!\w)|\S{401,}"""
)
_LONGEST = 4000


def shortened(text: object, most: int = QUOTED) -> str:
    """Return a text, cut where it is longer than `most` characters."""
    whole = str(text)
    return whole if len(whole) <= most else f"{whole[: most - 3]}..."


class DualEditError(Exception):
    """Base of all errors raised on purpose by this package; long quotes in its message are cut."""

    def __init__(self, *arguments: object):
        """Keep the message, of which the middle is left out if it is as long as a page."""
        super().__init__(*(_told(each) if isinstance(each, str) else each for each in arguments))


def _told(message: str) -> str:
    told = _QUOTE.sub(lambda quote: f"{quote[0][: QUOTED - 3]}...", message)
    if len(told) <= _LONGEST:
        return told
    return f"{told[: _LONGEST - 500]} ... {told[-400:]}"


class ConfigError(DualEditError, ValueError):
    """A configuration value, key or combination is not allowed."""


class DataError(DualEditError, ValueError):
    """A record, prompt, target or picture cannot be used."""


class LayerError(DualEditError, IndexError):
    """A decoder layer was named that the model does not have."""


class BackboneError(DualEditError, TypeError):
    """A model does not answer one of the three questions asked of a backbone."""


class PromptEndError(DualEditError, ValueError):
    """The end of the prompt cannot be found in a row of token ids."""


class NotEditedError(DualEditError, ValueError):
    """The base model can do this; an edited model would do it without its edits."""


class ChunkedPrefillError(NotEditedError):
    """The prompt was split over several forwards, so no gate can be decided for it."""


class ArchiveError(DualEditError, ValueError):
    """Saved adapters are missing, damaged or belong to another model."""


class HubError(DualEditError, OSError):
    """The Hugging Face hub cannot be reached, or does not give or take what it was asked to."""


class LockError(DualEditError, RuntimeError):
    """Another process changes the same folder, and does not end."""


class ModelLoadError(DualEditError, OSError):
    """A model folder cannot be loaded."""


class CalibrationError(DualEditError, ValueError):
    """A gate threshold was asked for before there is one, or from too little data."""


class EasyEditNotFoundError(DualEditError, ImportError):
    """EasyEdit is not importable."""


class RegistrationError(DualEditError, ValueError):
    """EasyEdit's registry already holds another method of this name."""


class UpstreamError(DualEditError, RuntimeError):
    """EasyEdit cannot do this itself; the message names the way that works."""


class PartsError(DualEditError, OSError):
    """A package that the emoji model is made of is missing, damaged or cannot be fetched."""


def no_request(value: object) -> DataError:
    """Return what to say of a value that stands where a `Query` belongs."""
    return DataError(f"{value!r:.80} is no request; give Query(prompt, picture, target)")
