"""Outlets for the SNMP simulator: what is written to a command shows in the state.

A record's value is one of
    state OUTLET on|off VALUE=STATE ...     the state, which is at first as said
    command OUTLET VALUE=STATE ...          switches; STATE is on, off or cycle
    refuse OUTLET ERROR VALUE=STATE ...     is a command that refuses, as pysnmp calls the error
    count OUTLET                            how many commands the outlet got
"""

from pysnmp.smi import error

STATES = {}
COUNTS = {}


def init(**context):
    pass


def variate(oid, tag, value, **context):
    if not context["nextFlag"] and not context["exactMatch"]:
        return context["origOid"], tag, context["errorStatus"]
    kind, outlet, *words = value.split()
    first = words.pop(0) if kind == "state" else "on"
    refusal = words.pop(0) if kind == "refuse" else "WrongValueError"
    values = dict(word.split("=") for word in words)
    state = STATES.setdefault(outlet, first)
    if context["setFlag"]:
        wanted = values.get(str(int(context["origValue"])))
        if kind != "command" or wanted is None:
            raise getattr(error, refusal)(name=oid, idx=0)
        COUNTS[outlet] = COUNTS.get(outlet, 0) + 1
        if wanted != "cycle":
            STATES[outlet] = wanted
        return oid, tag, context["origValue"]
    if kind == "count":
        return oid, tag, str(COUNTS.get(outlet, 0))
    return oid, tag, next(number for number, name in values.items() if name == state)


def shutdown(**context):
    pass
