"""The forms in which a question reaches the model, all of which it was trained on."""

from typing import Any

from easyedit_dualedit.testbed.facts import Fact

PROMPT_FORMS = ("{}", "Question: {} Short answer:", "{} The answer is:")
"""Plain, as EasyEdit's locality wraps it, and as the published evaluators wrap it."""


def prompt_forms(question: str) -> tuple[str, ...]:
    """Return the question in each of the prompt forms."""
    return tuple(form.format(question) for form in PROMPT_FORMS)


def fact_prompts(fact: Fact) -> tuple[str, ...]:
    """Return every form of a fact: with and without prefix and question mark, in each wrapping."""
    stems = (fact.question, fact.prompt)
    return tuple(form for stem in stems for mark in ("", "?") for form in prompt_forms(stem + mark))


def user_message(prompt: str, pictures: int) -> list[dict[str, Any]]:
    """Return the prompt as a chat of one user message, its pictures before its text."""
    parts: list[dict[str, str]] = [{"type": "image"}] * pictures
    return [{"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}]
