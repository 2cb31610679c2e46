"""Context managers that silence lm_eval and turn its exceptions into errors for the user."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Iterator
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies

from selfaug.common.errors import ConfigError, DataError
from selfaug.common.quiet import is_verbose, libraries_muted
from selfaug.common.terminal import talk
from selfaug.evaluation.suites import GeneralTask

__all__ = ["code_refused", "offline_where_unreachable", "quiet", "repeatable_language_detection", "translated"]


_HUB_SECONDS = 5.0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence lm_eval and NLTK, which print to stdout and warn of settings that were chosen on purpose.

    Their progress bars, which no setting switches off, are dropped too: :class:`selfaug.evaluation.harness.Harness`
    reports progress itself.
    """
    logger = logging.getLogger("lm_eval")
    level = logger.level
    if not is_verbose():
        logger.setLevel(logging.ERROR)
    try:
        # Also in verbose mode, stdout is for data only.
        with contextlib.redirect_stdout(talk()), libraries_muted(), _without_git():
            yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _without_git() -> Iterator[None]:
    """Keep lm_eval from asking git for the commit of the working directory, which prints `fatal:` outside of one."""
    from lm_eval import evaluator

    own = getattr(evaluator, "get_git_commit_hash", None)
    evaluator.get_git_commit_hash = lambda: None
    try:
        yield
    finally:
        evaluator.get_git_commit_hash = own


@contextlib.contextmanager
def translated(task: GeneralTask) -> Iterator[None]:
    """Turn exceptions of lm_eval and the hub's libraries into errors with a hint."""
    try:
        yield
    except (ConfigError, DataError):
        raise
    except ImportError as error:
        raise ConfigError(
            f"general task {task.task} needs a package that cannot be imported: {_first(error)}",
            "install what is named above; lm_eval has an extra for most tasks, such as lm_eval[math].",
        ) from error
    except AssertionError as error:
        raise ConfigError(
            f"general task {task.task} cannot be run with this model: {_first(error)}",
            "a model with a short context needs fewer generated tokens: --max_gen_toks 128.",
        ) from error
    except ValueError as error:
        if "marked as unsafe" in str(error):
            raise code_refused(task.task) from error
        raise DataError(f"general task {task.task} cannot be run: {_first(error)}", _hint(task)) from error
    except (OSError, KeyError, IndexError, RuntimeError) as error:
        raise DataError(f"general task {task.task} cannot be run: {_first(error)}", _hint(task)) from error


def _hint(task: GeneralTask) -> str:
    if task.data is not None:
        return f"check that {task.data} has the columns that the task reads."
    return (
        "its data comes from the hub: check the network (and HF_HUB_OFFLINE), or name a file, "
        f"--general {task.task}=FILE."
    )


def _first(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


@cache
def offline_where_unreachable() -> None:
    """Switch the hub off for this process where it does not answer, so that its libraries only use their caches.

    Otherwise they try each file of each data set five times, half a minute in all.
    """
    import datasets
    from huggingface_hub import constants

    address = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE or getproxies():
        return
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        socket.create_connection((str(address.hostname), port), timeout=_HUB_SECONDS).close()
    except OSError:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True


def code_refused(task: str) -> ConfigError:
    """Return the error for a task that runs code that the model writes."""
    return ConfigError(
        f"general task {task} runs code that the model writes, on this machine",
        "pass --allow_code_execution in a sandbox, or leave the task out.",
    )


def repeatable_language_detection() -> None:
    """Seed langdetect, which draws at random: IFEval would otherwise score the same answers differently each time."""
    try:
        from langdetect import DetectorFactory
    except ImportError:
        return
    DetectorFactory.seed = 0
