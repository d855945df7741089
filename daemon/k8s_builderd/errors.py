"""The family of errors that are told to people: each one is a line that says what to change."""


class BuilderError(Exception):
    """An error whose text is one line for the operator.

    A subclass may carry a `remedy`, which is told after the message.
    """

    remedy: str = ""
    category: str | None = None
    """The stable name of its kind, for alerts and scripts; None where it has none."""

    def __str__(self) -> str:
        """Return the message and the remedy, on one line."""
        message = " ".join(super().__str__().splitlines())
        return f"{message.rstrip('.')}. {self.remedy}" if self.remedy else message


class PackageError(BuilderError):
    """A file of the chaincode package, or a field in it, breaks a rule; the text names all three."""

    def __init__(self, file: str, rule: str, field: str = "") -> None:
        self.file = file
        self.field = field
        self.rule = rule
        super().__init__(f"{file}: field '{field}' {rule}" if field else f"{file} {rule}")


class SettingsError(BuilderError):
    """An environment variable has a value that cannot be used; the text names the variable and the rule."""


class ProtocolError(BuilderError):
    """The client broke a rule or a bound of the protocol; the text names it. The connection ends."""


class ClientGone(Exception):
    """Raised when a connection has closed before its call was over; there is nobody left to tell."""
