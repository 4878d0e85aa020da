"""Every error that this package raises on purpose, under one base class.

Each class is also the standard exception that a caller would have caught anyway, so
``except ValueError`` keeps working. A message says what was given, what is allowed and what to do.
"""


class DualEditError(Exception):
    """Base of all errors raised on purpose by this package."""


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
