"""One tree of errors. A message says what happened, why, and what to do; it never contains a secret.

SottovoceError
├── UsageError              exit 2: the command or its input cannot work as given
│   ├── UnknownModelError
│   ├── UnsupportedModelError
│   ├── CorruptFileError
│   ├── PoolFullError
│   ├── StorageError
│   └── PromptTooLongError
├── PeerConnectionError     exit 3: the other party cannot be reached, or is gone
│   └── PeerGoneError
├── RefusedError            exit 4: a policy says no; nothing is silently downgraded
│   ├── ServerBusyError
│   ├── VersionMismatchError
│   ├── ParameterMismatchError
│   ├── ModelMismatchError
│   └── CertificateChangedError
├── ProtocolError           exit 5: the other party sent what the protocol does not allow
│   ├── FrameError
│   └── IntegrityError
├── ParameterError          cryptographic parameters that are not secure or not consistent
└── RangeError              a value outside the range its representation can hold
"""


class SottovoceError(Exception):
    """Root of every error that the package raises on purpose."""

    exit_code = 1


class UsageError(SottovoceError):
    exit_code = 2


class UnknownModelError(UsageError):
    """No model of that name or at that path."""


class UnsupportedModelError(UsageError):
    """The model uses an operation that no engine implements; the message names it and what is supported."""


class CorruptFileError(UsageError):
    """A file's bytes contradict its format."""


class PoolFullError(UsageError):
    """Prepared material does not fit a pool; both parties notice together, and the session goes on."""


class StorageError(UsageError):
    """Something cannot be saved: the disk is full, or the directory cannot be written."""


class PromptTooLongError(UsageError):
    """Prompt plus new tokens exceed the model's context."""


class PeerConnectionError(SottovoceError):
    exit_code = 3


class PeerGoneError(PeerConnectionError):
    """The connection ended in the middle of the protocol."""


class RefusedError(SottovoceError):
    exit_code = 4


class ServerBusyError(RefusedError):
    """The server has no place for another session now. retry_after: seconds after which it may have one."""

    def __init__(self, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class VersionMismatchError(RefusedError):
    """The peers speak different versions of the protocol."""


class ParameterMismatchError(RefusedError):
    """The peers disagree on cryptographic parameters, engine or cache strategy."""


class ModelMismatchError(RefusedError):
    """The server's model is not the one the client expects."""


class CertificateChangedError(RefusedError):
    """The server's certificate is not the one pinned on first use."""


class ProtocolError(SottovoceError):
    exit_code = 5


class FrameError(ProtocolError):
    """A frame is truncated, oversized, of another version, or not of the size the protocol step requires."""


class IntegrityError(ProtocolError):
    """Bytes that passed the frame check but not the check of their content."""


class ParameterError(SottovoceError):
    """Cryptographic parameters that are not secure, or contradict each other."""


class MissingKeyError(ParameterError):
    """An operation on ciphertexts needs a key that was not generated, or only for a lower level."""


class ForeignKeyError(ParameterError):
    """A ciphertext or key belongs to another secret key than the rest."""


class LevelError(ParameterError):
    """A ciphertext has no levels left for an operation, or is at the wrong one."""


class ScaleError(ParameterError):
    """Ciphertexts or plaintexts of different scales were to be added."""


class RangeError(SottovoceError):
    """A value outside the range that its representation can hold."""
