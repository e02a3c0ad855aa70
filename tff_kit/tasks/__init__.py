"""The tasks that come with the project: a folder each, with its data, its model and its settings.

`TASKS` is all that the rest of the project knows of them. A task is imported when it is asked for, so that one task's packages
are not needed by another.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tff_kit.experiment import Training

TASKS: Mapping[str, str] = {
    "cifar10": "tff_kit.tasks.cifar10:Cifar10",
    "emnist": "tff_kit.tasks.emnist:Emnist",
    "kws": "tff_kit.tasks.keywords:KeywordSpotting",
    "kws-centralized": "tff_kit.tasks.keywords:CentralizedKeywordSpotting",
    "sam": "tff_kit.tasks.segmentation:Segmentation",
    "sam-centralized": "tff_kit.tasks.segmentation:CentralizedSegmentation",
}
"""From a task's name on the command line to its settings, MODULE:CLASS."""


def find_task(name: str) -> type[Training]:
    """Returns the settings class of a task; raises `KeyError` for a name that is not in `TASKS`."""
    module, _, settings = TASKS[name].partition(":")
    return getattr(importlib.import_module(module), settings)
