"""What a server is to do: `serve` leaves it as a file to the server app, `flwr run` says it in words."""

# Annotations here are evaluated at once, not kept as text: tyro reads types that exist only inside functions.

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import tyro

from tff_kit.deploy.node import find_federated_task
from tff_kit.deploy.rounds import Attendance
from tff_kit.experiment import Experiment
from tff_kit.training import settings
from tff_kit.training.commands import default_settings
from tff_kit.training.runs import Place


@dataclasses.dataclass(frozen=True)
class Order:
    """A training with real clients.

    Attributes:
      experiment: The settings.
      attendance: Which clients a round needs.
      place: Where the run is kept.
    """

    experiment: Experiment
    attendance: Attendance
    place: Place

    def write(self, path: pathlib.Path) -> None:
        """Writes the order to a file, for `read`."""
        logdir = str(self.place.logdir.resolve()) if self.place.logdir else None
        fields = {
            "settings": settings.as_plain(self.experiment),
            "attendance": dataclasses.asdict(self.attendance),
            "place": {**dataclasses.asdict(self.place), "logdir": logdir},
        }
        path.write_text(json.dumps(fields))


def read(task: str, path: pathlib.Path) -> Order:
    """Returns the order for `task` that a file holds."""
    fields = json.loads(path.read_text())
    place = fields["place"]
    logdir = pathlib.Path(place["logdir"]) if place["logdir"] else None
    experiment = settings.from_plain(find_federated_task(task), fields["settings"])
    return Order(experiment, Attendance(**fields["attendance"]), Place(**{**place, "logdir": logdir}))


def parse(task: str, arguments: Sequence[str]) -> Order:
    """Returns the order for `task` that these arguments of a command line say; ends the program where they are wrong."""
    settings_type = find_federated_task(task)
    default = default_settings(settings_type, arguments)

    def order(
        training: tyro.conf.OmitArgPrefixes[settings_type] = default,  # type: ignore[valid-type]
        attendance: tyro.conf.OmitArgPrefixes[Attendance] = Attendance(),  # noqa: B008
        place: tyro.conf.OmitArgPrefixes[Place] = Place(),  # noqa: B008
    ) -> Order:
        return Order(training, attendance, place)

    return tyro.cli(order, args=list(arguments), prog="settings")
