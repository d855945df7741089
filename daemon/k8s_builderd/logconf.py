"""Sets up structured logging, once: JSON lines for machines, or coloured ones for people, on stderr."""

import logging
import sys
from typing import Any

if "rich" in sys.modules:
    import structlog
else:
    # structlog would import it for tracebacks that are not shown here, and it has 4 MB.
    sys.modules["rich"] = None  # type: ignore[assignment] # which says that it is not to be imported
    try:
        import structlog
    finally:
        del sys.modules["rich"]


def configure(log_format: str, *, debug: bool) -> None:
    """Send structlog's and the standard library's logging to stderr, in one form.

    :param log_format: `json` or `console`.
    """
    level = logging.DEBUG if debug else logging.INFO
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Any]
    if log_format == "json":
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        # Plain tracebacks: those of rich show local variables, and in these are keys.
        plain = structlog.dev.plain_traceback
        last = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    libraries = logging.StreamHandler(sys.stderr)
    libraries.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[libraries], force=True)
    # Whoever sends no HTTP to the health port would put a traceback here; what goes wrong in our handlers we tell.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
