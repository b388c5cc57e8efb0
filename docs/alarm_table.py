"""The page of alarms, from their table: docs/alarms.md."""

from __future__ import annotations

import reference
from cells import markdown_table

from gro.training.alarm_limits import AlarmLimits
from gro.training.alarms import ALARMS, Alarm

HEAD = """# Alarms

After every step the run's metrics are compared with the limits below.  An alarm is printed, kept as an event of the
run with its value and limit, shown on the page of the run, and counted at its end.  It is raised once for an episode:
when the limit has been passed for as many measurements in a row as the table says, and again only after ten within
it.  Those that end a run do so after the updates of that step, whose state is then saved unless weights are not
finite.  The same command does no further step and says the same again; with the other limit that it names it goes on
from there.  (An alarm of the very last step saves nothing: that step is then done again.)

A recipe changes a limit or switches an alarm off: `training: {alarms: {length_drift: 4, duplicates: off}}`.
"""

FOOT = """
Whether the samples are the policy's own cannot be told where `top_p` or `top_k` restrict them: `kl_negative` and the
alarms of the sampler are then not measured.  Samples of earlier steps (`replay`) are left out of these as well.
Numbers that are not finite are no alarm: they [stop the run](reliability.md) before any weight changes.
"""


def page() -> str:
    """The whole page."""
    rows = ((f"`{alarm.name}`", _when(alarm), _limit(alarm), f"{alarm.cause} {alarm.knob}") for alarm in ALARMS)
    table = markdown_table(("alarm", "raised at", "limit", "cause, and what to do"), rows)
    return "\n".join([HEAD, *table, FOOT.rstrip(), ""])


def _when(alarm: Alarm) -> str:
    """What is measured, how long it must last, and whether it ends the run."""
    said = reference.documented(AlarmLimits)[alarm.name] or ""
    many = "evaluations" if alarm.evaluated else "steps"
    lasting = f" For {alarm.patience} {many} in a row." if alarm.patience > 1 else ""
    return said + lasting + (" Ends the run at once." if alarm.stops == 1 else "")


def _limit(alarm: Alarm) -> str:
    return f"{getattr(AlarmLimits(), alarm.name):g}"
