"""Logs on stderr: plain lines for people, JSON lines for machines; neither shows what may be secret in a URL."""

import json
import logging
import sys
from contextlib import suppress
from datetime import UTC, datetime

from landseg.hrefs import hide_secrets

FACTS = "facts"
"""Attribute of a log record that holds further keys of its JSON line: ``log.info(…, extra={FACTS: {…}})``."""


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"landseg: {hide_secrets(super().format(record))}"


class _JsonLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, FACTS, {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        shown = {key: hide_secrets(value) if isinstance(value, str) else value for key, value in line.items()}
        return json.dumps(shown, ensure_ascii=False)


class _Stderr(logging.Handler):
    """Writes to whatever stderr is at the moment: a progress bar puts itself in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        # The work goes on, whoever has closed the log or filled its disk.
        with suppress(OSError):
            if sys.stderr is not None:
                print(self.format(record), file=sys.stderr, flush=True)


def log_to_stderr(*, as_json: bool, quiet: bool) -> None:
    """Send all warnings to stderr and, unless quiet, what landseg says of its progress as well."""
    handler = _Stderr()
    handler.setFormatter(_JsonLine() if as_json else _Plain())
    root = logging.getLogger()
    root.handlers = [other for other in root.handlers if not isinstance(other, _Stderr)] + [handler]
    logging.getLogger("landseg").setLevel(logging.WARNING if quiet else logging.INFO)
