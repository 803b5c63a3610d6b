"""The libraries that listeners need, each imported where its listener is built, and the extras that bring them."""

from typing import Any, ClassVar, NamedTuple

from fluxgate.errors import import_extra


class Library(NamedTuple):
    """A library that may be missing."""

    module: str
    package: str
    extra: str

    def load(self, wanted_by: str) -> Any:
        """Import it.

        Raises:
            MissingExtraError: it is not installed.
        """
        return import_extra(self.module, wanted_by=wanted_by, package=self.package, extra=self.extra)


STRUCTLOG = Library("structlog", "structlog", "structlog")
PROMETHEUS = Library("prometheus_client", "prometheus-client", "prometheus")
OPENTELEMETRY = Library("opentelemetry.trace", "opentelemetry-api", "opentelemetry")
HTTPX = Library("httpx", "httpx", "webhook")


class NeedsLibrary:
    """Base of the listeners that need one."""

    library: ClassVar[Library]

    @classmethod
    def require(cls) -> Any:
        """Import the library that it needs; ``fluxgate listeners`` asks so what is missing.

        Raises:
            MissingExtraError: it is not installed; the text names the extra that brings it.
        """
        return cls.library.load(cls.__name__)
