"""What can go wrong, and the exit code that says so.

    LandsegError
    ├── UsageError (2)             wrong usage: an option, a path or a name the user gave
    │   ├── ConfigError            a YAML file with an unknown or ill-typed key
    │   └── OutputExistsError      the output is there already and --overwrite was not given
    ├── InputError (3)             bad input: what was named exists but can't be used
    │   ├── SceneError             missing, unreadable or empty scene
    │   │   ├── BandError          the scene's bands don't fit the model's
    │   │   ├── EmptySceneError    not one valid pixel
    │   │   ├── CrsError           no coordinate reference system
    │   │   └── GsdError           pixels of a size that the model was not made for
    │   ├── BundleError            a model bundle that is incomplete or damaged
    │   ├── CatalogError           a STAC catalog that can't be read, or is not what it says
    │   └── TrainingDataError      scenes and labels that can't be trained on
    ├── ResourceError (4)          not enough of something
    │   ├── DiskError              no room, or no permission to write
    │   └── MemoryLimitError       main or GPU memory
    ├── BatchError (5)             some scenes of a batch failed
    └── RunInterruptedError (130)  Ctrl-C or SIGTERM

The command line prints ``str(error)`` and leaves with ``error.exit_code``; nothing else decides exit codes. Errors end
up in logs and reports: what may be secret in a URL is taken out of them.
"""

from landseg.hrefs import hide_secrets


class LandsegError(Exception):
    """Say what is wrong, where, and what to do about it.

    Parameters
    ----------
    what
        One sentence without a full stop that names the thing and its place.
    hint
        What the user can do next; printed on a second line.
    """

    exit_code = 1

    def __init__(self, what: str, hint: str | None = None) -> None:
        what, hint = hide_secrets(what), None if hint is None else hide_secrets(hint)
        super().__init__(what, hint)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return self.what if self.hint is None else f"{self.what}\n  {self.hint}"


class UsageError(LandsegError):
    """An option, a path or a name that the user gave is wrong."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration file has an unknown key, an ill-typed value, or is not YAML."""


class OutputExistsError(UsageError):
    """An output is there already and overwriting was not asked for."""


class InputError(LandsegError):
    """Something that the user named exists but can't be used."""

    exit_code = 3


class SceneError(InputError):
    """A scene is missing, unreadable or holds nothing to map."""


class BandError(SceneError):
    """The scene's bands can't be matched to those that the model reads."""


class EmptySceneError(SceneError):
    """All of the scene is nodata."""


class CrsError(SceneError):
    """The scene has no usable coordinate reference system."""


class GsdError(SceneError):
    """The scene's pixels are too far from the size that the model was made for."""


class BundleError(InputError):
    """A model bundle is incomplete, damaged or of an unknown form."""


class CatalogError(InputError):
    """A STAC catalog can't be read, or is not what it says."""


class TrainingDataError(InputError):
    """Scenes and labels can't be trained or evaluated on as they are."""


class ResourceError(LandsegError):
    """There is not enough of something."""

    exit_code = 4


class DiskError(ResourceError):
    """The disk is full, or the place can't be written to."""


class MemoryLimitError(ResourceError):
    """Main or GPU memory does not suffice."""


class BatchError(LandsegError):
    """Some scenes of a batch failed."""

    exit_code = 5


class RunInterruptedError(LandsegError):
    """The run was stopped by Ctrl-C or SIGTERM."""

    exit_code = 130
