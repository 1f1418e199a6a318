"""How much this package says: levels of its logger, and its progress bars, as `transformers.utils.logging` has them.

    from redge_guidance import logging

    logging.set_verbosity_info()

What modules log goes to the logger `redge_guidance`, and from there to whoever listens to it or to the root logger; to
standard error where nobody has set up logging. `REDGE_GUIDANCE_VERBOSITY` is the level at the start: debug, info,
warning (the default), error or critical.
"""

import logging
import os
import sys

from redge_guidance.checks import as_whole

CRITICAL, ERROR, WARNING, INFO, DEBUG = logging.CRITICAL, logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG
LEVELS = {"debug": DEBUG, "info": INFO, "warning": WARNING, "error": ERROR, "critical": CRITICAL}
VARIABLE = "REDGE_GUIDANCE_VERBOSITY"

_NAME = "redge_guidance"
_bars = True


class _Default(logging.Handler):
    """To standard error as it is when something is said, unless the root logger has handlers, which get it too."""

    def emit(self, record: logging.LogRecord) -> None:
        if logging.getLogger().handlers or sys.stderr is None:
            return
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except (OSError, ValueError):
            self.handleError(record)


_handler = _Default()
_handler.setFormatter(logging.Formatter(f"[{_NAME}] %(message)s"))


def get_logger(name: str = _NAME) -> logging.Logger:
    """The package's logger, or one below it, such as `get_logger(__name__)` of its modules; others are left alone."""
    return logging.getLogger(name)


def get_verbosity() -> int:
    """The level in force, a number as of Python's `logging`."""
    return get_logger().getEffectiveLevel()


def set_verbosity(verbosity: int | str) -> None:
    """Say what is of this level or above it, a number or a name of `LEVELS`.

    Raises:
        ValueError: neither.

    >>> set_verbosity("warning")
    >>> get_verbosity() == WARNING
    True
    """
    number = LEVELS.get(verbosity.strip().lower()) if isinstance(verbosity, str) else as_whole(verbosity)
    if number is None or number < 0:
        raise ValueError(f"`verbosity` must be one of {', '.join(LEVELS)}, or a level of logging, got {verbosity!r}.")
    get_logger().setLevel(number)


def set_verbosity_debug() -> None:
    """Say everything."""
    set_verbosity(DEBUG)


def set_verbosity_info() -> None:
    """Say what is done, too."""
    set_verbosity(INFO)


def set_verbosity_warning() -> None:
    """Say what may be another thing than what was meant: the default."""
    set_verbosity(WARNING)


def set_verbosity_error() -> None:
    """Say errors alone."""
    set_verbosity(ERROR)


def add_handler(handler: logging.Handler) -> None:
    """Hand what is said to `handler`, too."""
    get_logger().addHandler(handler)


def remove_handler(handler: logging.Handler) -> None:
    """The inverse of `add_handler`."""
    get_logger().removeHandler(handler)


def disable_default_handler() -> None:
    """Nothing goes to standard error by itself; handlers of others get it all the same."""
    remove_handler(_handler)


def enable_default_handler() -> None:
    """The inverse of `disable_default_handler`."""
    add_handler(_handler)  # once, however often


def disable_progress_bar() -> None:
    """The pipelines of this package draw without a bar, whatever their `set_progress_bar_config` says."""
    global _bars
    _bars = False


def enable_progress_bar() -> None:
    """Bars are drawn again, where a pipeline's `set_progress_bar_config` does not say otherwise."""
    global _bars
    _bars = True


def is_progress_bar_enabled() -> bool:
    """Whether the pipelines of this package may show a bar."""
    return _bars


def _start() -> None:
    """Be heard, from the level of `REDGE_GUIDANCE_VERBOSITY` on; without it a level that somebody set before stays."""
    enable_default_handler()
    asked = os.environ.get(VARIABLE)
    if not asked and get_logger().level != logging.NOTSET:
        return
    set_verbosity_warning()
    if asked and asked.strip().lower() not in LEVELS:
        get_logger().warning("%s must be one of %s, got %r; it is ignored", VARIABLE, ", ".join(LEVELS), asked)
    elif asked:
        set_verbosity(asked)


_start()
