"""What each control of the page does: plain functions of a session's key and the fields."""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from PIL import Image

from easyedit_dualedit.app.results import message_html, results_html
from easyedit_dualedit.app.session import Made, Session, Shown
from easyedit_dualedit.app.sessions import Sessions
from easyedit_dualedit.app.trial import Trial
from easyedit_dualedit.errors import DualEditError
from easyedit_dualedit.report.page.wording import counted

logger = logging.getLogger(__name__)

Act = TypeVar("Act", bound="Callable[..., View]")


@dataclass(frozen=True)
class View:
    """What is to be shown after an action; None leaves what is there."""

    message: str
    """HTML."""
    results: str | None = None
    """HTML."""
    trial: Trial | None = None
    """What the fields are to hold."""
    file: Path | None = None
    """A file to take away."""
    list_changed: bool = False
    """Whether the list of edits is to be drawn anew."""


def _told(action: Act) -> Act:
    """Make whatever an action raises a message: nothing on the page is lost by a mistake."""

    @functools.wraps(action)
    def safe(*args: Any, **kwargs: Any) -> View:
        try:
            return action(*args, **kwargs)
        except DualEditError as error:
            told = str(error)
        except Exception as error:
            logger.exception("an action of the page failed")
            told = (
                f"this failed in a way that is not known ({type(error).__name__}); the terminal of"
                " the page says more. Your edits are kept."
            )
        return View(message_html(told[:1].upper() + told[1:], is_wrong=True))

    return cast(Act, safe)


class Actions:
    """What can be done on the page."""

    def __init__(self, sessions: Sessions, examples: list[Trial]):
        """Act on sessions.

        Args:
            sessions: everybody's.
            examples: pictures to begin with.
        """
        self.sessions = sessions
        self.examples = examples

    @_told
    def opened(self, key: str) -> View:
        """Return what somebody sees who comes, or comes back."""
        session = self.sessions.of(key)
        count = len(session.edits)
        trial = session.trial
        if not trial.prompt:
            first = self.examples[0] if self.examples else Trial()
            return View("", results_html(None, {}), first, list_changed=True)
        again = f"Welcome back: {counted(count, 'edit')}, and what you asked last."
        return View(message_html(again), _asked(session, trial), trial, list_changed=True)

    @_told
    def ask(self, key: str, trial: Trial) -> View:
        """Ask what the fields say."""
        session = self.sessions.of(key)
        results = _asked(session, trial)
        return View(message_html(f"Asked, with {_in_force(session)}."), results)

    @_told
    def edit(self, key: str, trial: Trial) -> View:
        """Make the edit that the fields say, and ask again."""
        session = self.sessions.of(key)
        made = session.add(trial)
        message = message_html(_of_making(made), is_wrong=not made.check.takes)
        return View(message, _asked(session, trial), list_changed=True)

    @_told
    def example(self, number: int) -> View:
        """Fill the fields with an example."""
        told = message_html("An example: ask, then edit.")
        return View(told, results_html(None, {}), self.examples[number])

    @_told
    def show(self, key: str, identifier: str) -> View:
        """Fill the fields with an edit's picture, question and target, and ask."""
        session = self.sessions.of(key)
        trial = session.show(identifier)
        return View(message_html("The edit's own question."), _asked(session, trial), trial)

    @_told
    def switch(self, key: str, identifier: str, is_on: bool) -> View:
        """Switch an edit on or off, and ask again."""
        session = self.sessions.of(key)
        session.switch(identifier, is_on)
        state = "on" if is_on else "off"
        told = f"Switched {state}: {session.edit(identifier).name}"
        return View(message_html(told), _asked_last(session))

    @_told
    def rename(self, key: str, identifier: str, name: str) -> View:
        """Call an edit something."""
        session = self.sessions.of(key)
        if session.edit(identifier).label.name == name:
            return View(message_html(""))
        session.rename(identifier, name)
        return View(message_html(f"Called {session.edit(identifier).name}"))

    @_told
    def remove(self, key: str, identifier: str) -> View:
        """Forget an edit, and ask again."""
        session = self.sessions.of(key)
        name = session.edit(identifier).name
        session.remove(identifier)
        return View(message_html(f"Removed: {name}"), _asked_last(session), list_changed=True)

    @_told
    def save(self, key: str) -> View:
        """Make a file of all edits."""
        session = self.sessions.of(key)
        saved = counted(len(session.edits), "edit")
        told = f"Saved {saved}, with names and pictures: Load takes the file"
        return View(message_html(told), file=session.saved())

    @_told
    def export(self, key: str) -> View:
        """Make a file of the edits that are on, for the command line and for Python."""
        session = self.sessions.of(key)
        file = session.exported()
        told = (
            f"Exported {_in_force(session)}, without names and pictures: unpacked, it is a folder"
            " for `chat --edits` and `EditMemory.load`"
        )
        return View(message_html(told), file=file)

    @_told
    def load(self, key: str, file: str | None) -> View:
        """Add the edits of a file."""
        session = self.sessions.of(key)
        if file is None:
            return View(message_html("No file was chosen"))
        count = session.load(Path(file))
        told = (
            f"Loaded {counted(count, 'edit')}"
            if count
            else "All edits of this file are there already"
        )
        return View(message_html(told), _asked_last(session), list_changed=True)


def trial_of(
    picture: Image.Image | None,
    prompt: str,
    target: str,
    rephrase: str,
    other: Image.Image | None,
    unrelated: str,
) -> Trial:
    """Return what the fields hold, in their order on the page."""
    texts = {"prompt": prompt, "target": target, "rephrase": rephrase, "unrelated": unrelated}
    return Trial.of({name: text or "" for name, text in texts.items()}, picture, other)


def _asked(session: Session, trial: Trial) -> str:
    shown: Shown = session.ask(trial)
    return results_html(shown, {edit.id: edit.name for edit in session.edits})


def _asked_last(session: Session) -> str | None:
    return _asked(session, session.trial) if session.trial.prompt else None


def _of_making(made: Made) -> str:
    if not made.check.takes:
        told = made.check.told()
        return told[:1].upper() + told[1:]
    told = f"Edited: “{made.edit.about.prompt}” is now answered “{made.check.answer}”."
    if made.older is None:
        return told
    return f"{told} It wins over the older answer to this question, “{made.older.target}”."


def _in_force(session: Session) -> str:
    return counted(len(session.in_force), "edit")
