"""``python -m dsmfor doctor``: will dsmfor work on this machine, and what should be changed?

`checks` looks at kernel, memory, limits, cores and software as `machine` tells of them; `rehearsal`
really runs a team and kills one of its workers; `findings` shows what was found.
"""

from dsmfor.doctor.checks import examine
from dsmfor.doctor.findings import Finding, as_json, as_table, sound
from dsmfor.doctor.machine import Machine
from dsmfor.doctor.rehearsal import trial

__all__ = ["Finding", "Machine", "as_json", "as_table", "examine", "sound", "trial"]
