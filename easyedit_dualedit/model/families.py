"""What is known of a vision-language model beyond what it says itself.

Three questions are asked of every model: where are its decoder layers, which positions are vision,
where does the prompt end. A model of transformers and its processor mostly answer them. Where they
do not, a user answers in YAML (`BackboneConfig`), or the model's family is known here (`Family`).
This is the only place that knows a family by its name.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from easyedit_dualedit.errors import ConfigError
from easyedit_dualedit.settings import is_whole, raise_if, unknown_keys


@dataclass(frozen=True)
class BackboneConfig:
    """A user's answers for a model that does not give them itself; None leaves them to the model.

    Raises:
        ConfigError: naming every value that is not allowed.
    """

    decoder_layers: str | None = None
    """Dotted path from the model to its list of decoder layers, such as `language_model.layers`."""
    image_token_id: int | None = None
    """Id of the token that stands at every vision position."""
    chat_template: str | None = None
    """Jinja template of a conversation, as in transformers; what it writes last ends the prompt."""
    answer_prefix: str | None = None
    """Text between prompt and answer, such as a space."""

    def __post_init__(self) -> None:
        raise_if(self.problems())

    def problems(self) -> list[str]:
        """Return one line for each value that is not allowed."""
        problems = []
        for name in ("decoder_layers", "chat_template"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value.strip()):
                problems.append(
                    f"backbone {name} = {value!r}: text, or null to leave it to the model"
                )
        if self.answer_prefix is not None and not isinstance(self.answer_prefix, str):
            problems.append(f"backbone answer_prefix = {self.answer_prefix!r}: text, or null")
        if self.image_token_id is not None and not is_whole(self.image_token_id, 0):
            problems.append(
                f"backbone image_token_id = {self.image_token_id!r}: a token id, or null"
            )
        return problems

    @classmethod
    def read(cls, value: Any, *, source: str = "the configuration") -> Self:
        """Return the answers that a mapping holds, or None (no answers).

        Raises:
            ConfigError: if it holds anything else.
        """
        if value is None:
            return cls()
        if isinstance(value, cls):
            return value
        known = [f.name for f in dataclasses.fields(cls)]
        if not isinstance(value, Mapping):
            raise ConfigError(f"backbone = {value!r} in {source}: a mapping of {', '.join(known)}")
        raise_if(unknown_keys(value, known, f"backbone in {source}"))
        return cls(**value)


@dataclass(frozen=True)
class Family:
    """What is known of the models of one family, and cannot be read from them."""

    chat_template: str | None = None
    """Used where the processor has none: how the family's authors ask a question."""
    answer_prefix: str = ""
    """Text between prompt and answer."""
    answer_token_type: int = 0
    """Value of `token_type_ids` at the tokens of an answer."""
    most_pictures: int | None = None
    """Pictures that a question may have; None where there is no limit."""
    needs_picture: bool = False
    """Whether a forward fails without `pixel_values`, also for text alone."""


_PLAIN = Family()
_CONTENT = "{% set message = messages[-1] %}{% set content = message['content'] %}"
_TEXT = (
    "{% if content is string %}{{ content }}{% else %}{% for part in content %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
)
_FAMILIES: Mapping[str, Family] = {
    # The processor puts the image tokens first by itself. The wording is that of its model card.
    "blip-2": Family(
        chat_template=_CONTENT + "Question: " + _TEXT + " Answer:",
        answer_prefix=" ",
        most_pictures=1,
        needs_picture=True,
    ),
    # EasyEdit's own ports, which put a space before every answer.
    "easyedit-blip2-opt": Family(answer_prefix=" ", most_pictures=1),
    "easyedit-minigpt4": Family(answer_prefix=" ", most_pictures=1),
    # The processor adds BOS and the newline where there is an image, and refuses text alone.
    "paligemma": Family(
        chat_template=_CONTENT
        + "{% set pictures = [] if content is string else"
        + " content | selectattr('type', 'equalto', 'image') | list %}"
        + "{% for _ in pictures %}<image>{% endfor %}"
        + "{% if not pictures %}{{ bos_token }}{% endif %}"
        + _TEXT
        + "{% if not pictures %}{{ '\\n' }}{% endif %}",
        answer_token_type=1,
    ),
}


def family_of(config: Any) -> Family:
    """Return what is known of the family of a model with this transformers config."""
    return _FAMILIES.get(str(getattr(config, "model_type", "")), _PLAIN)


def answers_joined(given: BackboneConfig, config: Any) -> BackboneConfig:
    """Return a user's answers, but nothing stands between a prompt and its answer.

    EasyEdit's evaluators score the tokens of "red", which master writes right behind the prompt of
    every model, also of BLIP-2, which is otherwise asked for " red". What the user said of it
    holds.

    Args:
        given: the user's answers.
        config: of the model.
    """
    if given.answer_prefix is not None or not family_of(config).answer_prefix:
        return given
    return dataclasses.replace(given, answer_prefix="")
