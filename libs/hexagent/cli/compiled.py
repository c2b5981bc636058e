"""Whether this environment's core is the compiled one (`make native`)."""

from hexagent.sim import world


def core_is_compiled() -> bool:
    """The driver is compiled with the core, in one library."""
    return not world.__file__.endswith(".py")
