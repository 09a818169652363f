"""Every error of the project, in one tree. A message says what, got, expected, and what to do; it never holds a secret.

EpigraphError
└── UserError            the user's mistake: the command line answers in one line and exits with 2
    ├── ModelError       ModelNotFound, UnsupportedModel, FetchFailed, ChecksumMismatch
    ├── DataError        TaskNotFound, DataNotFound, RecordsNotFound, BadRows, UnknownFormat, TooFewExamples,
    │                    CountMismatch, MetricUnavailable, TextTooLong
    ├── RecipeError      UnknownKey, BadValue
    ├── BindingError     AlreadyBound, BatchMismatch, ContractMismatch, LostBinding, ReentrantCheckpointing
    ├── GeometryMismatch, SharedLayers, CannotLower, OutputExists, TrainingFailed
    ├── EngineError      PrefixNotFound, BadClaim, SaltMismatch, CannotServe, EngineUnavailable, RequestFailed
    ├── RegistryError    BadName, TenantNotFound, AlreadyThere, CatalogueUnavailable, StoreUnavailable, CatalogueTooNew
    ├── AccessError      BadKey, Forbidden, QuotaExceeded, RequestTooLarge
    ├── RunError         NothingToResume, ResumeMismatch, RunInUse, ProcessLost, Interrupted
    └── ArtifactError    NotAnArtifact, Truncated, BadHeader, TooLarge, UnknownVersion, BadTensor, ContentMismatch,
                         WrongBase, WrongTokenizer, CannotWrite
"""


class EpigraphError(Exception):
    """Base of every error this package raises on purpose."""


class UserError(EpigraphError):
    """The user can mend it; the message says how. ``exit_code`` is what the command ends with."""

    exit_code = 2


class ModelError(UserError):
    """About a base model."""


class ModelNotFound(ModelError):
    """No such model here, or it was never fetched."""


class UnsupportedModel(ModelError):
    """The model cannot take virtual tokens; the message names the reason."""


class FetchFailed(ModelError):
    """A package or an address could not be had."""


class ChecksumMismatch(ModelError):
    """What came is not what was expected."""


class DataError(UserError):
    """About examples."""


class TaskNotFound(DataError):
    """No task or split of that name."""


class DataNotFound(DataError):
    """The task's files are not here."""


class RecordsNotFound(DataError):
    """A folder in which nothing was trained."""


class BadRows(DataError):
    """Rows that break the format, all of them listed."""


class UnknownFormat(DataError):
    """A file of a kind that is not read."""


class TooFewExamples(DataError):
    """Fewer examples than were asked for."""


class CountMismatch(DataError):
    """Predictions and references are not the same number."""


class MetricUnavailable(DataError):
    """A metric needs something that is not installed, or that failed; other metrics are not touched."""


class TextTooLong(DataError):
    """A row does not fit the model's positions."""


class RecipeError(UserError):
    """About a recipe or a flag."""


class UnknownKey(RecipeError):
    """A key that no recipe has; the message names the nearest one."""


class BadValue(RecipeError):
    """A value of the wrong type or range."""


class BindingError(UserError):
    """About prefixes bound to a model."""


class AlreadyBound(BindingError):
    """A second prefix on a model that carries one."""


class BatchMismatch(BindingError):
    """Rows bound and rows run are not the same number."""


class LostBinding(BindingError):
    """Attention ran past the model's own forward, where no prefix can follow."""


class ReentrantCheckpointing(BindingError):
    """Activation checkpointing of the kind that forgets the prefix."""


class ContractMismatch(BindingError):
    """Trained with another text contract than the artifact it is to be asked with."""


class GeometryMismatch(UserError):
    """Virtual tokens and model do not fit each other."""


class SharedLayers(UserError):
    """Layers that share one attention module can take no keys and values of their own."""


class CannotLower(UserError):
    """A soft prompt that keys and values cannot stand for; the message names the reason."""


class OutputExists(UserError):
    """A file or folder is in the way and would be lost."""


class TrainingFailed(UserError):
    """The loss stopped being a number."""


class EngineError(UserError):
    """About serving."""


class PrefixNotFound(EngineError):
    """No prefix of that name in the folder that an engine serves."""


class BadClaim(EngineError):
    """A request that names a prefix in a way that no engine can follow."""


class SaltMismatch(EngineError):
    """A request whose cache salt is not that of the prefix it names; the message holds no salt."""


class CannotServe(EngineError):
    """Virtual tokens, or a setting, that an engine cannot serve exactly; the message names the reason."""


class EngineUnavailable(EngineError):
    """The engine is not installed here, or did not start."""


class RequestFailed(EngineError):
    """The engine ended a request without an answer."""


class RegistryError(UserError):
    """About tenants and the prefixes that are kept for them."""


class BadName(RegistryError):
    """What no tenant, prefix, version or alias may be called."""


class TenantNotFound(RegistryError):
    """No tenant of that name."""


class AlreadyThere(RegistryError):
    """A tenant, an alias or a share of that name is there, and would be changed."""


class CatalogueUnavailable(RegistryError):
    """The database of a registry does not answer."""


class StoreUnavailable(RegistryError):
    """The bytes of a registry cannot be read or written."""


class CatalogueTooNew(RegistryError):
    """The database was made by a later version of this program."""


class AccessError(UserError):
    """About who may do what; no message holds a key."""


class BadKey(AccessError):
    """No API key, or none that is known and still good."""


class Forbidden(AccessError):
    """The key is good, and not for this."""


class QuotaExceeded(AccessError):
    """More requests, tokens or concurrent answers than the tenant may have."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        # Seconds after which the same request may be made again.
        self.retry_after = retry_after


class RequestTooLarge(AccessError):
    """A body, a text or an answer over the server's limits."""


class RunError(UserError):
    """About a run that is to go on, or was stopped."""


class NothingToResume(RunError):
    """No checkpoint, or none that is whole."""


class ResumeMismatch(RunError):
    """Recipe, model or data are not those of the run to go on with."""


class RunInUse(RunError):
    """Another process writes to the same folder."""


class ProcessLost(RunError):
    """One of the processes that train together ended or failed."""


class Interrupted(RunError):
    """Ctrl-C or SIGTERM: the run stopped after a step, which is saved."""

    def __init__(self, message: str, *, signal: int = 2) -> None:
        super().__init__(message)
        # As a shell reports a process that the signal ended.
        self.exit_code = 128 + signal


class ArtifactError(UserError):
    """About an artifact file."""


class NotAnArtifact(ArtifactError):
    """The file is something else."""


class Truncated(ArtifactError):
    """The file ends before its tensors do, or goes on after them."""


class BadHeader(ArtifactError):
    """The header breaks docs/format.md."""


class TooLarge(ArtifactError):
    """The file is over the limits of docs/format.md."""


class UnknownVersion(ArtifactError):
    """Written by a later format."""


class BadTensor(ArtifactError):
    """A missing, extra, misshapen, mistyped or non-finite tensor."""


class ContentMismatch(ArtifactError):
    """Tensors or header are not the ones that were written."""


class WrongBase(ArtifactError):
    """Trained for a base model with other weights."""


class WrongTokenizer(ArtifactError):
    """Trained with another tokenizer."""


class CannotWrite(ArtifactError):
    """No space, no permission or no folder to write the file in; nothing was left behind."""
