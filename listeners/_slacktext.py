"""How a message to Slack looks, and why nothing in it can do harm.

Whatever a circuit is called and an exception says: in a message it neither mentions anybody, nor links, nor formats,
nor makes it longer than Slack takes. Characters that Slack obeys are escaped as it wants them; names stand in code
spans, where nothing is formatted, and sentences in plain text, where nothing is at all.
https://docs.slack.dev/messaging/formatting-message-text/
"""

from typing import Any, NamedTuple

from ._render import printable

_NAME, _TEXT = 120, 600  # characters; five times as long when escaped, of 3,000 that Slack takes in a block
OVER = "white_check_mark"
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
_NO_PARSING = {"parse": "none", "link_names": False}
_NO_PREVIEWS = {"unfurl_links": False, "unfurl_media": False, "mrkdwn": False}


class Card(NamedTuple):
    """One message: a headline about something, a sentence, and small print."""

    mark: str
    """The name of an emoji."""
    headline: str
    """With ``{}`` where the name goes; ours."""
    name: str
    sentence: str = ""
    details: tuple[str, ...] = ()
    runbook: str = ""
    meanwhile: str = ""
    """Small print that is true until it is over."""

    def over(self, how: str) -> "Card":
        """The same in retrospect."""
        headline = self.headline.replace(" is ", " was ")
        return self._replace(mark=OVER, headline=headline, meanwhile="", details=(how, *self.details))

    def payload(self, mention: str = "") -> dict[str, Any]:
        """The arguments that ``chat.postMessage`` takes for it; `mention` is markup, put before the headline.

        https://docs.slack.dev/reference/methods/chat.postMessage/
        """
        return {**self.update(mention), **_NO_PREVIEWS}

    def update(self, mention: str = "") -> dict[str, Any]:
        """The same for ``chat.update``."""
        title = self.headline.format(_code(self.name))
        before = f"{mention} " if mention else ""
        blocks: list[dict[str, Any]] = [_section(_markup(f"{before}:{self.mark}: *{title}*"))]
        if self.sentence:
            blocks.append(_section(_plain(shortened(self.sentence, _TEXT))))
        details = " · ".join(filter(None, (self.meanwhile, *self.details)))
        small = [_plain(shortened(details, _TEXT))] if details else []
        if self.runbook:
            small.append(_link(self.runbook))
        if small:
            blocks.append({"type": "context", "elements": small})
        # What notifications and screen readers show.
        told = self.headline.format(repr(shortened(self.name, _NAME)))
        told = f"{told}: {shortened(self.sentence, _TEXT)}" if self.sentence else told
        return {"text": before + escaped(told), "blocks": blocks, **_NO_PARSING}


def shortened(text: str, length: int) -> str:
    """One printable line of at most so many characters."""
    text = printable(text)
    return text if len(text) <= length else text[: length - 1] + "…"


def escaped(text: str) -> str:
    """Text in which nothing is markup that mentions or links."""
    return text.translate(_ESCAPES)


def _code(name: str) -> str:
    return f"`{escaped(shortened(name, _NAME)).replace('`', chr(0x2CB))}`"


def _section(text: dict[str, Any]) -> dict[str, Any]:
    return {"type": "section", "text": text}


def _markup(text: str) -> dict[str, Any]:
    return {"type": "mrkdwn", "text": text, "verbatim": True}


def _plain(text: str) -> dict[str, Any]:
    return {"type": "plain_text", "text": escaped(text), "emoji": False}


def _link(page: str) -> dict[str, Any]:
    safe = page.isascii() and page.isprintable() and not any(char in page for char in ' <>|"`')
    if safe and page.startswith(("https://", "http://")) and len(page) <= _TEXT:
        return _markup(f"<{escaped(page)}|runbook>")
    return _plain(shortened(f"runbook: {page}", _TEXT))
